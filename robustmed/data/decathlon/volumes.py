"""Labelled volumes as 2D slices, one example each, with the splits and preprocessing of nnU-Net.

A real source and its phantom differ only in how the volumes of a `Study` are read or drawn. An
example has 'image' [h, w, c] (float32, z-scored), 'labels' [h, w] (-1 outside the nonzero mask),
'spacing' [3] (between slices, rows, columns, in millimetres), 'slice' (its position in the cropped
volume), 'present' [classes - 1] (which foreground classes it shows), 'index', 'group' (the number
of the case by name) and 'name'. Slices of two cases may differ in size.

'index' counts all slices: of the training cases, then the test cases, then the validation cases, so
it does not depend on which test slices are evaluated.

With `folds` above 0 the cases are partitioned into so many folds, of which `fold` is tested.
'index' then counts the slices of the cases by name; it is the same in every fold, as 'group' is.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from robustmed import errors
from robustmed.data import store
from robustmed.data.decathlon import folds, patches, preprocess

SLICES = ('complete', 'foreground', 'all')
FIELDS = {
  **folds.FIELDS,
  'slices': 'complete',  # of the test set: those with all foreground classes of their case
  'slices_per_case': 0,  # of the test set: at most so many of a case, evenly spaced; 0: all
  'patch': (),  # of the network, rows and columns; (): the published one
  'train_cases': 0,  # the first so many of the split, 0: all; the fingerprint is that of all cases
  'test_cases': 0,
  'margin': True,  # training loads more than the patch, which augmentation rotates and scales
}
_BYTES, _ZLIB = tfds.features.Encoding.BYTES, tfds.features.Encoding.ZLIB


class Case(NamedTuple):
  name: str
  read: Callable[[], preprocess.Volume]  # raises `UserError` with the file's name
  where: str  # the file to name in a message
  survey: preprocess.Survey | None = None  # if it is known without reading


@dataclasses.dataclass(frozen=True)
class Study:
  """Cases sorted by name. `key` holds all that they depend on, and alone decides equality."""

  key: str
  cases: tuple[Case, ...] = dataclasses.field(compare=False)
  modalities: tuple[str, ...] = dataclasses.field(compare=False)
  classes: tuple[str, ...] = dataclasses.field(compare=False)  # the background first
  fold: int = dataclasses.field(default=0, compare=False)
  folds: int = dataclasses.field(default=0, compare=False)
  all_test: bool = dataclasses.field(default=False, compare=False)
  # cases of the training split and of each other one, 0: all
  limits: tuple[int, int] = dataclasses.field(default=(0, 0), compare=False)


def features(*, modalities: int, foreground: int) -> tfds.features.FeaturesDict:
  """Returns the features of a slice of any size."""
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Tensor(
        shape=(None, None, modalities), dtype=np.float32, encoding=_BYTES
      ),
      'labels': tfds.features.Tensor(shape=(None, None), dtype=np.int8, encoding=_ZLIB),
      'spacing': tfds.features.Tensor(shape=(3,), dtype=np.float32),
      'slice': tfds.features.Scalar(dtype=np.int32),
      'present': tfds.features.Tensor(shape=(foreground,), dtype=np.bool_),
      'group': tfds.features.Scalar(dtype=np.int32),
      'index': tfds.features.Scalar(dtype=np.int32),
      'name': tfds.features.Text(),
    }
  )


class VolumeBuilder(store.Builder):
  """'train', 'test' (all slices of the test cases) and, where the fold has any, 'validation'.

  With `folds` all cases that a fold uses are stored once, as 'test'; see `folds.of_fold`.
  """

  @abc.abstractmethod
  def study(self) -> Study:
    """Returns the cases for these fields."""

  def features(self):
    study = self.study()
    return features(modalities=len(study.modalities), foreground=len(study.classes) - 1)

  def splits(self):
    study = self.study()
    found = stored(study)
    surveys, plan = survey(study)
    self.facts = {
      'properties': plan._asdict(),
      'classes': list(study.classes),
      'modalities': list(study.modalities),
      'cases': {name: [study.cases[i].name for i in chosen] for name, chosen in found.items()},
      'present': {name: [] for name in found},
      'folds': every_fold(study),
    }
    result, first = {}, 0
    for name, chosen in found.items():
      self.counts[f'{name}_cases'] = len(chosen)
      shown = self.facts['present'][name] = []
      result[name] = self._examples(study, plan, chosen, first=first, shown=shown)
      first += sum(surveys[i].shape[plan.axis] for i in chosen)
    return result

  def _examples(self, study, plan, chosen, *, first, shown) -> Iterator[dict[str, Any]]:
    for number in chosen:
      volume = prepare(study, number, plan)
      flags = _flags(volume.labels, len(study.classes))
      self.counts['slices_without_foreground'] += int((~flags.any(axis=1)).sum())
      for z, (image, labels) in enumerate(zip(volume.image, volume.labels)):
        shown.append(_bits(flags[z]))
        yield {
          'image': np.ascontiguousarray(image, np.float32),
          'labels': np.ascontiguousarray(labels),
          'spacing': np.array(volume.spacing, np.float32),
          'slice': z,
          'present': flags[z],
          'group': number,
          'index': first,
          'name': f'{study.cases[number].name}_{z:03d}',
        }
        first += 1


def split(study: Study) -> dict[str, list[int]]:
  """Returns the cases of each split, see `folds.partition`, within the limits of the study."""
  count, number = len(study.cases), study.folds or folds.FOLDS
  if count < number:
    raise errors.UserError(
      f'{study.cases[0].where if count else "the data set"}: {count} cases are too few for '
      f'{number} folds; at least {number} are needed'
    )
  train, others = (limit or None for limit in study.limits)
  found = folds.partition(count, fold=study.fold, folds=study.folds, all_test=study.all_test)
  return {name: chosen[: train if name == 'train' else others] for name, chosen in found.items()}


def every_fold(study: Study) -> list[dict[str, list[int]]]:
  """Returns `split` of each of the folds that are run as one; [] with `folds` 0."""
  return [split(dataclasses.replace(study, fold=fold)) for fold in range(study.folds)]


def stored(study: Study) -> dict[str, list[int]]:
  """Returns the cases of each stored split: those of `split`, or with `folds` all in 'test'."""
  if not study.folds:
    return split(study)
  return {
    'test': sorted({i for parts in every_fold(study) for part in parts.values() for i in part})
  }


@functools.lru_cache(maxsize=8)
def survey(study: Study) -> tuple[tuple[preprocess.Survey, ...], preprocess.Fingerprint]:
  """Returns the survey of every case and their fingerprint; reads cases that are not known."""
  surveys = []
  for case in study.cases:
    try:
      surveys.append(case.survey or preprocess.survey(case.read()))
    except ValueError as error:
      raise errors.UserError(f'{case.where}: {error}') from error
  found = preprocess.fingerprint(
    surveys, modalities=len(study.modalities), classes=len(study.classes)
  )
  return tuple(surveys), found


def prepare(study: Study, number: int, plan: preprocess.Fingerprint) -> preprocess.Volume:
  """Returns one case, preprocessed."""
  return preprocess.apply(study.cases[number].read(), plan)


def sizes(study: Study, fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the slices per split, of the test split those of `select_slices`; reads the cases."""
  surveys, plan = survey(study)
  cases = split(study)
  whole = {n: sum(surveys[i].shape[plan.axis] for i in chosen) for n, chosen in cases.items()}
  return count_selected(whole, fields, lambda: [_class_bits(study, i) for i in cases['test']])


def count_selected(
  whole: Mapping[str, int], fields: Mapping[str, Any], shown: Callable[[], Iterable[Sequence[int]]]
) -> dict[str, int]:
  """Returns the slices per split, of the test split those of `select_slices`.

  shown: () -> the class bits of all slices, per test case; called only if they are needed.
  """
  if fields['slices'] == 'all' and not fields['slices_per_case']:
    return dict(whole)
  cases = list(shown())
  groups = [case for case, bits in enumerate(cases) for _ in bits]
  bits = [bits for case in cases for bits in case]
  chosen = select_slices(groups, bits, fields['slices'], fields['slices_per_case'])
  return {**whole, 'test': len(chosen)}


def depths(study: Study) -> list[int]:
  """Returns the number of slices of every test volume."""
  surveys, plan = survey(study)
  return [surveys[i].shape[plan.axis] for i in split(study)['test']]


@functools.lru_cache(maxsize=1024)
def _class_bits(study, number):
  volume = prepare(study, number, survey(study)[1])
  return tuple(class_bits(volume.labels, len(study.classes)))


def class_bits(labels: np.ndarray, classes: int) -> list[int]:
  """Returns the foreground classes that each slice [z, h, w] shows, as bits: bit 0 is class 1."""
  return [_bits(row) for row in _flags(labels, classes)]


def _flags(labels, classes):
  """Returns [slices, classes - 1]: whether a slice shows a foreground class."""
  return np.stack([(labels == label).any(axis=(1, 2)) for label in range(1, classes)], axis=1)


def _bits(flags):
  return int(sum(1 << place for place, flag in enumerate(flags) if flag))


def select_slices(
  groups: Sequence[int], present: Sequence[int], slices: str, per_case: int = 0
) -> list[int]:
  """Returns the positions of the slices that are 'complete' (with all foreground classes of their
  case), have some 'foreground', or of 'all'; at most `per_case` of a case, evenly spaced."""
  of_case: dict[int, int] = {}
  for group, bits in zip(groups, present):
    of_case[group] = of_case.get(group, 0) | bits
  wanted = {
    'complete': lambda group, bits: bits and bits & of_case[group] == of_case[group],
    'foreground': lambda group, bits: bits,
    'all': lambda group, bits: True,
  }[slices]
  chosen: dict[int, list[int]] = {}
  for i, (group, bits) in enumerate(zip(groups, present)):
    if wanted(group, bits):
      chosen.setdefault(group, []).append(i)
  if per_case:
    chosen = {group: _evenly_spaced(places, per_case) for group, places in chosen.items()}
  return sorted(i for places in chosen.values() for i in places)


def _evenly_spaced(places, count):
  """Returns the middles of `count` equal parts of the places, or all if there are fewer."""
  size = len(places)
  if size <= count:
    return places
  return [places[(2 * part + 1) * size // (2 * count)] for part in range(count)]


def check_fields(fields: Mapping[str, Any]) -> None:
  folds.check(fields)
  if fields['slices'] not in SLICES:
    raise errors.UserError(f'data field slices must be one of {SLICES}, not {fields["slices"]!r}')
  for name in ('train_cases', 'test_cases', 'slices_per_case'):
    if fields[name] < 0:
      raise errors.UserError(f'data field {name} must be 0 (all) or more, not {fields[name]}')
  patch = fields['patch']
  if patch and (len(patch) != 2 or not all(isinstance(n, int) and n > 0 for n in patch)):
    raise errors.UserError(f'data field patch must be (rows, columns) or (), not {patch!r}')


def limits_of(fields: Mapping[str, Any]) -> tuple[int, int]:
  return fields['train_cases'], fields['test_cases']


def arrange(source, fields: Mapping[str, Any], facts: Mapping[str, Any], *, patch: Sequence[int]):
  """Returns the `data.Source` with its test slices chosen, its sampling and its crop.

  patch: of the network. info: 'properties' (a `preprocess.Fingerprint`), 'classes',
  'modalities', 'cases' per split, 'patch' and 'loader_patch'.
  """
  loader, _ = windows(fields, patch=patch)
  source, facts = folds.of_fold(source, fields, facts)
  return with_sampling(source, fields, facts, patch=patch, loader=loader, seen=patch)._replace(
    info={
      **{name: facts[name] for name in ('properties', 'classes', 'modalities', 'cases')},
      'patch': list(patch),
      'loader_patch': list(loader),
    },
  )


def windows(
  fields: Mapping[str, Any], *, patch: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the size of what is loaded in training, and that of what is evaluated."""
  patch = tuple(patch)
  return (patches.loader_patch(patch) if fields['margin'] else patch), patch


def with_sampling(
  source,
  fields: Mapping[str, Any],
  facts: Mapping[str, Any],
  *,
  patch: Sequence[int],
  loader: Sequence[int],
  seen: Sequence[int],
  forced: float = patches.FORCED,
):
  """Returns the `data.Source` with its test slices chosen, its sampling and its crop.

  patch, loader, forced: of training, see `patches.sampling`; seen: the centred patch of evaluation.
  """
  shown = facts['present']
  test = select_slices(
    source.test.groups, shown['test'], fields['slices'], fields['slices_per_case']
  )
  if not test:
    raise errors.UserError(
      f'none of the {len(source.test)} slices of the test cases {facts["cases"]["test"]} is '
      f'{fields["slices"]}; set the data field slices to all'
    )
  sampling = source.sampling
  if len(source.train):
    sampling = patches.sampling(
      source.train.groups, shown['train'], patch=patch, loader=loader, forced=forced
    )
  return source._replace(
    test=store.Part(source.test, test),
    volumes=source.test,
    sampling=sampling,
    crop=patches.centred(seen),
  )

"""Sets of labelled volumes as 2D slices: nnU-Net's splits and preprocessing, one example a slice.

A real source and its phantom differ in where the volumes of a `Study` come from and in nothing
else. An example has 'image' [h, w, c] (float32, z-scored), 'labels' [h, w] (-1 outside the nonzero
mask), 'spacing' [3] (between slices, rows, columns, in millimetres), 'slice' (its place in the
cropped volume), 'present' [classes - 1] (which foreground classes it shows), 'index', 'group' (the
number of the case by name) and 'name'. Slices of two cases may differ in size.

Ids ('index') count all slices: of the training cases, then the test cases, then the validation
cases, so an id does not depend on which test slices are looked at.
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
from robustmed.data.decathlon import patches, preprocess

FOLDS = 5
SLICES = ('complete', 'foreground', 'all')
FIELDS = {
  'fold': 0,
  'slices': 'complete',  # of the test set; those with all foreground classes of their case
  'slices_per_case': 0,  # of the test set at most so many of a case, spread evenly, 0: all
  'patch': (),  # the network's, rows and columns; (): the published one
  'train_cases': 0,  # the first so many of each split, 0: all; intensities and grid follow from all
  'test_cases': 0,
  'margin': True,  # training loads more than the patch, for augmentation to turn and scale
}
_SEED = 12345  # of the published folds
_BYTES, _ZLIB = tfds.features.Encoding.BYTES, tfds.features.Encoding.ZLIB


class Case(NamedTuple):
  name: str
  read: Callable[[], preprocess.Volume]  # raises `UserError` with the file's name
  where: str  # the file or thing to name in a message
  survey: preprocess.Survey | None = None  # where it is known without reading


@dataclasses.dataclass(frozen=True)
class Study:
  """Cases sorted by name. `key` says all that they depend on, and is what makes two equal."""

  key: str
  cases: tuple[Case, ...] = dataclasses.field(compare=False)
  modalities: tuple[str, ...] = dataclasses.field(compare=False)
  classes: tuple[str, ...] = dataclasses.field(compare=False)  # the background first
  fold: int = 0
  limits: tuple[int, int] = (0, 0)  # cases of the training split and of each other one, 0: all


class VolumeBuilder(store.Builder):
  """'train', 'test' (all slices of the test cases) and, where the fold has any, 'validation'."""

  @abc.abstractmethod
  def study(self) -> Study:
    """The cases for these fields."""

  def features(self):
    study = self.study()
    return tfds.features.FeaturesDict(
      {
        'image': tfds.features.Tensor(
          shape=(None, None, len(study.modalities)), dtype=np.float32, encoding=_BYTES
        ),
        'labels': tfds.features.Tensor(shape=(None, None), dtype=np.int8, encoding=_ZLIB),
        'spacing': tfds.features.Tensor(shape=(3,), dtype=np.float32),
        'slice': tfds.features.Scalar(dtype=np.int32),
        'present': tfds.features.Tensor(shape=(len(study.classes) - 1,), dtype=np.bool_),
        'group': tfds.features.Scalar(dtype=np.int32),
        'index': tfds.features.Scalar(dtype=np.int32),
        'name': tfds.features.Text(),
      }
    )

  def splits(self):
    study = self.study()
    found = split(study)
    surveys, plan = survey(study)
    self.facts = {
      'properties': plan._asdict(),
      'classes': list(study.classes),
      'modalities': list(study.modalities),
      'cases': {name: [study.cases[i].name for i in chosen] for name, chosen in found.items()},
      'present': {name: [] for name in found},
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


def held_out(count: int, fold: int = 0) -> list[int]:
  """The held-out positions of `count` names: a shuffled 5-fold partition, sorted.

  The published folds are scikit-learn's KFold(5, shuffle=True, random_state=12345).
  """
  order = np.arange(count)
  np.random.RandomState(_SEED).shuffle(order)
  return sorted(np.array_split(order, FOLDS)[fold].tolist())


def split(study: Study) -> dict[str, list[int]]:
  """Cases of 'train', 'test' and 'validation', the first third of what the fold holds out.

  'validation' is absent where that third is less than one case.
  """
  count = len(study.cases)
  if count < FOLDS:
    raise errors.UserError(
      f'{study.cases[0].where if count else "the data set"}: {count} cases are too few for '
      f'{FOLDS} folds; at least {FOLDS} are needed'
    )
  held = held_out(count, study.fold)
  first = len(held) // 3
  train, others = (limit or None for limit in study.limits)
  result = {'train': sorted(set(range(count)) - set(held))[:train], 'test': held[first:][:others]}
  return {**result, 'validation': held[:first][:others]} if first else result


@functools.lru_cache(maxsize=8)
def survey(study: Study) -> tuple[tuple[preprocess.Survey, ...], preprocess.Fingerprint]:
  """Reads every case whose survey is not known, one at a time."""
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
  """One case, ready for its slices to be used."""
  return preprocess.apply(study.cases[number].read(), plan)


def sizes(study: Study, fields: Mapping[str, Any]) -> dict[str, int]:
  """Slices per split, the test split restricted as in `kept`; reads the cases."""
  surveys, plan = survey(study)
  cases = split(study)
  whole = {n: sum(surveys[i].shape[plan.axis] for i in chosen) for n, chosen in cases.items()}
  return restricted(whole, fields, lambda: [_shown(study, i) for i in cases['test']])


def restricted(
  whole: Mapping[str, int], fields: Mapping[str, Any], shown: Callable[[], Iterable[Sequence[int]]]
) -> dict[str, int]:
  """Slices per split, of the test split those that are `kept`.

  shown: () -> the bits of all slices, test case by test case; asked for only where it matters.
  """
  if fields['slices'] == 'all' and not fields['slices_per_case']:
    return dict(whole)
  cases = list(shown())
  groups = [case for case, bits in enumerate(cases) for _ in bits]
  bits = [bits for case in cases for bits in case]
  chosen = kept(groups, bits, fields['slices'], fields['slices_per_case'])
  return {**whole, 'test': len(chosen)}


def depths(study: Study) -> list[int]:
  """Slices of every test volume."""
  surveys, plan = survey(study)
  return [surveys[i].shape[plan.axis] for i in split(study)['test']]


@functools.lru_cache(maxsize=1024)
def _shown(study, number):
  volume = prepare(study, number, survey(study)[1])
  return tuple(present(volume.labels, len(study.classes)))


def present(labels: np.ndarray, classes: int) -> list[int]:
  """Which foreground classes each slice [z, h, w] shows, as bits: bit 0 is class 1."""
  return [_bits(row) for row in _flags(labels, classes)]


def _flags(labels, classes):
  """[slices, classes - 1]: which foreground classes a slice shows."""
  return np.stack([(labels == label).any(axis=(1, 2)) for label in range(1, classes)], axis=1)


def _bits(flags):
  return int(sum(1 << place for place, flag in enumerate(flags) if flag))


def kept(
  groups: Sequence[int], present: Sequence[int], slices: str, per_case: int = 0
) -> list[int]:
  """Positions of the slices that are 'complete' (all foreground classes of their case), have
  some 'foreground', or 'all'; with `per_case` at most so many of each case, spread evenly."""
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
    chosen = {group: _spread(places, per_case) for group, places in chosen.items()}
  return sorted(i for places in chosen.values() for i in places)


def _spread(places, count):
  """`count` of the places, the middles of as many equal parts, or all if there are fewer."""
  size = len(places)
  if size <= count:
    return places
  return [places[(2 * part + 1) * size // (2 * count)] for part in range(count)]


def check_fields(fields: Mapping[str, Any]) -> None:
  if not 0 <= fields['fold'] < FOLDS:
    raise errors.UserError(f'data field fold must be 0 to {FOLDS - 1}, not {fields["fold"]}')
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

  patch: what the network sees. info: 'properties' (a `preprocess.Fingerprint`), 'classes',
  'modalities', 'cases' per split, 'patch' and 'loader_patch'.
  """
  loader = patches.loader_patch(patch) if fields['margin'] else tuple(patch)
  return viewed(source, fields, facts, patch=patch, loader=loader, seen=patch)._replace(
    info={
      **{name: facts[name] for name in ('properties', 'classes', 'modalities', 'cases')},
      'patch': list(patch),
      'loader_patch': list(loader),
    },
  )


def viewed(
  source,
  fields: Mapping[str, Any],
  facts: Mapping[str, Any],
  *,
  patch: Sequence[int],
  loader: Sequence[int],
  seen: Sequence[int],
  forced: float = patches.FORCED,
):
  """The `data.Source` of slices with those of the test split chosen, its sampling and its crop.

  patch, loader, forced: of training, see `patches.sampling`; seen: the centred patch of evaluation.
  """
  shown = facts['present']
  test = kept(source.test.groups, shown['test'], fields['slices'], fields['slices_per_case'])
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

"""Abdominal CT with four organs as 2D slices: what a real source and its phantom share.

Per subject: axial slices, HU clipped to a window, resampled in the plane, z-scored, then cut or
padded about the middle to a square. Chen et al. 2019 say only 'zero mean and unit standard
deviation'; without the window, metal and air would determine the deviation.

An example has 'image' [side, side, 1] (float32), 'labels' [side, side] (0 background, then
`ORGANS`), 'spacing' [3] (between slices, rows, columns, millimetres), 'slice', 'present' [4] (which
organs it shows), 'index', 'group' (the number of the subject by name) and 'name'.
"""

import abc
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from robustmed import errors
from robustmed.data import pipeline, store
from robustmed.data.decathlon import patches, preprocess, volumes
from robustmed.process import files

ORGANS = ('pancreas', 'kidneys', 'liver', 'spleen')
SPLITS = ('train', 'validation', 'test')
FORCED = 0.5  # share of the patches that are centred on an organ
FIELDS = {
  'side': 256,  # pixels of a slice
  'spacing': 1.5,  # millimetres in the plane
  'window': (-250.0, 400.0),  # HU
  'subjects': (60, 15, 75),  # train, validation, test; with fewer subjects, shares
  'split': '',  # a JSON file with three lists of names, in place of `subjects`
  'split_seed': 0,
  'slices': 'foreground',  # of the test split: those with an organ, 'complete' ones, or 'all'
  'slices_per_case': 0,  # of the test split: at most so many of a subject, evenly spaced; 0: all
  'patch': 0,  # side of the training patches; 0: whole slices
}
_BYTES, _ZLIB = tfds.features.Encoding.BYTES, tfds.features.Encoding.ZLIB


class Case(NamedTuple):
  """One subject. `read` returns HU [z, y, x, 1] and labels [z, y, x] in the order of `ORGANS`."""

  name: str
  depth: int  # slices
  read: Callable[[], preprocess.Volume]
  where: str  # the file to name in a message


class CtBuilder(store.Builder):
  """Builds those of `SPLITS` that have subjects, with all slices."""

  @abc.abstractmethod
  def cases(self) -> list[Case]:
    """Returns all subjects, sorted by name."""

  def check(self, shown: Mapping[str, int]) -> None:
    """Raises a `UserError` if the number of subjects that show an organ cannot be right."""

  def features(self):
    side, feature = self.fields['side'], tfds.features
    return feature.FeaturesDict(
      {
        'image': feature.Tensor(shape=(side, side, 1), dtype=np.float32, encoding=_BYTES),
        'labels': feature.Tensor(shape=(side, side), dtype=np.int8, encoding=_ZLIB),
        'spacing': feature.Tensor(shape=(3,), dtype=np.float32),
        'slice': feature.Scalar(dtype=np.int32),
        'present': feature.Tensor(shape=(len(ORGANS),), dtype=np.bool_),
        'group': feature.Scalar(dtype=np.int32),
        'index': feature.Scalar(dtype=np.int32),
        'name': feature.Text(),
      }
    )

  def splits(self):
    cases = {case.name: case for case in self.cases()}
    numbers = {name: number for number, name in enumerate(cases)}
    found = assign_splits(list(cases), self.fields)
    self.facts = {'cases': found, 'present': {name: [] for name in found}}
    self._shown = dict.fromkeys(ORGANS, 0)
    self._left = sum(map(len, found.values()))
    result, first = {}, 0
    for split, names in found.items():
      self.counts[f'{split}_subjects'] = len(names)
      chosen = [(numbers[name], cases[name]) for name in names]
      result[split] = self._examples(split, chosen, first)
      first += sum(case.depth for _, case in chosen)
    return result

  def _examples(self, split, chosen, first):
    index, shown = itertools.count(first), self.facts['present'][split]
    for number, case in chosen:
      volume = prepare(case, self.fields)
      bits = volumes.class_bits(volume.labels, len(ORGANS) + 1)  # bit i: ORGANS[i]
      for place, organ in enumerate(ORGANS):
        has = any(bit >> place & 1 for bit in bits)
        self._shown[organ] += has
        self.counts[f'subjects_without_{organ}'] += not has
      shown += bits
      for z, (image, labels) in enumerate(zip(volume.image, volume.labels, strict=True)):
        yield {
          'image': np.ascontiguousarray(image),
          'labels': np.ascontiguousarray(labels),
          'spacing': np.array(volume.spacing, np.float32),
          'slice': z,
          'present': np.array([bits[z] >> place & 1 for place in range(len(ORGANS))], bool),
          'group': number,
          'index': next(index),
          'name': f'{case.name}_{z:03d}',
        }
      self._left -= 1
      if not self._left:
        self.check(self._shown)


def assign_splits(names: Sequence[str], fields: Mapping[str, Any]) -> dict[str, list[str]]:
  """Returns the sorted names of every split: those of the file `split`, else by `split_seed`.

  With fewer names than `subjects` adds up to, its numbers are shares, and each split has at least
  one. Splits without subjects are absent.
  """
  if fields['split']:
    return _listed(pathlib.Path(fields['split']).expanduser(), names)
  wanted = np.array(fields['subjects'])
  used = wanted > 0
  if len(names) < used.sum():
    raise errors.UserError(
      f'{len(names)} subject(s) are too few for {int(used.sum())} splits; with test subjects alone '
      'set the data field subjects to (0, 0, 1)'
    )
  if len(names) < wanted.sum():
    shares = wanted / wanted.sum() * len(names)
    counts = np.maximum(np.floor(shares).astype(int), used)
    while counts.sum() > len(names):
      counts[np.argmax(counts)] -= 1
    while counts.sum() < len(names):
      counts[np.argmax(np.where(used, shares - counts, -np.inf))] += 1
    wanted = counts
  order = np.random.default_rng([fields['split_seed'] % 2**32, 0xAB]).permutation(len(names))
  ends = np.cumsum(wanted)
  return {
    split: sorted(names[i] for i in order[end - count : end])
    for split, count, end in zip(SPLITS, wanted.tolist(), ends.tolist(), strict=True)
    if count
  }


def _listed(path, names):
  if not files.present(path):
    raise errors.UserError(f'no split file {path}; it holds lists of subject names in JSON')
  found = files.read_json(path)
  lists = isinstance(found, dict) and set(found) <= set(SPLITS) and 'test' in found
  if not lists or not all(isinstance(part, list) and part for part in found.values()):
    raise errors.UserError(f'{path}: must hold lists of names under test, train and validation')
  listed = [name for part in found.values() for name in part]
  unknown = sorted(set(map(str, listed)) - set(names))
  if unknown or len(set(listed)) < len(listed):
    what = f'names {unknown[0]}, which is not there' if unknown else 'names a subject twice'
    raise errors.UserError(f'{path}: {what}; subjects are called like {names[0]}')
  return {split: sorted(found[split]) for split in SPLITS if split in found}


def prepare(case: Case, fields: Mapping[str, Any]) -> preprocess.Volume:
  """Returns a subject as z-scores [z, side, side, 1] and labels [z, side, side]."""
  volume = case.read()
  if len(volume.labels) != case.depth:
    raise ValueError(f'{case.where}: {len(volume.labels)} slices, but its depth is {case.depth}')
  low, high = fields['window']
  image = np.clip(volume.image, low, high)
  volume = preprocess.resample(volume._replace(image=image), (fields['spacing'],) * 2)
  if np.ptp(volume.image) == 0:
    raise errors.UserError(
      f'{case.where}: all voxels are {volume.image.flat[0]:g} within the window '
      f'({low:g}, {high:g}) HU; is this a CT in Hounsfield units?'
    )
  mean, deviation = volume.image.mean(dtype=np.float64), volume.image.std(dtype=np.float64)
  air = (low - mean) / (deviation + 1e-8)
  image = _square(preprocess.normalise(volume.image), fields['side'], air)
  return volume._replace(image=image, labels=_square(volume.labels, fields['side'], 0))


def _square(array, side, fill):
  """Returns [z, y, x, ...] cut or padded with `fill` about its middle to [z, side, side, ...]."""
  result = np.full((len(array), side, side, *array.shape[3:]), fill, array.dtype)
  source, target = [], []
  for size in array.shape[1:3]:
    first, used = max(0, (size - side) // 2), min(size, side)
    source.append(slice(first, first + used))
    target.append(slice((side - used) // 2, (side - used) // 2 + used))
  result[:, target[0], target[1]] = array[:, source[0], source[1]]
  return result


def check_fields(fields: Mapping[str, Any]) -> None:
  side, patch, window = fields['side'], fields['patch'], fields['window']
  if side < 16:
    raise errors.UserError(f'data field side must be at least 16, not {side}')
  if not 0 <= patch <= side:
    raise errors.UserError(f'data field patch must lie in [0, side={side}], not {patch}')
  if not 0 < fields['spacing'] < 100:
    raise errors.UserError(f'data field spacing must lie in (0, 100), not {fields["spacing"]}')
  if len(window) != 2 or not window[0] < window[1]:
    raise errors.UserError(f'data field window must be (low, high) in HU, not {window!r}')
  errors.lookup(dict.fromkeys(volumes.SLICES), fields['slices'], kind='choice of slices')
  if fields['slices_per_case'] < 0:
    raise errors.UserError(
      f'data field slices_per_case must be 0 (all) or more, not {fields["slices_per_case"]}'
    )
  subjects = fields['subjects']
  whole = all(isinstance(n, int) and n >= 0 for n in subjects)
  if len(subjects) != 3 or not whole or subjects[2] < 1:
    raise errors.UserError(
      f'data field subjects must be (train, validation, test), the last at least 1; got {subjects}'
    )


def key(fields: Mapping[str, Any]) -> list:
  """Returns all that the content depends on beside the subjects themselves."""
  names = ('side', 'spacing', 'window', 'subjects', 'split_seed')
  own = json.loads(json.dumps([fields[name] for name in names]))
  split = pathlib.Path(fields['split']).expanduser() if fields['split'] else None
  return [*own, files.read_text(split) if split and files.present(split) else '']


def sizes(cases: Sequence[Case], fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the slices per split; reads the test subjects if `slices` depends on their labels."""
  by_name = {case.name: case for case in cases}
  found = assign_splits(list(by_name), fields)
  whole = {split: sum(by_name[name].depth for name in names) for split, names in found.items()}
  labels = lambda name: prepare(by_name[name], fields).labels
  shown = lambda: [volumes.class_bits(labels(name), len(ORGANS) + 1) for name in found['test']]
  return volumes.count_selected({'train': 0, **whole}, fields, shown)


def depths(cases: Sequence[Case], fields: Mapping[str, Any]) -> list[int]:
  """Returns the slices of every test subject."""
  by_name = {case.name: case for case in cases}
  return [by_name[name].depth for name in assign_splits(list(by_name), fields)['test']]


def windows(fields: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
  """Returns the size of training patches, and that of evaluation."""
  return (fields['patch'] or fields['side'],) * 2, (fields['side'],) * 2


def arrange(source, fields: Mapping[str, Any], facts: Mapping[str, Any]):
  """Returns the `data.Source` with its test slices chosen and the sampling for a segmenter."""
  patch, seen = windows(fields)
  found = volumes.with_sampling(
    source, fields, facts, patch=patch, loader=patch, seen=seen, forced=FORCED
  )
  info = {'classes': ['background', *ORGANS], 'cases': facts['cases'], 'patch': list(patch)}
  return found._replace(info=info)


def slices_with_organs(source, split: str) -> np.ndarray:
  """Returns the positions of the slices of a split that show an organ."""
  folder = pathlib.Path(source.info['folder'])
  shown = np.flatnonzero(store.facts(folder)['present'].get(split, ()))
  if not len(shown):
    raise errors.UserError(f'no {split} slice in {folder} shows an organ')
  return shown


def whole_slice_sampling(source) -> pipeline.Sampling:
  """Returns the sampling of whole slices that show an organ; each pass is a new permutation."""
  shown = slices_with_organs(source, 'train')
  side = source.train[0]['labels'].shape

  def choose(draw, *, seed, batch_size, size):
    del size
    place, params = pipeline.shuffled(draw, seed=seed, batch_size=batch_size, size=len(shown))
    return int(shown[place]), params

  cut = patches.centred(side)
  return pipeline.Sampling(choose, lambda example, params: cut(example))

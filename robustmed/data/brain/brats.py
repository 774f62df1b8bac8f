"""Brain tumours in MR (BraTS 2017, MSD Task01 and relatives), ready for the networks.

`dir` holds one of the layouts of `brats_files`; `layout` '' detects which. Of each case:

1. N4 bias correction of the series (`n4`: 'all', 'but_flair', 'none'), fitted on every
   `n4_shrink`-th voxel with at most `n4_iterations` iterations on each of four levels; the fields
   are cached under `cache_dir`, and cases are prepared in parallel on `workers` threads (0: all
   cores);
2. z-score over the brain, clipped at 5, scaled to [0, 1] per case and series; background is 0;
3. crop to the brain, resize to a cube of `side` voxels: images with `order` (1 linear, 3 cubic),
   smoothed if they shrink, labels by the nearest voxel.

The brain is where any series is not 0, or the layout's own mask. `test_share` of the cases is the
test set, drawn with `split_seed` among the high-grade and the low-grade ones separately (all 285
cases of 2017: 42 + 15, which agrees with the published P values of Liu et al. 2021); 1 makes all of
them test cases. Cases without any tumour are kept and counted.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data import store
from robustmed.data.brain import brains, brats_files, n4
from robustmed.data.files import cubes, exams, nifti, threads

DEFAULTS = {
  'dir': '',
  'layout': '',
  'pattern': '',
  'series': (),
  'truth': '',
  'exclude': (),
  'side': 128,
  'planes': 'volume',
  'slice_step': 1,
  'order': 1,
  'n4': 'all',
  'n4_shrink': 4,
  'n4_iterations': 50,
  'test_share': 0.2,
  'split_seed': 0,
  'workers': 0,
}
NOMINAL = {'train': 228, 'test': 57}  # cases of BraTS 2017
N4 = ('all', 'but_flair', 'none')


class Prepared(NamedTuple):
  """One preprocessed case."""

  image: np.ndarray  # [side, side, side, c] float32 in [0, 1]
  labels: np.ndarray  # [side, side, side] 0 ... 3
  geometry: nifti.Geometry


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the examples per split; without the folder, those of BraTS 2017."""
  count = brains.per_case(fields)
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return {name: number * count for name, number in NOMINAL.items()}
  return {name: len(cases) * count for name, cases in split(fields).items()}


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of cases of the test split; without the folder, that of BraTS 2017."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return NOMINAL['test']
  return len(split(fields)['test'])


def features(fields: Mapping[str, Any]):
  """Returns the features of the published data set's cases, without the folder."""
  return brains.features(fields)


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, and all fields but `workers`."""
  check_fields(fields)
  files = {
    name: [[case.name, exams.stamp(case.paths())] for case in cases]
    for name, cases in split(fields).items()
  }
  kept = {name: fields[name] for name in DEFAULTS if name not in ('dir', 'workers')}
  return {**kept, 'files': files}


class Brats(store.Builder):
  """Builds 'train' and 'test' from the folder that the module's docstring describes."""

  def features(self):
    return brains.features(self.fields, channels=brats_files.channels(self.fields))

  def splits(self):
    found = brats_files.find(self.fields)
    number = {case.name: place for place, case in enumerate(found.cases)}
    rows = split(self.fields)
    for name, cases in rows.items():
      for case in cases:
        self.counts[f'{name}_{case.grade.lower() or "cases"}'] += 1
    return {
      name: self._examples(cases, found.layout, number) for name, cases in rows.items() if cases
    }

  def _examples(self, cases, layout, number) -> Iterator[dict[str, Any]]:
    ready = threads.map_in_order(
      lambda case: prepare(case, layout, self.fields),
      cases,
      name='prepare cases',
      workers=self.fields['workers'],
    )
    for case, one in zip(cases, ready):
      self.counts['cases_without_tumour'] += not one.labels.any()
      self.counts['cases_without_enhancing'] += not (one.labels == 3).any()
      yield from brains.examples(
        one.image,
        one.labels,
        fields=self.fields,
        geometry=one.geometry,
        case=number[case.name],
        name=case.name,
      )


def check_fields(fields: Mapping[str, Any]) -> None:
  brains.check_fields(fields)
  errors.lookup(dict.fromkeys(N4), fields['n4'], kind='data field n4')
  errors.lookup({1: 'linear', 3: 'cubic'}, fields['order'], kind='data field order')
  n4.check(_settings(fields))
  if not 0 < fields['test_share'] <= 1:
    raise errors.UserError(f'data field test_share must lie in (0, 1], not {fields["test_share"]}')
  if fields['workers'] < 0:
    raise errors.UserError(f'data field workers must be at least 0, not {fields["workers"]}')


def split(fields: Mapping[str, Any]) -> dict[str, tuple[brats_files.Case, ...]]:
  """Returns the cases of 'train' and 'test', each sorted by name, stratified by grade."""
  cases, share = brats_files.find(fields).cases, fields['test_share']
  if len(cases) < 2 and share < 1:
    raise errors.UserError(
      f'{fields["dir"]}: {len(cases)} case cannot be split; add cases, or set data field '
      'test_share to 1 to use all as test data'
    )
  test, shuffled = set(), []
  for stratum, grade in enumerate(sorted({case.grade for case in cases})):
    names = sorted(case.name for case in cases if case.grade == grade)
    order = np.random.default_rng([fields['split_seed'], stratum]).permutation(len(names))
    names = [names[place] for place in order]
    test |= set(names[: int(share * len(names) + 0.5)])
    shuffled.append(names)
  longest = max(shuffled, key=len)
  if not test:
    test.add(longest[0])
  if len(test) == len(cases) and share < 1:
    test.remove(longest[-1])
  return {
    'train': tuple(case for case in cases if case.name not in test),
    'test': tuple(case for case in cases if case.name in test),
  }


def prepare(
  case: brats_files.Case, layout: brats_files.Layout, fields: Mapping[str, Any]
) -> Prepared:
  """Reads one case and applies the three steps of the module's docstring."""
  affine, grid, series, labels, brain = _read(case, layout)
  folder = store.cache_root(fields['cache_dir']) / 'n4'
  side = (fields['side'],) * 3
  box = cubes.foreground_box(brain)
  cropped = cubes.crop(brain, box)
  inside = cubes.resize(cropped, side, order=0)
  channels = []
  for name, path, channel, volume in zip(
    layout.series, case.series, case.channels or [0] * len(series), series
  ):
    flair = 'flair' in name.lower()
    mask = cropped if layout.corrected else cropped & (cubes.crop(volume, box) != 0)
    if not mask.any():
      raise errors.UserError(f'{path}: series {name} is 0 everywhere; exclude the case')
    if not layout.corrected and (
      fields['n4'] == 'all' or (fields['n4'] == 'but_flair' and not flair)
    ):
      key = [*exams.stamp([path]), channel]
      knots = n4.cached_log_field(volume, _settings(fields), folder=folder, key=key)
      volume = n4.correct(volume, knots)
    volume = cubes.standardise(cubes.crop(volume, box), mask)
    small = cubes.resize(volume, side, order=fields['order'])
    channels.append(np.where(inside, np.clip(small, 0, 1), 0))
  labels = cubes.resize(cubes.crop(labels, box), side, order=0)
  return Prepared(np.stack(channels, axis=-1), labels, nifti.Geometry(affine, grid, box))


def _read(case, layout):
  """Returns (affine, grid, series [d, h, w] each, labels, brain) of one case, all checked."""
  affine = grid = first = None
  volumes = {}
  for path in case.paths():
    if path == case.truth:
      volume = nifti.labels(path)
    else:
      volume = nifti.read(path, axes=4 if case.channels and path in case.series else 3)
    if grid is None:
      first, affine, grid = path, volume.affine, volume.array.shape[:3]
    if volume.array.shape[:3] != grid:
      raise errors.UserError(
        f'{path}: has shape {list(volume.array.shape[:3])}, but {first.name} has {list(grid)}'
      )
    if not np.allclose(volume.affine, affine, atol=0.5 * nifti.spacing(affine).min()):
      raise errors.UserError(f'{path}: lies elsewhere in space (affine) than {first.name}')
    volumes[path] = nifti.oriented(volume)
  if case.channels:
    stack = volumes[case.series[0]]
    if stack.shape[-1] <= max(case.channels):
      raise errors.UserError(
        f'{case.series[0]}: has {stack.shape[-1]} series, dataset.json lists more'
      )
    series = [stack[..., channel] for channel in case.channels]
  else:
    series = [volumes[path] for path in case.series]
  labels = _remapped(volumes[case.truth], layout.classes, case.truth)
  if case.brain is not None:
    brain = volumes[case.brain] > 0.5
  else:
    brain = np.any([volume != 0 for volume in series], axis=0)
  return affine, np.array(grid), series, labels, brain


def _remapped(labels, classes, path):
  table = np.full(int(labels.max()) + 1, -1, np.int32)
  for label, ours in classes.items():
    table[label : label + 1] = ours  # empty for labels above the highest of the case
  ours = table[labels]
  if ours.min() < 0:
    raise errors.UserError(
      f'{path}: has label {labels[ours < 0].min()}, but only '
      f'{", ".join(map(str, sorted(classes)))} are known in this layout; check data field layout'
    )
  return ours


def _settings(fields):
  return n4.Settings(fields['n4_shrink'], fields['n4_iterations'])


Builder = Brats

"""What the user's folder decides of a training, and a line for every choice that was left open."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from robustmed import data, errors, types
from robustmed.data.labelled import phantom, study, units
from robustmed.models import nnunet_planner
from robustmed.runs import experiment

MOST_POOLINGS = 4
_BATCH = {'segmentation': 16, 'landmarks': 8, 'boxes': 12, 'classes': 16}
_STEP = {
  'landmarks': 16,
  'boxes': 32,
  'classes': 16,
}  # of which the sides of such images are multiples
_SMALLEST = 64
_MOST_VOXELS = {2: 16384, 3: 65536}
_MOST_STRATA = 16  # of AMAT's thresholds
_UNEQUAL = 1.1  # spacings that differ by more are resampled to their median
_LARGEST_WINDOW = 1.6  # times the voxels of the patch that an image may have to be trained whole


class Choices(NamedTuple):
  fields: Mapping[str, Any]  # of `data.load`
  study: study.Study
  units: units.Units
  strides: tuple[tuple[int, ...], ...]  # of the network's poolings
  patch: tuple[int, ...]
  lines: tuple[str, ...]


def make(config: ml_collections.ConfigDict) -> Choices:
  """Returns the choices for config.data; reads the files of a folder the first time."""
  fields = config.data.to_dict()
  most = fields.pop('most_voxels')
  if fields['source'] == 'auto':
    fields['source'] = 'labelled' if fields['dir'] else 'phantom_labelled'
  fields = data.fields_of(data.source_config(fields))
  found, lines = _study(fields), []
  if found.folder.kind != 'segmentation':
    fields['height'], fields['width'] = _size(found, fields, most)
    found = _study(fields)
    made, size = units.of(found), _sides(found.window)
    line = f'images are resized to {size} (data.height, data.width, data.most_voxels)'
    lines = [*study.lines(found), line, _levels(made)]
    return Choices(fields, found, made, (), found.window, tuple(lines))
  fields['axes'] = min(fields['axes'] or 2, found.spatial)
  found = _study(fields)
  if not fields['spacing']:
    fields['spacing'], line = _spacing(found, most or _MOST_VOXELS[fields['axes']])
    lines += [line] if line else []
  found = _study(fields)
  shapes = np.array([grid.shape for grid in found.grids])
  median = tuple(int(n) for n in np.median(shapes, axis=0))
  apart = np.median([grid.spacing for grid in found.grids], axis=0)
  strides, patch = _poolings(median, apart)
  if not strides:
    raise errors.UserError(
      f'{fields["dir"]}: images of {_sides(median)} are too small for a network with poolings; at '
      f'least {2 * nnunet_planner.MIN_EDGE} pixels a side are needed'
    )
  if fields['patch']:
    strides, patch = _given_patch(tuple(fields['patch']), apart)
  else:
    window = _study({**fields, 'multiple': _multiple(strides)}).window
    if math.prod(window) <= _LARGEST_WINDOW * math.prod(patch):
      strides, patch = _poolings(window, apart)
  fields |= {'patch': patch, 'multiple': _multiple(strides)}
  found = _study(fields)
  made = units.of(found)
  lines.append(
    f'patches of {_sides(patch)} in training (data.patch), {_sides(found.window)} in evaluation'
  )
  lines.append(_levels(made))
  return Choices(fields, found, made, strides, patch, (*study.lines(found), *lines))


def _levels(made) -> str:
  return f'levels are in: {made.words}; {made.detail} (data.intensity)'


def _study(fields) -> study.Study:
  make = phantom.make_study if fields['name'] == 'phantom_labelled' else study.make
  return make(fields)


def _spacing(found, most):
  """(the spacing to resample to, () for none, and what to say of it)."""
  apart = np.array([grid.spacing for grid in found.grids])
  target, shapes = np.median(apart, axis=0), np.array([grid.shape for grid in found.grids])
  unequal = (apart.max(axis=0) > _UNEQUAL * apart.min(axis=0)).any()
  voxels = np.prod(np.median(shapes * apart / target, axis=0))
  if voxels <= most and not unequal:
    return (), ''
  why = 'to the median spacing, since cases differ' if unequal else ''
  if voxels > most:
    target = target * (voxels / most) ** (1 / len(target))
    why = f'so that an image has about {most} pixels or voxels (data.most_voxels)'
  spacing = tuple(float(f'{value:.4g}') for value in target)
  return spacing, f'resampled {why}'


def _size(found, fields, most) -> tuple[int, int]:
  """(height, width) of images with boxes or landmarks: the fields, else the shrunk median."""
  median = np.median([one.shape for one in found.surveys], axis=0)
  shrink = min(1.0, math.sqrt((most or _MOST_VOXELS[2]) / median.prod()))
  step = _STEP.get(found.folder.kind, 1)
  sides = [max(_SMALLEST, step * round(side * shrink / step)) for side in median]
  return tuple(fields[name] or int(n) for name, n in zip(('height', 'width'), sides))


def _poolings(size, spacing):
  """(strides, patch) of a network for images of `size`; the strides follow from the patch alone, so
  that a folder of other sizes has the same network where it has the same patch."""
  planned = lambda sides: nnunet_planner.planned(sides, spacing=spacing, most=MOST_POOLINGS)
  patch = tuple(size)
  while (found := planned(patch))[1] != patch:
    patch = found[1]
  return found


def _given_patch(patch, spacing):
  if len(patch) != len(spacing):
    raise errors.UserError(f'data field patch {patch} must have {len(spacing)} sides')
  strides, padded = _poolings(patch, spacing)
  if padded != patch or not strides:
    raise errors.UserError(f'data field patch {patch}: its poolings need {_sides(padded)}')
  return strides, patch


def _multiple(strides) -> tuple[int, ...]:
  return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def _sides(values: Sequence[float]) -> str:
  return ' x '.join(f'{value:g}' for value in values)


def read(
  config: ml_collections.ConfigDict, chosen: Choices, task: types.Task
) -> ml_collections.ConfigDict:
  """Returns the configuration with all that the data and the task decide filled in.

  Losses that couple the examples of a batch are trained on where the task has any; AMAT's
  thresholds are those of images that show the same classes, where these are few.
  """
  config = experiment.editable(config)
  if not config.train.batch_size:
    config.train.batch_size = 2 if len(chosen.patch) == 3 else _BATCH[chosen.study.folder.kind]
  nodes = [arm.defense.attack for arm in config.arms.values() if 'attack' in arm.defense]
  for node in (*nodes, *config.evaluate.attacks.values()):
    if chosen.units.bounds is not None and node.get('bounds') is None:
      node.bounds = chosen.units.bounds
  for arm in config.arms.values():
    if task.coupled is None and 'coupled' in arm.defense:
      arm.defense.coupled = False
    if arm.defense.name == 'noise' and chosen.units.bounds is not None:
      arm.defense.bounds = chosen.units.bounds
    if arm.defense.name == 'amat':
      few = task.strata is not None and len(task.strata.names) <= _MOST_STRATA
      arm.defense.strata = few
      arm.defense.epoch_steps = max(1, config.train.optimisers.main.steps_per_epoch)
  return config

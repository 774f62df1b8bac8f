"""Label maps: networks of any size and rank, one row of results per case."""

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd

from robustmed import data, errors, tasks, types
from robustmed.attacks.stored import lattice
from robustmed.data.decathlon import nnunet_augment
from robustmed.data.labelled import augment, sampling, writing
from robustmed.evaluation import examples, grid
from robustmed.networks import checkpoint
from robustmed.own_data import choices
from robustmed.report import spec
from robustmed.runs import slice_examples

METRIC, HIGHER_IS_BETTER = 'DICE', True
MEAN_OF_CLASSES = (
  'Dice is per case, and its mean is over the classes that the labels of the case show; a case '
  'without any counts 1 where nothing is found, else 0.'
)
_KEYS = ['arm', 'attack', 'eps', 'seed', '_case']
_COUNTS = ('_tp', '_fp', '_fn')


def names(chosen: choices.Choices) -> tuple[str, ...]:
  """Returns the names of the columns' classes or regions, letters and digits alone."""
  found = chosen.study.folder.regions or chosen.study.classes[1:]
  safe = [re.sub(r'[^0-9A-Za-z]+', '_', name).strip('_') or 'class' for name in found]
  return tuple(f'{n}_{k}' if safe.count(n) > 1 else n for k, n in enumerate(safe, start=1))


def make_task(config: ml_collections.ConfigDict, chosen: choices.Choices) -> types.Task:
  """Returns the network of config.model on patches; it sees images within `Units.clip`."""
  found = chosen.study
  regions = dict(zip(names(chosen), found.regions.values())) if found.regions else None
  task = tasks.TASKS['segmentation'](
    _module(config, chosen),
    image_shape=(*chosen.patch, found.channels),
    classes=names(chosen) if regions is None else found.classes[1:],
    regions=regions,
    units=chosen.units.words,
  )
  return with_case(task if chosen.units.clip is None else _clipped(task, *chosen.units.clip))


def _module(config, chosen):
  return checkpoint.module_of(_module_fields(config, chosen))


def _module_fields(config, chosen) -> dict[str, Any]:
  """Name and arguments of the network, as plain data."""
  options = config.model.to_dict()
  options['name'] = 'nnunet' if options['name'] == 'auto' else options['name']
  errors.lookup(dict.fromkeys(checkpoint.SEGMENTING), options['name'], kind='segmentation network')
  if options['name'] == 'nnunet':
    options['strides'] = chosen.strides
  else:
    options['poolings'] = _square(chosen)
  return {
    **options,
    'num_classes': len(chosen.study.classes),
    'channels': chosen.study.channels,
  }


def described(config: ml_collections.ConfigDict, chosen: choices.Choices) -> dict[str, Any]:
  """Returns the network and what it was given, for cards: `networks.load` reads them."""
  made, number = chosen.units, lambda values: ','.join(f'{value:.9g}' for value in values)
  first, last = made.shift[0], made.shift[0] + made.scale[0]
  normalised = {
    'stored': 'none',
    'range': f'scale:{number(last)}',
    'ct': f'window:{number(first)}:{number(last)}',
    'case': 'case',
    'zscore': 'case_zscore',
  }
  return {
    'module': _module_fields(config, chosen),
    'input': {'spacing': list(chosen.fields['spacing']), 'normalise': normalised[made.name]},
    'output': {'kind': 'segmentation', 'classes': list(chosen.study.classes)},
  }


def _square(chosen) -> int:
  """How often all sides of the patch and the window can be halved together."""
  sides = (*chosen.patch, *chosen.study.window)
  count = 0
  while count < len(chosen.strides) and all(n % 2 ** (count + 1) == 0 for n in sides):
    count += 1
  if not count:
    raise errors.UserError(
      f'the network unet needs even sides, the patches have {chosen.patch}; take model.name=nnunet'
    )
  return count


def _clipped(task, low, high):
  inside = lambda image: jnp.clip(image, low, high)
  return task._replace(
    predict=lambda variables, image: task.predict(variables, inside(image)),
    forward=lambda variables, image, key: task.forward(variables, inside(image), key),
  )


def with_case(task):
  """Returns the task with the number of the case among the columns, which `cases` needs."""

  def metrics(outputs, batch):
    number = batch['target']['case'].astype(jnp.float32)
    return {**task.metrics(outputs, batch), '_case': number}

  return task._replace(metrics=metrics)


def cases(chosen: choices.Choices, rows: pd.DataFrame) -> pd.DataFrame:
  """Returns one row per network, cell and case from those of its slices.

  Dice is that of all slices together, nan for a class that neither truth nor prediction has. Its
  mean is over the classes that the truth has, which are the same under every attack; a case without
  any has 1 where nothing is predicted, else 0. The distance is the largest, all else the mean; the
  index of a row is the number of the case.
  """
  groups = rows.groupby(_KEYS, sort=True)
  made = groups.mean(numeric_only=True)
  made['_distance'] = groups['_distance'].max()
  counts = [name for name in rows.columns if name.startswith(_COUNTS)]
  made[counts] = groups[counts].sum()
  classes = [f'DICE_{name}' for name in names(chosen)]  # columns are sorted, counts are not
  shown, wrong = [], 0
  for number, name in enumerate(classes, start=1):
    tp, fp, fn = (made[f'{kind}{number}'] for kind in _COUNTS)
    made[name] = (2 * tp / (2 * tp + fp + fn).replace(0, np.nan)).astype(np.float64)
    shown.append(made[name].where(tp + fn > 0))
    wrong = wrong + fp
  made[METRIC] = pd.concat(shown, axis=1).mean(axis=1).fillna((wrong == 0).astype(np.float64))
  made = made.reset_index()
  made['index'] = made['_case'].astype(np.int64)
  made['group'] = made['group'].astype(np.int64)
  keys = list(grid.KEYS)
  return made[[*keys, *(name for name in rows.columns if name not in keys)]]


def load(config: ml_collections.ConfigDict, chosen: choices.Choices) -> data.Source:
  del config
  return data.load(chosen.fields)


def make_augment(config: ml_collections.ConfigDict, chosen: choices.Choices):
  """Returns source -> augmentation on the device, one function for all arms."""
  options = config.augment.to_dict()
  name, whole = options.pop('name'), chosen.study.folder.ignore is None
  if name == 'auto':
    name = 'nnunet' if len(chosen.patch) == 2 and whole else 'plain'
  makers = {
    'nnunet': functools.partial(_nnunet, chosen),
    'plain': lambda mirror, max_angle: augment.make(mirror=mirror),
    'none': lambda mirror, max_angle: None,
  }
  made = errors.lookup(makers, name, kind='augmentation')(**options)
  return lambda source: made


def _nnunet(chosen, mirror, max_angle):
  if len(chosen.patch) != 2 or chosen.study.folder.ignore is not None:
    raise errors.UserError(
      'the augmentation nnunet is for 2D images without an ignored label; take augment.name=plain'
    )
  return nnunet_augment.make(
    patch=chosen.patch,
    num_classes=len(chosen.study.classes),
    max_angle=max_angle,
    probabilities={'mirror': mirror},
  )


def pictures(found: examples.Example) -> dict[str, np.ndarray]:
  """Returns the outlines of stacked examples for the report; the index is that of the case."""
  return {
    **slice_examples.pictures(found),
    'labels_true': np.maximum(found.example['target']['labels'], 0),
    'labels_clean': np.argmax(found.clean['head0'], axis=-1),
    'labels_adv': np.argmax(found.attacked['head0'], axis=-1),
    'index': found.example['target']['case'],
  }


def lattice_of(chosen: choices.Choices, facts: Sequence[Mapping[str, Any]], crop=None):
  """Returns (example) -> the images that its file holds, None for floats and resampled images.

  crop: example -> what the network sees of it, by default its middle, padded where that is small.
  """
  crop = crop or sampling.centred(chosen.study.window)

  def of(example):
    target = example['target']
    case, grid = facts[int(target['case'])], chosen.study.grids[int(target['case'])]
    kind, (slope, intercept) = np.dtype(case['dtype']), case['rescale']
    if kind.kind not in 'iu' or tuple(case['shape']) != tuple(grid.whole):
      return None
    shift, scale = np.asarray(target['units'], np.float64)
    ends, shape = np.iinfo(kind), grid.shape

    def read(image):
      held = {'image': sampling.uncut(image, shape), 'labels': np.zeros(shape, np.int32)}
      return crop({**held, 'case': target['case'], 'units': target['units']})['image']

    padded = any(have < want for have, want in zip(shape, target['labels'].shape, strict=True))
    return lattice.Lattice(
      (intercept - shift) / scale, slope / scale, ends.min, ends.max, read if padded else None
    )

  return of


def write_example(
  chosen: choices.Choices,
  facts: Sequence[Mapping[str, Any]],
  folder: pathlib.Path,
  image: np.ndarray,
  example: Mapping[str, Any],
  *,
  whole: np.ndarray | None = None,
) -> None:
  """Writes the attacked image and the labels as NIfTI on the grid of the case's own file.

  whole: the numbers of the image in that file, which are written in its type. Without them values
  are those of the file's units, rounded to its integer type. A slice of a volume lies where it lies
  in the volume.
  """
  target, found = example['target'], chosen.study
  number, place = int(target['case']), int(target['slice'])
  case, name = facts[number], facts[number]['name']
  shape = found.grids[number].shape
  if whole is None:
    stored = sampling.uncut(image * target['units'][1] + target['units'][0], shape)
  else:
    stored = sampling.uncut(whole, shape, fill=writing.number(0, case))
  labels = sampling.uncut(np.maximum(target['labels'], 0), shape)
  if found.axes < found.spatial:
    case, name = writing.slice_of(case, found.axis, place), f'{name}_{place:03d}'
    stored, labels = (np.expand_dims(array, found.axis) for array in (stored, labels))
  folder = pathlib.Path(folder)
  write = writing.image if whole is None else writing.numbers
  write(folder / f'{name}.nii.gz', stored, case)
  writing.labels(folder / f'{name}_label.nii.gz', labels, case, values=found.values)


def panels(chosen: choices.Choices) -> tuple[spec.Panel, ...]:
  """Returns the curves of the report: the mean Dice, and of several classes that of each."""
  found = [spec.Panel(METRIC, 'pgd', True, 'Dice (mean of classes, per case)', (0.0, 1.0))]
  if len(names(chosen)) > 1:
    shown = [f'DICE_{name}' for name in names(chosen)]
    found += [spec.Panel(name, 'pgd', True, name.replace('_', ' '), (0.0, 1.0)) for name in shown]
  return tuple(found)


def notes(chosen: choices.Choices) -> tuple[str, ...]:
  """Returns what the page says of how Dice was measured."""
  found = chosen.study
  kept = [MEAN_OF_CLASSES]
  if chosen.fields['spacing']:
    kept.append('It is measured on the resampled grid, not on that of the files.')
  if {grid.shape for grid in found.grids} != {found.window}:
    kept.append('Images are padded to one size, and the border is attacked with them.')
  if found.axes < found.spatial and chosen.fields['slices_per_case']:
    most = chosen.fields['slices_per_case']
    kept.append(f'Of a volume at most {most} slices with foreground are attacked and measured.')
  return tuple(kept)

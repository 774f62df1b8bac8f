"""Pieces that the disk-shape experiments share: task, data, pictures, files."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import scipy.special

from robustmed import data, errors, models, tasks, types
from robustmed.data import augment
from robustmed.data.spine import lumbar_disks, shapes
from robustmed.evaluation import examples
from robustmed.runs import preparation

CONTOUR_LAYERS = ('head_dense1', 'head')  # of disk_shape, of disk_shape_lite


def make_task(config: ml_collections.ConfigDict, differs: Mapping[str, Any] = {}) -> types.Task:
  """The task of config.model, with the fields of `differs` on top, and config.data.side."""
  options = {**config.model.to_dict(), **differs}
  for name, value in (('model.width', options.get('width', 1)), ('seeds', config.get('seeds', 1))):
    if value <= 0:
      raise errors.UserError(f'{name} must be above 0, not {value}')
  for name in ('landmark_stride', 'grid_stride'):
    if config.augment.get(name, 1) < 1:
      raise errors.UserError(f'augment.{name} must be at least 1, not {config.augment[name]}')
  make = errors.lookup(models.MODELS, options.pop('name'), kind='model')
  dtype = errors.lookup(
    {'float32': None, 'bfloat16': jnp.bfloat16}, options.pop('dtype'), kind='model dtype'
  )
  return tasks.TASKS['shape'](
    make(side=config.data.side, dtype=dtype, **options), side=config.data.side
  )


def source_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of config.data that the chosen source knows."""
  return data.source_config(config.data.to_dict())


def make_augment(config: ml_collections.ConfigDict, differs: Mapping[str, Any] = {}):
  """source -> on-device drawing of virtual disks from a shape model of its training contours.

  The fields of `differs` replace those of config.augment. All arms that share what is returned
  get the same function, which is then compiled once.
  """
  options = {**config.augment.to_dict(), **differs}
  made = []

  def build(source):
    if options['components'] and not made:
      made.append(
        augment.virtual_disk(
          shape_model(source, options['components']),
          side=config.data.side,
          landmark_stride=options['landmark_stride'],
          grid_stride=options['grid_stride'],
        )
      )
    return made[0] if made else None

  return build


def shape_model(source, components: int) -> shapes.ShapeModel:
  return shapes.fit(source.train.stack('contour'), components)


def from_mean_contour(finished: preparation.Finished):
  """A map of random variables to those of a network whose contour is the training contours' mean.

  The contour's last layer gets this bias and no weight on its inputs.
  """
  mean = finished.source.train.stack('contour').mean(0) - finished.config.data.side / 2

  def start(variables):
    params = dict(variables['params'])
    name = next((name for name in CONTOUR_LAYERS if name in params), '')
    if not name:
      raise errors.UserError('the network has no known contour layer; set mean_contour=False')
    layer = params[name]
    params[name] = {
      'kernel': jnp.zeros_like(layer['kernel']),
      'bias': jnp.asarray(mean.reshape(-1), layer['bias'].dtype),
    }
    return {**variables, 'params': params}

  return start


def write_example(folder: pathlib.Path, image: np.ndarray, example: Mapping[str, Any]) -> None:
  """An .npz that the lumbar_disks source reads: patient and disk in its name, img and shape."""
  lumbar_disks.write(
    pathlib.Path(folder),
    image[..., 0],
    example['target']['contour'],
    patient=int(example['group']),
    disk=int(example['index']),
  )


def pictures(found: examples.Example) -> dict[str, np.ndarray]:
  """Contours and masks of stacked examples, true and predicted, for the report's pictures."""
  probability = lambda outputs: scipy.special.expit(outputs['segmentation'])[..., 0]
  return {
    'contour_true': found.example['target']['contour'],
    'contour_clean': found.clean['contour'],
    'contour_adv': found.attacked['contour'],
    'mask_true': found.example['target']['mask'][..., 0],
    'seg_clean': probability(found.clean),
    'seg_adv': probability(found.attacked),
  }

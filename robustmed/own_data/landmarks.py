"""Landmarks: the Multi-Task U-Net on the images of a table."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from robustmed import data, models, tasks, types
from robustmed.metrics import landmarks as metrics
from robustmed.own_data import choices, photos
from robustmed.report import spec

METRIC, HIGHER_IS_BETTER = 'MRE', False
cases, pictures = photos.cases, photos.pictures


def make_task(config: ml_collections.ConfigDict, chosen: choices.Choices) -> types.Task:
  """Returns the network on images in [0, 1], which it sees in [-1, 1]."""
  dtype = {'float32': None, 'bfloat16': jnp.bfloat16}[config.model.dtype]
  module = models.MODELS['landmark_unet'](
    landmarks=len(chosen.study.classes), width=config.model.width, dtype=dtype
  )
  shape = (*chosen.study.window, 3)
  task = tasks.TASKS['landmarks'](module, image_shape=shape, units=chosen.units.words)
  return task._replace(
    predict=lambda variables, image: task.predict(variables, 2 * image - 1),
    forward=lambda variables, image, key: task.forward(variables, 2 * image - 1, key),
  )


def load(config: ml_collections.ConfigDict, chosen: choices.Choices) -> data.Source:
  del config
  return data.load(chosen.fields)


def make_augment(config: ml_collections.ConfigDict, chosen: choices.Choices):
  """Returns source -> None: images with landmarks are not augmented."""
  del config, chosen
  return lambda source: None


def lattice_of(chosen: choices.Choices, facts: Sequence[Mapping[str, Any]]):
  """Returns (example) -> the images that its file holds."""
  del chosen, facts
  return photos.lattice_of


def write_example(
  chosen: choices.Choices,
  facts: Sequence[Mapping[str, Any]],
  folder: pathlib.Path,
  image: np.ndarray,
  example: Mapping[str, Any],
  *,
  whole: np.ndarray | None = None,
) -> None:
  """Writes NAME.png, 8 bits, and NAME.csv, its landmarks x,y in pixels of that picture."""
  del chosen
  found = [f'{x:.2f},{y:.2f}' for x, y in example['target']['landmarks']]
  photos.write(folder, image, example, facts, ['x,y', *found], whole)


def panels(chosen: choices.Choices) -> tuple[spec.Panel, ...]:
  """Returns the curves of the report."""
  unit = unit_of(chosen)
  shares = [f'SDR_{limit:g}mm' for limit in metrics.SDR_MM]
  return (
    spec.Panel(METRIC, 'pgd', False, f'mean radial error ({unit})'),
    *(
      spec.Panel(name, 'pgd', True, f'share closer than {limit:g} {unit}', (0.0, 1.0))
      for name, limit in zip(shares, metrics.SDR_MM)
    ),
  )


def unit_of(chosen: choices.Choices) -> str:
  known = chosen.fields['mm_per_pixel'] or any(one.spacing for one in chosen.study.surveys)
  return 'mm' if known else 'pixels'


def notes(chosen: choices.Choices) -> tuple[str, ...]:
  return (f'Distances are in {unit_of(chosen)} (data.mm_per_pixel), whatever a column is called.',)

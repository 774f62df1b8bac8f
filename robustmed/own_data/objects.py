"""Boxes: YOLOv5 on mosaics of the images."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from robustmed import data, models, tasks, types
from robustmed.data.cells import mosaic
from robustmed.own_data import choices, photos
from robustmed.report import spec

METRIC, HIGHER_IS_BETTER = 'IOU', True
MOST_DETECTIONS = 100
cases, pictures = photos.cases, photos.pictures


def make_task(config: ml_collections.ConfigDict, chosen: choices.Choices) -> types.Task:
  """Returns the network on letterboxed images in [0, 1]."""
  dtype = {'float32': None, 'bfloat16': jnp.bfloat16}[config.model.dtype]
  classes, window = chosen.study.classes, chosen.study.window
  module = models.MODELS['yolov5s'](num_classes=len(classes), width=config.model.width, dtype=dtype)
  return tasks.TASKS['objects'](
    module,
    image_shape=(*window, 3),
    classes=classes,
    train_size=max(window),
    max_detections=MOST_DETECTIONS,
    units=chosen.units.words,
  )


def load(config: ml_collections.ConfigDict, chosen: choices.Choices) -> data.Source:
  """Returns the source; with mosaics a training example is an image and its partners."""
  source = data.load(chosen.fields)
  if config.augment.name == 'none' or not len(source.train):
    return source
  return source._replace(sampling=mosaic.sampling(source.train))


def make_augment(config: ml_collections.ConfigDict, chosen: choices.Choices):
  """Returns source -> mosaics on the device, one function for all arms."""
  if config.augment.name == 'none':
    return lambda source: None
  made = mosaic.make(side=max(chosen.study.window), flip=config.augment.mirror)
  return lambda source: made


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
  """Writes NAME.png, 8 bits, and NAME.csv, its boxes in pixels of that picture."""
  target, lines = example['target'], ['class,x1,y1,x2,y2']
  for i in np.flatnonzero(target['mask']):
    kind = chosen.study.classes[int(target['classes'][i])]
    lines.append(f'{kind},' + ','.join(f'{value:.2f}' for value in target['boxes'][i]))
  photos.write(folder, image, example, facts, lines, whole)


def panels(chosen: choices.Choices) -> tuple[spec.Panel, ...]:
  """Returns the curve of the report."""
  del chosen
  return (spec.Panel(METRIC, 'pgd', True, 'average IOU of detected objects', (0.0, 1.0)),)


def notes(chosen: choices.Choices) -> tuple[str, ...]:
  del chosen
  return (
    'Images are letterboxed, and the border is attacked with them. An image on which nothing is '
    'found counts 0 for each of its labels.',
  )

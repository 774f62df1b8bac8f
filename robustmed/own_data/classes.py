"""One class per image: a residual network on the images of class folders or of a table."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from robustmed import data, tasks, types
from robustmed.data.labelled import augment
from robustmed.networks import checkpoint
from robustmed.own_data import choices, photos
from robustmed.report import spec

METRIC, HIGHER_IS_BETTER = 'ACCURACY', True
cases, pictures = photos.cases, photos.pictures


def make_task(config: ml_collections.ConfigDict, chosen: choices.Choices) -> types.Task:
  """Returns the network on images in [0, 1]."""
  found = chosen.study
  return tasks.TASKS['classes'](
    checkpoint.module_of(_module_fields(config, chosen)),
    image_shape=(*found.window, found.channels),
    classes=found.classes,
    units=chosen.units.words,
  )


def _module_fields(config, chosen) -> dict[str, Any]:
  found = chosen.study
  options = {name: config.model[name] for name in ('width', 'dtype')}
  return {
    'name': 'resnet',
    'num_classes': len(found.classes),
    'channels': found.channels,
    **options,
  }


def described(config: ml_collections.ConfigDict, chosen: choices.Choices) -> dict[str, Any]:
  """Returns the network and what it was given, for cards: `networks.load` reads them."""
  return {
    'module': _module_fields(config, chosen),
    'size': list(chosen.study.window),
    'input': {'normalise': f'scale:{chosen.units.scale.max():.9g}'},
    'output': {'kind': 'classification', 'classes': list(chosen.study.classes)},
  }


def load(config: ml_collections.ConfigDict, chosen: choices.Choices) -> data.Source:
  del config
  return data.load(chosen.fields)


def make_augment(config: ml_collections.ConfigDict, chosen: choices.Choices):
  """Returns source -> contrast, noise and mirrors on the device; with augment.name=none nothing."""
  del chosen
  if config.augment.name == 'none':
    return lambda source: None
  made = augment.make(mirror=config.augment.mirror)

  def inside(keys, batch):  # attacks have these bounds
    found = made(keys, batch)
    return {**found, 'image': jnp.clip(found['image'], 0, 1)}

  return lambda source: inside


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
  """Writes NAME.png, 8 bits, and NAME.csv, its class."""
  kind = chosen.study.classes[int(example['target']['label'])]
  photos.write(folder, image, example, facts, ['class', kind], whole)


def panels(chosen: choices.Choices) -> tuple[spec.Panel, ...]:
  """Returns the curves of the report."""
  del chosen
  return (
    spec.Panel(METRIC, 'pgd', True, 'share of images with the right class', (0.0, 1.0)),
    spec.Panel('P_TRUE', 'pgd', True, 'probability of the true class', (0.0, 1.0)),
  )


def notes(chosen: choices.Choices) -> tuple[str, ...]:
  """Returns how often the most frequent class is right in the test images."""
  cases = chosen.study.folder.cases
  shown = np.array([cases[n].label for n in chosen.study.partition.parts['test']], int)
  most = np.bincount(shown).max(initial=0) / max(1, len(shown))
  return (f'Always the most frequent class would be right in {most:.3f} of the test images.',)

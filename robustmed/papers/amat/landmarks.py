"""AMAT for landmarks: the Multi-Task U-Net on cephalograms."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
import pandas as pd

from robustmed import data, errors, tasks, types
from robustmed.attacks.stored import lattice
from robustmed.data.cephalograms import points as cephalograms
from robustmed.data.files import pictures as picture_files
from robustmed.evaluation import examples
from robustmed.metrics import landmarks as metrics
from robustmed.papers.amat import claims, parts
from robustmed.papers.amat import pictures as amat_pictures
from robustmed.papers.amat import published as papers
from robustmed.process import files
from robustmed.report import inputs, spec, tables
from robustmed.runs import experiment
from robustmed.tasks import landmarks

METRIC, HIGHER_IS_BETTER = 'MRE', False
CRITERIA = {'loss': parts.Criterion(landmarks.TERMS)}
COUPLED = ('', ())
BOUNDS = (-1.0, 1.0)  # of images
lattice_of = lattice.of_png(*BOUNDS)
PANELS = (
  spec.Panel(METRIC, 'pgd', False, 'mean radial error in mm'),
  *(
    spec.Panel(f'SDR_{limit:g}mm', 'pgd', True, f'share closer than {limit:g} mm', (0.0, 1.0))
    for limit in metrics.SDR_MM
  ),
)


def make_task(config: ml_collections.ConfigDict) -> types.Task:
  """The network on images of config.data's size."""
  shape = (config.data.height, config.data.width, 3)
  module = parts.module(config, landmarks=len(cephalograms.LANDMARKS))
  return tasks.TASKS['landmarks'](
    module, image_shape=shape, legacy_targets=config.reading.legacy_targets
  )


def load(config: ml_collections.ConfigDict) -> data.Source:
  return data.load(data.source_config(config.data.to_dict()))


def shapes(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> data.Shapes:
  """The shapes of examples of the source with these fields."""
  del config
  return data.shapes(fields)


def make_augment(config: ml_collections.ConfigDict):
  """source -> None: neither paper augments cephalograms."""
  errors.lookup({'none': None}, config.augment.name, kind='augmentation of cephalograms')
  return lambda source: None


def pictures(found: examples.Example) -> dict[str, np.ndarray]:
  """Landmarks of stacked examples, true and predicted, for the report's pictures."""
  radius = landmarks.radius_of(found.image.shape[1:3])
  points = lambda outputs: np.asarray(landmarks.points(outputs, radius=radius))
  return {
    'points_true': found.example['target']['landmarks'],
    'points_clean': points(found.clean),
    'points_adv': points(found.attacked),
    'scale': found.example['target']['scale'],
  }


def write_example(
  folder: pathlib.Path,
  image: np.ndarray,
  example: Mapping[str, Any],
  *,
  whole: np.ndarray | None = None,
) -> None:
  """Writes NNNNNN.png, 8 bits, and NNNNNN.txt, the true landmarks x,y in the original frame.

  whole: the numbers of the PNG, None for the nearest ones. The three channels of the network differ
  where they were attacked, so that the PNG has them all.
  """
  folder, name = pathlib.Path(folder), f'{int(example["index"]):06d}'
  low, high = BOUNDS
  picture_files.write_png(folder / f'{name}.png', image, low=low, high=high, whole=whole)
  target = example['target']
  points = target['landmarks'] * target['scale'] / cephalograms.MM_PER_PIXEL
  files.write_text(folder / f'{name}.txt', ''.join(f'{x:.1f},{y:.1f}\n' for x, y in points))


def studies(config: ml_collections.ConfigDict, attack) -> tuple[experiment.Study, ...]:
  """The study that saves results/worst.npz: every arm's worst test image under the main attack."""
  return (parts.worst_study(config, attack, metric=METRIC, higher=HIGHER_IS_BETTER),)


def saying(config: ml_collections.ConfigDict) -> claims.Saying:
  del config
  place, better = 'Section 4, Table 3, Fig. 5', (('std', 'std_bce'),)
  return claims.Saying(place, higher=False, collapse='', better=better)


def notes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Notes of the report on losses and test examples."""
  return (
    'Every network is attacked with half of 1 - Dice of the heat maps plus both offset errors, '
    'also STD(BCE), which is trained on twice the cross-entropy in place of the Dice.',
    'Targets are stamps about the nearest pixel'
    + (', a pixel off and cut as in the public code.' if config.reading.legacy_targets else '.')
    + ' L2 levels count three equal channels of values in [-1, 1].',
  )


def published(config: ml_collections.ConfigDict) -> pd.DataFrame:
  """Table 3, at levels of the size of our images."""
  return papers.landmarks(attack='pgd', scale=config.noise.scale)


def sections(page) -> tuple[spec.Section, ...]:
  """Table 3 and the worst cases."""
  frame = tables.averages(page.held.summary, metric=METRIC, attack='pgd')
  found = [
    spec.Section(
      'Mean radial errors (Table 3)',
      'Millimetres, by level; the last column is the plain mean over all levels, clean images '
      'included. In the paper the means of STD(Dice) and STD(BCE) are 19.004 and 24.656.',
      (),
      [('MRE in mm', frame)],
    )
  ]
  stored = inputs.arrays(page.results / parts.FILE)
  if stored is not None:
    found.append(
      spec.Section(
        'Worst cases',
        'The worst attacked test image of every arm. Lines run from a true landmark (yellow) to '
        'the predicted one (orange).',
        page.draw('worst', amat_pictures.landmarks(page.with_paper_names(stored))),
      )
    )
  return tuple(found)

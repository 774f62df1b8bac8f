"""The detector part of AMAT: YOLOv5s on blood cells."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import pandas as pd
from PIL import Image

from robustmed import data, errors, files, tasks, types
from robustmed.data import mosaic
from robustmed.data.sources import bccd
from robustmed.evaluation import grid, statistics
from robustmed.experiments import amat_claims, amat_parts
from robustmed.metrics import matching
from robustmed.report import spec, tables
from robustmed.report.papers import amat_pictures
from robustmed.tasks import objects

METRIC, HIGHER_IS_BETTER = 'IOU', True
TERMS = {'loss': objects.TERMS}
COUPLED = ('batch_loss', ('standard', 'adversarial'))
CLOSE = 0.05  # average IOU of SAT and AMAT that counts as close
SAYING = amat_claims.Saying('Figs. 6, 7', collapse='lowest', close=(('sat_5', 'amat', CLOSE),))
PANELS = (spec.Panel(METRIC, 'pgd', True, 'average IOU of detected objects', (0.0, 1.0)),)
SHOWN = 0.25  # confidence of a detection that is drawn


def make_task(config: ml_collections.ConfigDict) -> types.Task:
  """The network on letterboxed images of config.data's size."""
  return tasks.TASKS['objects'](
    amat_parts.module(config, num_classes=len(bccd.CLASSES)),
    image_shape=(config.data.height, config.data.width, 3),
    classes=bccd.CLASSES,
    train_size=config.reading.loss_size,
    max_detections=config.evaluate.max_detections,
    match=config.reading.matching,
  )


def source_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of config.data that the chosen source knows."""
  return amat_parts.source_config(config)


def load(config: ml_collections.ConfigDict) -> data.Source:
  """The source; with mosaics every training image comes with its partners."""
  source = data.load(source_config(config))
  if config.augment.name != 'mosaic':
    return source
  return source._replace(sampling=mosaic.sampling(source.train))


def make_augment(config: ml_collections.ConfigDict):
  """source -> mosaics on the device; one function for all arms."""
  options = config.augment.to_dict()
  makers = {'mosaic': mosaic.make, 'none': lambda **_: None}
  make = errors.lookup(makers, options.pop('name'), kind='augmentation of images with boxes')
  options['hsv'] = tuple(options['hsv'])
  made = make(**options)
  return lambda source: made


def pictures(found: grid.Example) -> dict[str, np.ndarray]:
  """Boxes of stacked examples, true and found, for the report's pictures; nan is padding."""
  target = found.example['target']
  kept = {'boxes_true': (target['boxes'], target['classes'], target['mask'])}
  for name, outputs in (('clean', found.clean), ('adv', found.attacked)):
    seen = objects.detect(
      jax.tree.map(np.asarray, outputs), confidence=SHOWN, iou_threshold=0.5, max_detections=50
    )
    kept[f'boxes_{name}'] = tuple(map(np.asarray, (seen.boxes, seen.classes, seen.mask)))
  shown = {}
  for name, (boxes, classes, mask) in kept.items():
    shown[name] = np.where(mask[..., None], boxes, np.nan).astype(np.float32)
    shown[name.replace('boxes', 'classes')] = np.where(mask, classes, -1)
  return shown


def write_example(folder: pathlib.Path, image: np.ndarray, example: Mapping[str, Any]) -> None:
  """NNNNNN.png, 8 bits, and NNNNNN.json, the true boxes (x1, y1, x2, y2) with their classes."""
  folder, name = pathlib.Path(folder), f'{int(example["index"]):06d}'
  with files.replacing(folder / f'{name}.png') as temporary:
    Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)).save(temporary)
  target = example['target']
  kept = np.flatnonzero(target['mask'])
  lines = [
    {
      'class': bccd.CLASSES[int(target['classes'][i])],
      'box': [round(float(value), 2) for value in target['boxes'][i]],
    }
    for i in kept
  ]
  files.write_text(folder / f'{name}.json', json.dumps(lines, indent=1) + '\n')


def evaluate(config: ml_collections.ConfigDict, context, networks, rows: pd.DataFrame) -> None:
  """results/worst.npz: the worst test images of every arm under the main attack."""
  amat_parts.save(config, context, networks, rows, metric=METRIC, higher=HIGHER_IS_BETTER)


def notes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """What the report says of the losses and of the test examples."""
  batch = config.reading.batch_loss
  return (
    'Training loss of STD and SAT: means over the positives of '
    + ('the whole batch (stock YOLOv5, coupled)' if batch else 'each image')
    + '; of AMAT: of each image. Attacks always ascend the loss of each image alone.',
    'An image on which nothing is found counts 0 for each of its labels in IOU; IOU_found leaves '
    'it out, as the public code does.',
    f'mAP matches as {config.reading.matching}; boxes are suppressed at an IoU of 0.6 for it, of '
    '0.5 for the average IOU.',
    'Test images are letterboxed, and the border is attacked with them.',
  )


def published(config: ml_collections.ConfigDict) -> None:
  del config  # the paper has figures only


def precisions(rows: pd.DataFrame) -> pd.DataFrame:
  """mAP of every cell of the grid: arm, attack, eps, mAP@0.5:0.95, mAP@0.5 and by class."""
  lines = []
  for (arm, attack, eps), part in rows.groupby(['arm', 'attack', 'eps'], sort=False):
    by_seed = [matching.precision(one) for _, one in part.groupby('seed')]
    classes = np.mean([found.by_class.mean(axis=1) for found in by_seed], axis=0)
    lines.append(
      {
        'arm': arm,
        'attack': attack,
        'eps': eps,
        'mAP@0.5:0.95': np.mean([found.mean for found in by_seed]),
        'mAP@0.5': np.mean([found.at_50 for found in by_seed]),
        **dict(zip(bccd.CLASSES, classes, strict=True)),
      }
    )
  return pd.DataFrame(lines)


def sections(page) -> tuple[spec.Section, ...]:
  """Figure 7, both readings of the average IOU, the worst cases."""
  rows = page.held.rows
  kept = rows[rows['attack'].isin(['pgd', statistics.CLEAN])]
  table = precisions(kept)
  readings = [
    (f'{name}, by level', tables.averages(page.held.summary, metric=name, attack='pgd'))
    for name in (METRIC, 'IOU_found')
  ]
  found = [
    spec.Section(
      'Mean average precision (Figure 7)',
      'Over the whole test set; the columns of the classes are means over the thresholds.',
      page.draw('precision', amat_pictures.curves(table, value='mAP@0.5:0.95')),
      [('mAP under PGD', table.drop(columns='attack'))],
    ),
    spec.Section(
      'Average IOU of detected objects (Figure 6)',
      'The last column is the plain mean over all levels, clean images included.',
      (),
      readings,
    ),
  ]
  stored = amat_parts.read(page.results)
  if stored is not None:
    found.append(
      spec.Section(
        'Worst cases',
        'The worst attacked test image of every arm: true boxes are thin and white, found ones '
        f'(confidence {SHOWN:g} and more) are coloured by class.',
        page.draw('worst', amat_pictures.boxes(stored, classes=bccd.CLASSES)),
      )
    )
  return tuple(found)

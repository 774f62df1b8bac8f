"""AMAT for objects: YOLOv5s on blood cells."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import pandas as pd

from robustmed import data, errors, tasks, types
from robustmed.attacks.stored import lattice
from robustmed.data.cells import bccd, mosaic
from robustmed.data.files import pictures as picture_files
from robustmed.evaluation import examples, statistics
from robustmed.metrics.boxes import matching
from robustmed.papers.amat import claims, parts
from robustmed.papers.amat import pictures as amat_pictures
from robustmed.process import files
from robustmed.report import inputs, spec, tables
from robustmed.runs import experiment
from robustmed.tasks import objects

METRIC, HIGHER_IS_BETTER = 'IOU', True
CRITERIA = {'loss': parts.Criterion(objects.TERMS)}
COUPLED = ('batch_loss', ('standard', 'adversarial'))
CLOSE = 0.05  # average IOU of SAT and AMAT that counts as close
PANELS = (spec.Panel(METRIC, 'pgd', True, 'average IOU of detected objects', (0.0, 1.0)),)
SHOWN = 0.25  # confidence of a detection that is drawn
lattice_of = lattice.of_png()


def make_task(config: ml_collections.ConfigDict) -> types.Task:
  """The network on letterboxed images of config.data's size."""
  return tasks.TASKS['objects'](
    parts.module(config, num_classes=len(bccd.CLASSES)),
    image_shape=(config.data.height, config.data.width, 3),
    classes=bccd.CLASSES,
    train_size=config.reading.loss_size,
    max_detections=config.evaluate.max_detections,
    match=config.reading.matching,
  )


def load(config: ml_collections.ConfigDict) -> data.Source:
  """The source; with mosaics a training example is an image and its partners."""
  source = data.load(data.source_config(config.data.to_dict()))
  if config.augment.name != 'mosaic':
    return source
  return source._replace(sampling=mosaic.sampling(source.train))


def shapes(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> data.Shapes:
  """The shapes of examples of the source with these fields, with the partners of mosaics."""
  found = data.shapes(fields)
  mosaics = config.augment.name == 'mosaic'
  return found._replace(train=mosaic.with_partners(found.train)) if mosaics else found


def make_augment(config: ml_collections.ConfigDict):
  """source -> mosaics on the device; one function for all arms."""
  options = config.augment.to_dict()
  makers = {'mosaic': mosaic.make, 'none': lambda **_: None}
  make = errors.lookup(makers, options.pop('name'), kind='augmentation of images with boxes')
  options['hsv'] = tuple(options['hsv'])
  made = make(**options)
  return lambda source: made


def pictures(found: examples.Example) -> dict[str, np.ndarray]:
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


def write_example(
  folder: pathlib.Path,
  image: np.ndarray,
  example: Mapping[str, Any],
  *,
  whole: np.ndarray | None = None,
) -> None:
  """Writes NNNNNN.png, 8 bits, and NNNNNN.xml, its true boxes in Pascal VOC as in BCCD.

  whole: the numbers of the PNG, None for the nearest ones.
  """
  folder, name = pathlib.Path(folder), f'{int(example["index"]):06d}'
  picture_files.write_png(folder / f'{name}.png', image, whole=whole)
  target = example['target']
  height, width = image.shape[:2]
  lines = [f'<annotation>\n<size><width>{width}</width><height>{height}</height></size>']
  for i in np.flatnonzero(target['mask']):
    corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), target['boxes'][i], strict=True)
    box = ''.join(f'<{corner}>{value:.2f}</{corner}>' for corner, value in corners)
    kind = bccd.CLASSES[int(target['classes'][i])]
    lines.append(f'<object><name>{kind}</name><bndbox>{box}</bndbox></object>')
  files.write_text(folder / f'{name}.xml', '\n'.join([*lines, '</annotation>\n']))


def studies(config: ml_collections.ConfigDict, attack) -> tuple[experiment.Study, ...]:
  """The study that saves results/worst.npz: every arm's worst test image under the main attack."""
  return (parts.worst_study(config, attack, metric=METRIC, higher=HIGHER_IS_BETTER),)


def saying(config: ml_collections.ConfigDict) -> claims.Saying:
  del config
  close = (('sat_5', 'amat', CLOSE),)
  return claims.Saying('Section 4, Figs. 6, 7', collapse='lowest', close=close)


def notes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Notes of the report on losses and test examples."""
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


def precisions(rows: pd.DataFrame, *, interpolation: str = 'coco') -> pd.DataFrame:
  """mAP of every cell of the grid: arm, attack, eps, mAP@0.5:0.95, mAP@0.5 and by class."""
  lines = []
  for (arm, attack, eps), part in rows.groupby(['arm', 'attack', 'eps'], sort=False):
    by_seed = [
      matching.precision(one, interpolation=interpolation) for _, one in part.groupby('seed')
    ]
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


def overlaps(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
  """The mean of `metric` over all labels of all images, as published: arms by levels.

  Images whose value is nan are left out; the last column is the plain mean over the levels.
  """
  levels = sorted(set(rows['eps']))

  def mean(arm, eps):
    here = rows[(rows['arm'] == arm) & (rows['eps'] == eps) & rows[metric].notna()]
    labels = here.filter(regex=r'^_labels\d+$').sum(axis=1)
    return np.average(here[metric], weights=labels) if labels.sum() else np.nan

  lines = [[arm, *(mean(arm, eps) for eps in levels)] for arm in dict.fromkeys(rows['arm'])]
  table = pd.DataFrame(lines, columns=['arm', *(f'{eps:g}' for eps in levels)])
  return table.assign(average=table.drop(columns='arm').mean(axis=1))


def sections(page) -> tuple[spec.Section, ...]:
  """Sections with Figure 7, both readings of the average IOU, and the worst cases."""
  rows = page.held.rows
  kept = rows[rows['attack'].isin(['pgd', statistics.CLEAN])]
  table = precisions(kept, interpolation=page.config.reading.matching)
  readings = [
    ('All labels of all images (as published)', overlaps(kept, METRIC)),
    ('All labels of the images in which anything was found', overlaps(kept, 'IOU_found')),
    (
      f'{METRIC}, mean over images, which the tests are about',
      tables.averages(page.held.summary, metric=METRIC, attack='pgd'),
    ),
  ]
  found = [
    spec.Section(
      'Mean average precision (Figure 7)',
      'Over the whole test set; the columns of the classes are means over the thresholds.',
      page.draw(
        'precision', amat_pictures.curves(page.with_paper_names(table), value='mAP@0.5:0.95')
      ),
      [('mAP under PGD', table.drop(columns='attack'))],
    ),
    spec.Section(
      'Average IOU of detected objects (Figure 6)',
      'The overlap of a label with the object found for it, 0 where there is none. The last column '
      'is the plain mean over all levels, clean images included.',
      (),
      readings,
    ),
  ]
  stored = inputs.arrays(page.results / parts.FILE)
  if stored is not None:
    found.append(
      spec.Section(
        'Worst cases',
        'The worst attacked test image of every arm: true boxes are thin and white, found ones '
        f'(confidence {SHOWN:g} and more) are coloured by class.',
        page.draw(
          'worst', amat_pictures.boxes(page.with_paper_names(stored), classes=bccd.CLASSES)
        ),
      )
    )
  return tuple(found)

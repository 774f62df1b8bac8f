"""What an audit measures of one class per image."""

import numpy as np

from robustmed.audit import label_maps
from robustmed.metrics import detection
from robustmed.networks import heads
from robustmed.own_data import photos
from robustmed.report import spec
from robustmed.tasks import classes as task_of_classes

KIND = 'classification'
METRIC, HIGHER_IS_BETTER, SHOWN = 'ACCURACY', True, 'accuracy'
BREAKING, BROKEN = 'ACCURACY', 'its class is wrong'
ASKED = 'how many images still get the right class?'
MEANS = 'Share of images with the right class'
POOR = 0.5

case_of, pictures = label_maps.case_of, label_maps.scaled


def subjects(made, rows):
  """Returns the rows with the number of the case as index."""
  del made
  return rows.assign(index=rows['_case'].astype(np.int64))


def host(made) -> None:
  del made


def metrics_of(columns) -> list[str]:
  """Returns the accuracy and the probability of the true class."""
  return [name for name in (METRIC, 'P_TRUE') if name in columns]


def curves(rows, *, names, seed: int):
  """Returns (arm, attack, eps, metric, mean, low, high, n) of the AUROC of every cell.

  Of two classes that of the second, of more that of each against the rest; intervals by groups.
  """
  del seed
  found = []
  chosen = [1] if len(names) == 2 else range(len(names))
  for (arm, attack, eps), cell in rows.groupby(['arm', 'attack', 'eps']):
    for k in chosen:
      score, label = cell[f'{task_of_classes.PROBABILITY}{k}'], cell['_label'] == k
      if not 0 < label.sum() < len(label):
        continue
      groups = [cell.loc[mask, 'group'].to_numpy() for mask in (~label, label)]
      made = detection.auroc_interval(
        score[~label].to_numpy(),
        score[label].to_numpy(),
        negative_groups=groups[0],
        positive_groups=groups[1],
        shared=bool(set(groups[0]) & set(groups[1])),
      )
      metric = 'AUROC' if len(names) == 2 else f'AUROC_{names[k]}'
      found.append((arm, attack, eps, metric, made.value, made.low, made.high, len(cell)))
  return found


def make_task(study, one, *, units: str):
  """Returns the task of an audited network."""
  shape = (*study.window, study.channels)
  task = task_of_classes.make(None, image_shape=shape, classes=study.classes, units=units)
  predict = heads.classifier(
    one.network,
    one.described,
    classes=study.classes,
    top=label_maps.top(study),
    grey=study.channels == 1,
  )
  return task, predict


def described(network, given, count, classes):
  """Returns names of the outputs and where they are from."""
  return heads.class_names(network, given, count, classes)


def panels(made, probes) -> list[spec.Panel]:
  del made
  rest = [name for name in probes if name != 'pgd']
  return [
    spec.Panel(METRIC, 'pgd', True, 'share of images with the right class', (0.0, 1.0)),
    spec.Panel('P_TRUE', 'pgd', True, 'probability of the true class', (0.0, 1.0)),
    *(spec.Panel(METRIC, name, True, f'accuracy, {name}', (0.0, 1.0)) for name in rest),
  ]


def write_example(made, facts):
  def write(folder, image, example, *, whole=None):
    kind = made.study.classes[int(example['target']['label'])]
    photos.write(folder, image, example, facts, ['class', kind], whole)

  return write


def lattice_of(made, facts):
  return photos.lattice_of


def notes(made) -> list[str]:
  return [
    label_maps.resized(made),
    'AUROC is of the second class, of more than two classes of each against the rest.',
  ]

"""What an audit measures of label maps; `pictures` and `landmarks` have the same names."""

import functools

import numpy as np

from robustmed.audit import threat
from robustmed.data.labelled import sampling, units
from robustmed.evaluation import examples
from robustmed.networks import normalise
from robustmed.own_data import segmentation, surfaces
from robustmed.report import spec

KIND = 'segmentation'
METRIC, HIGHER_IS_BETTER, SHOWN = 'DICE', True, 'Dice'
BREAKING, BROKEN = 'DICE', 'its Dice falls below {share:g} of its clean value'
ASKED = 'how much of its outline is left?'
MEANS = 'Overlap with the reference (Dice, 1 is perfect)'
_PADDED = {
  'mirror': 'Images are mirrored at their borders to one size; what is added does not count.',
  'zeros': 'Images are padded with zeros to one size; what is added does not count.',
  'training': 'Images are padded to one size, as in training; the border is not attacked.',
}
POOR = 0.5  # a clean value from which the description of the input is in doubt


def metrics_of(columns) -> list[str]:
  """Returns the metrics among the columns: Dice, NSD and HD95, the mean over classes and each
  class."""
  kinds = (METRIC, *surfaces.METRICS)
  return [name for kind in kinds for name in columns if name.split('_')[0] == kind]


def curves(rows, *, names, seed: int):
  """Returns metrics that a cell has as a whole: none."""
  del rows, names, seed
  return []


def subjects(made, rows):
  return segmentation.cases(made, rows)


def case_of(batch) -> np.ndarray:
  """Returns the index in the rows of the case of every example."""
  return np.asarray(batch['target']['case'])


def host(made):
  return surfaces.host_metrics(made.study, segmentation.names(made), made.distances)


def panels(made, probes) -> list[spec.Panel]:
  """Returns the curves of the page."""
  names = segmentation.names(made)
  found = [spec.Panel(METRIC, 'pgd', True, 'Dice (mean of classes, per case)', (0.0, 1.0))]
  if len(names) > 1:
    found += [
      spec.Panel(f'DICE_{name}', 'pgd', True, f'Dice of {name.replace("_", " ")}', (0.0, 1.0))
      for name in names
    ]
  found += [
    spec.Panel('NSD', 'pgd', True, 'share of the surface within the tolerance', (0.0, 1.0)),
    spec.Panel('HD95', 'pgd', False, f'95 % distance of surfaces ({made.distances.unit})'),
  ]
  rest = [name for name in probes if name != 'pgd']
  return found + [spec.Panel(METRIC, n, True, f'Dice, {n}', (0.0, 1.0)) for n in rest]


def pictures(found: examples.Example) -> dict[str, np.ndarray]:
  """Returns the arrays of the report's pictures, images in the units of levels.

  What was added to bring images to one size is dark; of a volume the slice that shows the most of
  the labels is shown.
  """
  made = {**segmentation.pictures(found), **scaled(found)}
  outside = found.example['target']['labels'] == -1
  around, axes = outside[..., None], tuple(range(1, found.image.ndim))
  dark = np.where(around, np.inf, made['image']).min(axis=axes, keepdims=True)
  for name in ('image', 'adversarial'):
    made[name] = np.where(around, dark, made[name])
  for name in ('seg_clean', 'seg_adv', 'labels_clean', 'labels_adv'):
    made[name] = np.where(outside, 0, made[name])
  if found.image.ndim < 5:
    return made
  shown = (found.example['target']['labels'] > 0).sum(axis=(2, 3)).argmax(axis=1)
  every = np.arange(len(shown))
  return {name: array[every, shown] if array.ndim > 2 else array for name, array in made.items()}


def scaled(found: examples.Example) -> dict[str, np.ndarray]:
  """Returns the images of stacked examples in the units of levels."""
  level = found.example['target'][threat.LEVEL]  # [n, 2, c]
  level = level.reshape(len(level), 2, *(1,) * (found.image.ndim - 2), level.shape[-1])
  made = lambda image: (image - level[:, 0]) / level[:, 1]
  return {'image': made(found.example['image']), 'adversarial': made(found.image)}


def write_example(made, facts):
  return functools.partial(segmentation.write_example, made, facts)


def lattice_of(made, facts):
  return segmentation.lattice_of(made, facts, crop_of(made))


def crop_of(made):
  """Returns the crop of what is attacked: the window about the middle, padded where needed."""
  return padded(made, sampling.centred(made.study.window), made.study.window)


def padded(made, inner, shape):
  """Returns the crop `inner` of examples that are padded to `shape` as made.padding says."""
  low = np.array([one.low for one in made.study.surveys], np.float32)
  by_case = made.fields['intensity'] == normalise.OF_CASE['case_zscore']

  def crop(found, *draw):
    if made.padding != 'training':
      return inner(sampling.extended(found, shape, mirror=made.padding == 'mirror'), *draw)
    floor = (low[int(found['case'])] - found['units'][0]) / found['units'][1]
    floor = 0 * floor if by_case else floor
    cut = inner({**found, 'image': found['image'] - floor}, *draw)
    return {**cut, 'image': cut['image'] + floor}

  return crop


def notes(made) -> list[str]:
  """Returns what the page says of the measurement."""
  kept, found = [segmentation.MEAN_OF_CLASSES], made.study
  if made.fields['spacing']:
    kept.append('It is measured on the resampled grid, not on that of the files.')
  if {grid.shape for grid in found.grids} != {found.window}:
    kept.append(_PADDED[made.padding])
  kept.append(f'NSD and HD95 are of {made.distances.words}.')
  kept.append(
    'HD95 of a structure that only the labels or only the network shows is the diagonal of the '
    'image, and NSD is 0: a penalty, not a distance.'
  )
  if found.axes < found.spatial:
    kept.append('Of a volume the attacked slices alone are measured (data.slices_per_case).')
  return kept


def top(study) -> float:
  """Returns the stored value that is 1 in images of other kinds of labels."""
  return float(units.of(study).scale.max())


def resized(made) -> str:
  """Returns what becomes of images of other kinds of labels before they are attacked."""
  rows, columns = made.study.window
  return f'Images are resized to {rows} x {columns} pixels before they are attacked.'

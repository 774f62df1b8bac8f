"""All that is known of a labelled folder before its examples are made, in numbers and in words."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.files import exams
from robustmed.data.labelled import folders, layouts, partition, survey

INTENSITIES = ('stored', 'auto', 'range', 'case', 'ct', 'zscore')
DEFAULTS = {
  'dir': '',
  'layout': 'auto',  # or a name of `layouts.LAYOUTS`
  'axes': 0,  # of an image: 0 as stored, 2 makes slices of volumes
  'slice_axis': -1,  # of [z, y, x], across the slices; -1: the one with the largest spacing
  'spacing': (),  # to which images are resampled (of slices: rows, columns); (): as stored
  'slices_per_case': 0,  # of the test set: so many with foreground, evenly spaced; 0: all slices
  'patients': '',  # a regular expression on the names (its first group), or a CSV: case, patient
  'split': 'auto',  # one of `partition.SPLITS`
  'split_file': '',  # a CSV: case, train | validation | test; or nnU-Net's splits_final.json
  'test_share': 0.2,  # of the patients
  'validation_share': 0.0,
  'seed': 0,  # of the split
  'intensity': 'stored',  # the units of images, one of INTENSITIES, see `units.of`
  'ct_range': (),  # of the intensity ct: (low, high) in the files' units; (): from the data
  'patch': (),  # of training, () the window
  'multiple': (),  # of which the sides of the window are multiples, per axis; (): 1
  'height': 0,  # of images with boxes, landmarks or one class; 0: from the data
  'width': 0,
  'max_boxes': 0,  # of one image; 0: the most that an image of the folder has
  'mm_per_pixel': 0.0,  # of images with landmarks; 0: 1
}
_CT = ('ct', 'hu', 'hounsfield')
_AIR = -200  # a lower 0.5 % quantile of whole numbers below this is Hounsfield units
_HELP = folders.help_of(layouts.LAYOUTS.values())
_LARGEST_SIDE = 512  # of images with boxes, landmarks or one class, if their size is not given


class Grid(NamedTuple):
  """The geometry of the examples of one case."""

  whole: tuple[int, ...]  # of the case as stored, [z, y, x] or [h, w]
  shape: tuple[int, ...]  # of one example after resampling
  slices: int  # examples of the case
  spacing: tuple[float, ...]  # of an example, per axis


class Study(NamedTuple):
  folder: folders.Folder
  surveys: tuple[survey.Survey, ...]
  fields: Mapping[str, Any]
  spatial: int  # axes of the stored images
  axes: int  # axes of an example
  axis: int  # across slices, of the stored axes
  classes: tuple[str, ...]  # the background first, where there is one
  values: tuple[int, ...]  # in the label maps, of every class
  picture: bool  # label maps are thresholded
  partition: partition.Partition
  grids: tuple[Grid, ...]

  @property
  def channels(self) -> int:
    return self.surveys[0].channels

  @property
  def window(self) -> tuple[int, ...]:
    """The smallest shape that holds every example and the patch, in multiples of `multiple`."""
    shapes = [grid.shape for grid in self.grids]
    largest = np.max([*shapes, tuple(self.fields['patch']) or shapes[0]], axis=0)
    steps = self.fields['multiple'] or (1,) * len(largest)
    return tuple(int(-(-side // step) * step) for side, step in zip(largest, steps, strict=True))

  @property
  def regions(self) -> dict[str, tuple[int, ...]]:
    """The numbers of the classes in every region."""
    number = {value: place for place, value in enumerate(self.values)}
    return {
      name: tuple(number[v] for v in several if v in number)
      for name, several in self.folder.regions.items()
    }

  def groups(self) -> list[int]:
    """The number of every case's patient."""
    order = {name: n for n, name in enumerate(sorted(set(self.partition.patients)))}
    return [order[patient] for patient in self.partition.patients]

  def shown(self, number: int) -> list[int]:
    """The slices of a test case that are evaluated."""
    most, every = self.fields['slices_per_case'], list(range(self.grids[number].slices))
    if not most or len(every) == 1:
      return every
    places = self.surveys[number].filled[self.axis] or every
    if len(places) <= most:
      return places
    return [places[(2 * part + 1) * len(places) // (2 * most)] for part in range(most)]


def find(fields: Mapping[str, Any]) -> folders.Folder:
  """Returns the folder by its names and tables; images are not read."""
  root = exams.root_of(fields['dir'], help_text=_HELP)
  return folders.recognise(root, layouts.LAYOUTS, layout=fields['layout'])


def make(fields: Mapping[str, Any]) -> Study:
  """Returns all that is known of the folder of the fields; reads its files the first time."""
  folder = find(fields)
  return of(folder, survey.survey(folder, cache_dir=fields.get('cache_dir', '')), fields)


def of(
  folder: folders.Folder, surveys: tuple[survey.Survey, ...], fields: Mapping[str, Any]
) -> Study:
  """Returns all that is known of a folder; what does not fit together is a `UserError`."""
  errors.lookup(dict.fromkeys(INTENSITIES), fields['intensity'], kind='data field intensity')
  spatial = _same(folder, surveys, lambda one: len(one.shape), 'axes')
  if folder.kind in ('segmentation', 'classes'):
    _same(folder, surveys, lambda one: one.channels, 'channels')
  axes = fields['axes'] or spatial
  if axes not in (2, 3) or axes > spatial:
    raise errors.UserError(f'data field axes is {fields["axes"]}, the images have {spatial}')
  axis = _slice_axis(surveys, fields, spatial)
  names, values, picture = _classes(folder, surveys)
  if folder.kind == 'segmentation':
    grids = tuple(_grid(one, fields, spatial, axes, axis) for one in surveys)
  else:
    side = size_of(surveys, fields)
    grids = tuple(Grid(tuple(one.shape), side, 1, (1.0,) * len(side)) for one in surveys)
  parts = partition.make(folder, fields, spatial=spatial)
  parts = parts._replace(said=(*parts.said, *_duplicates(folder, surveys, parts)))
  return Study(folder, surveys, fields, spatial, axes, axis, names, values, picture, parts, grids)


def _same(folder, surveys, of, what) -> int:
  first = of(surveys[0])
  for case, one in zip(folder.cases, surveys):
    if of(one) != first:
      raise errors.UserError(
        f'{case.images[0]}: has {of(one)} {what}, {folder.cases[0].images[0].name} has {first}'
      )
  return first


def _duplicates(folder, surveys, parts) -> list[str]:
  """A line where cases have the same image; in two splits that is a `UserError`."""
  part_of = {n: part for part, chosen in parts.parts.items() for n in chosen}
  first: dict[tuple[str, ...], int] = {}
  found = []
  for number, one in enumerate(surveys):
    if not any(one.std):  # empty slices are alike
      continue
    other = first.setdefault((one.digest, *map(str, one.shape)), number)
    if other == number or number not in part_of or other not in part_of:
      continue
    pair = f'{folder.cases[other].name} and {folder.cases[number].name}'
    if part_of[number] != part_of[other]:
      raise errors.UserError(
        f'{folder.cases[number].images[0]}: {pair} are the same image, one in {part_of[other]}, '
        f'one in {part_of[number]}; remove one, or give them one patient (data field patients)'
      )
    found.append(pair)
  return [f'same image twice: {", ".join(found[:3])}' + (', ...' if found[3:] else '')] * bool(
    found
  )


def _slice_axis(surveys, fields, spatial):
  axis = fields['slice_axis']
  if not -1 <= axis < spatial:
    raise errors.UserError(f'data field slice_axis must be -1 to {spatial - 1}, not {axis}')
  if axis >= 0 or spatial == 2:
    return max(axis, 0)
  known = [one.spacing for one in surveys if one.spacing]
  return int(np.argmax(np.median(known, axis=0))) if known else 0


def _classes(folder, surveys):
  """(names, values, whether label maps are thresholded) of a folder."""
  if folder.kind != 'segmentation':
    return folder.classes, (), False
  picture = any(one.picture for one in surveys)
  if picture:
    values = {0, 1}
    odd = next((n for n, one in enumerate(surveys) if not one.plain), None)
    if odd is not None:
      raise errors.UserError(
        f'{folder.cases[odd].label}: has the values {list(surveys[odd].values)[:5]}, while other '
        'masks of the folder are smoothed or lossy pictures of one class'
      )
  else:
    values = {0, *(v for one in surveys for v in one.values)} - {folder.ignore}
  if folder.labels is None:
    rest = sorted(values - {0})
    text = '#{:06x}' if any(one.colour for one in surveys) else 'label {}'
    names = ['foreground'] if len(rest) == 1 else [text.format(value) for value in rest]
    return ('background', *names), (0, *rest), picture
  known = tuple(folder.labels.values())
  for case, one in zip(folder.cases, surveys):
    unknown = [v for v in one.values if v not in (0, folder.ignore, *known)]
    if unknown and not picture:
      raise errors.UserError(
        f'{case.label}: label {unknown[0]} is not in dataset.json, which has '
        f'{", ".join(f"{value} {name}" for name, value in folder.labels.items())}'
      )
  return tuple(folder.labels), known, picture


def _grid(one, fields, spatial, axes, axis) -> Grid:
  shape, spacing = tuple(one.shape), tuple(one.spacing or [1.0] * spatial)
  kept = [n for n in range(spatial) if axes == spatial or n != axis]
  inner, apart = [shape[n] for n in kept], [spacing[n] for n in kept]
  wanted = fields['spacing']
  if wanted:
    if len(wanted) != axes or not all(mm > 0 for mm in wanted):
      raise errors.UserError(f'data field spacing must be {axes} positive numbers, not {wanted}')
    inner = [max(1, round(n * old / new)) for n, old, new in zip(inner, apart, wanted)]
    apart = list(wanted)
  return Grid(shape, tuple(inner), 1 if axes == spatial else shape[axis], tuple(apart))


def size_of(surveys: Sequence[survey.Survey], fields: Mapping[str, Any]) -> tuple[int, int]:
  """Returns (height, width) of images with boxes, landmarks or one class.

  Where a side is 0, the median of the folder, in multiples of 32, at most `_LARGEST_SIDE`.
  """
  if any(len(one.shape) != 2 for one in surveys):
    raise errors.UserError('volumes can have label maps alone: boxes, landmarks and classes are 2D')
  median = np.median([one.shape for one in surveys], axis=0)
  shrink = min(1.0, _LARGEST_SIDE / median.max())
  found = [max(32, 32 * math.ceil(side * shrink / 32)) for side in median]
  return tuple(fields[name] or side for name, side in zip(('height', 'width'), found))


def intensity_of(study: Study) -> str:
  """Returns the units of images, 'auto' decided by channel names, types and values."""
  chosen = study.fields['intensity']
  if study.folder.kind != 'segmentation':
    return 'range'
  if chosen != 'auto':
    return chosen
  kinds = {np.dtype(one.dtype) for one in study.surveys}
  named = study.folder.channels
  if named and all(name.lower() in _CT for name in named):
    return 'ct'
  if kinds <= {np.dtype(np.uint8), np.dtype(bool)}:
    return 'range'
  lowest = np.median([min(one.low) for one in study.surveys])
  whole = all(kind.kind in 'iu' for kind in kinds)
  return 'ct' if lowest < _AIR and (whole or not named) else 'case'


def lines(study: Study) -> list[str]:
  """Returns what was recognised, and a line for every default that was chosen."""
  folder = study.folder
  parts = [folder.layout, _count(len(folder.cases), 'case'), f'{study.spatial}D']
  parts.append(_count(study.channels, 'channel'))
  what = 'landmark' if folder.kind == 'landmarks' else 'class'
  text = ', '.join(parts) + f', {_count(len(study.classes), what)}: '
  found = [text + _shortened(study.classes)]
  if folder.regions:
    inside = lambda several: '+'.join(str(value) for value in several)
    found.append('regions: ' + ', '.join(f'{n} ({inside(v)})' for n, v in folder.regions.items()))
  if folder.ignore is not None:
    found.append(f'label {folder.ignore} is ignored: such voxels do not count')
  if study.picture:
    found.append('masks are smoothed or lossy pictures: foreground is what is brighter than half')
  if all(one.spacing is None for one in study.surveys):
    found.append('the files have no spacing: lengths are in pixels')
  if study.axes < study.spatial:
    found.append(f'slices across axis {"zyx"[study.axis]} (data.axes=2, data.slice_axis)')
  if study.fields['spacing']:
    found.append(f'resampled to {_sides(study.fields["spacing"])} mm or pixels (data.spacing)')
  return [*found, *folder.notes, *study.partition.said]


def _count(number, what):
  ending = '' if number == 1 else 'es' if what.endswith('s') else 's'
  return f'{number} {what}{ending}'


def _shortened(names, most=8):
  rest = f', and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + rest


def _sides(values):
  return ' x '.join(f'{value:.4g}' for value in values)


def facts_of(study: Study) -> list[dict[str, Any]]:
  """Returns, per case, what a result needs to be written back on the grid of its file."""
  groups, found = study.groups(), []
  for number, (case, one) in enumerate(zip(study.folder.cases, study.surveys)):
    found.append(
      {
        'name': case.name,
        'patient': study.partition.patients[number],
        'group': groups[number],
        'images': [str(path) for path in case.images],
        'label': str(case.label) if isinstance(case.label, pathlib.Path) else '',
        **{name: getattr(one, name) for name in ('shape', 'spacing', 'affine', 'dtype', 'rescale')},
      }
    )
  return found

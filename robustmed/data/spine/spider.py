"""SPIDER (zenodo 8009680, CC BY 4.0): lumbar MR series with masks, `.mha` volumes.

`dir` holds `images/<patient>_<sequence>.mha` and `masks/` of the same names, as distributed.
Disks have labels 201 (L5/S1) and upwards; the five lumbar ones are used. Of each series one
sagittal slice is taken, which has half of the disks' voxels on either side. By the directions and
the spacing of the volume, the slice is oriented with the front on the left and the head at the top,
and resampled to square pixels (image linearly, mask by nearest voxel). `sequence` keeps series
whose names end with it ('t1', 't2', 't2_SPACE'; '' is all). The last fifth of the patients is the
test set. Crops and contours are those of `disk_masks`.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import SimpleITK as sitk

from robustmed import errors
from robustmed.data import store
from robustmed.data.files import exams, itk
from robustmed.data.spine import contours, disk_slices
from robustmed.process import links

DEFAULTS = {'dir': '', 'side': 128, 'sequence': 't2', 'test_exams': ''}
NOMINAL = {'train': 174 * 5, 'test': 44 * 5}  # one series of each of the 218 patients
PATIENTS = 44
LABELS = range(201, 206)
_HELP = 'unpack images.zip and masks.zip of https://zenodo.org/records/8009680 there'


class Series(NamedTuple):
  patient: str
  image: pathlib.Path
  mask: pathlib.Path


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the examples per split, counted in the masks; without the folder, the nominal ones."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return dict(NOMINAL)
  return {
    name: sum(_count(series, repr(_stamp(series))) for series in listed)
    for name, listed in find(fields).items()
  }


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of patients of the test split, those without a disk among them; without the
  folder, that of the whole set."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return PATIENTS
  return len({series.patient for series in find(fields)['test']})


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, and the side."""
  contours.check_side(fields['side'])
  files = {
    name: [[series.patient, _stamp(series)] for series in listed]
    for name, listed in find(fields).items()
  }
  return {'side': fields['side'], 'files': files}


class Spider(store.Builder):
  """Builds 'train' and 'test' from the folder of the module's docstring."""

  def features(self):
    return contours.features(self.fields['side'])

  def splits(self):
    found = find(self.fields)
    patients = sorted({series.patient for listed in found.values() for series in listed})
    group = {patient: number for number, patient in enumerate(patients)}
    count = sizes(self.fields)
    for split, number in count.items():
      if not number and found[split]:
        raise errors.UserError(
          f'{self.fields["dir"]}: no mask of the {split} patients has a disk (labels 201..205)'
        )
    first = {'train': 0, 'test': count['train']}
    return {
      name: self._examples(found[name], group, first=first[name]) for name in found if found[name]
    }

  def _examples(self, listed, group, *, first) -> Iterator[dict[str, Any]]:
    for series in listed:
      chosen = disk_slices.choose([mid_slice(series)], mode='every', counts=self.counts)
      for row in disk_slices.examples(
        chosen,
        side=self.fields['side'],
        group=group[series.patient],
        first=first,
        counts=self.counts,
      ):
        first += 1
        yield row


def find(fields: Mapping[str, Any]) -> dict[str, list[Series]]:
  """Returns the series of 'train' and 'test', each sorted by name; see `exams.held_out`."""
  root = exams.root_of(fields['dir'], help_text=_HELP)
  if not (root / 'images').is_dir() or not (root / 'masks').is_dir():
    raise errors.UserError(f'{root}: has no folders images and masks; {_HELP}')
  found = []
  for path in exams.listing(root / 'images', ['.mha'], root=root):
    if not path.stem.endswith(fields['sequence']):
      continue
    mask = root / 'masks' / path.name
    if not links.present(root, mask):
      raise errors.UserError(f'{path} has no file of that name in masks/')
    found.append(Series(path.stem.partition('_')[0], path, mask))
  if not found:
    raise errors.UserError(f'no images/*{fields["sequence"]}.mha in {root}: {_HELP}')
  named = {'where': root, 'kind': 'patients', 'chosen': fields.get('test_exams', '')}
  test = exams.held_out([series.patient for series in found], **named)
  return {
    'train': [series for series in found if series.patient not in test],
    'test': [series for series in found if series.patient in test],
  }


def mid_slice(series: Series, *, masks_only: bool = False) -> disk_slices.Slice:
  """Returns the middle sagittal slice with square pixels, front on the left, head at the top.

  A mask without lumbar disks gives a slice without labels. masks_only: the image is not read; the
  slice has the mask in its place.
  """
  mask = _read(series.mask)
  image = mask if masks_only else _read(series.image)
  if image.GetSize() != mask.GetSize() or not np.allclose(
    image.GetSpacing(), mask.GetSpacing(), rtol=0.01
  ):
    raise errors.UserError(
      f'{series.mask}: mask of {mask.GetSize()} voxels of {mask.GetSpacing()} mm for an image of '
      f'{image.GetSize()} of {image.GetSpacing()} mm'
    )
  # axes after this: from the patient's right to left, front to back, feet to head
  voxels = sitk.GetArrayViewFromImage(mask)
  disks = np.where((voxels >= LABELS.start) & (voxels < LABELS.stop), voxels, 0).astype(np.int64)
  across = np.cumsum((disks > 0).sum(axis=(0, 1)))
  x = int(np.searchsorted(across, across[-1] / 2)) if across[-1] else len(across) // 2
  plane = sitk.GetArrayViewFromImage(image)[::-1, :, x].astype(np.float64)
  if not np.isfinite(plane).all():
    raise errors.UserError(f'{series.image}: has NaN or infinite values')
  _, deep, tall = mask.GetSpacing()
  zoom = np.array([tall, deep]) / min(tall, deep)
  return disk_slices.Slice(
    series.image.stem, series.mask, _square(plane, zoom, order=1), _square(disks[::-1, :, x], zoom)
  )


def _square(plane, zoom, *, order=0):
  """Returns the plane resampled by `zoom` (>= 1) per axis, the outer edges kept in place."""
  shape = np.maximum(1, np.round(plane.shape * zoom)).astype(int)
  rows, columns = ((np.arange(n) + 0.5) / z - 0.5 for n, z in zip(shape, zoom))
  grid = np.stack(np.meshgrid(rows, columns, indexing='ij'))
  return scipy.ndimage.map_coordinates(plane, grid, order=order, mode='nearest')


def _read(path):
  return sitk.DICOMOrient(itk.volume(path), 'LPS')


def _stamp(series):
  return exams.stamp([series.image, series.mask])


@functools.lru_cache(maxsize=4096)
def _count(series, stamp):
  chosen = disk_slices.choose([mid_slice(series, masks_only=True)], mode='every')
  return sum(len(usable) for _, usable in chosen)


Builder = Spider

"""Lumbar disks cropped from sagittal slices with label masks, from which contours are traced.

`dir` holds one of

- `images/NAME.png` with `masks/NAME.png` (also .jpg, .tif, .bmp, .npy, .npz; a mask needs a
  lossless format): the image's first channel, and the number of a disk, or 0, per pixel;
- volumes `NN.mat` with `I` and `GT` of equal shape, third axis left to right (Menezes-Reis et al.
  2016, labels 1..5 from L5/S1 up to L1/L2).

An exam is the part of NAME before its last underscore, or one volume. The last fifth of the exams
is the test set, or those that `test_exams` names ('all', or names with commas); no exam is in both
splits. Every label of every slice that `slices` chooses (see
`disk_slices.choose`) becomes a square crop of twice the disk's length (`tracing.crop`), with a
contour of 176 points in the order of Chen et al. 2021 (`tracing.trace`) and the mask inside it.
Slices show the front of the body on the left, the head at the top, and have square pixels.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data import store
from robustmed.data.files import exams, mat, pictures
from robustmed.data.spine import contours, disk_slices

DEFAULTS = {'dir': '', 'side': 128, 'slices': 'complete', 'test_exams': ''}
NOMINAL = {'train': 400, 'test': 100}  # the paper's: 80 and 20 exams of five disks
EXAMS = 20
_HELP = (
  'put images/NAME.png with masks/NAME.png there (a number per disk, NAME = <exam>_<slice>), '
  'or .mat volumes with I and GT'
)


class Exam(NamedTuple):
  name: str
  pairs: tuple[tuple[pathlib.Path, pathlib.Path | None], ...]  # image and mask; or one volume, None


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the examples per split, counted in the masks; without the folder, the paper's."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return dict(NOMINAL)
  return {
    name: sum(_count(exam, repr(_stamp(exam)), fields['slices']) for exam in found)
    for name, found in find(fields['dir'], test_exams=fields['test_exams']).items()
  }


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of exams of the test split, those without a usable label among them; without
  the folder, that of the paper."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return EXAMS
  return len(find(fields['dir'], test_exams=fields['test_exams'])['test'])


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, the side and the choice of slices."""
  disk_slices.check_fields(fields)
  files = {
    name: [[exam.name, _stamp(exam)] for exam in found]
    for name, found in find(fields['dir'], test_exams=fields['test_exams']).items()
  }
  return {'side': fields['side'], 'slices': fields['slices'], 'files': files}


class DiskMasks(store.Builder):
  """Builds 'train' and 'test' from the folder of the module's docstring."""

  def features(self):
    return contours.features(self.fields['side'])

  def splits(self):
    found = find(self.fields['dir'], test_exams=self.fields['test_exams'])
    names = sorted(exam.name for split in found.values() for exam in split)
    group = {name: number for number, name in enumerate(names)}
    count = sizes(self.fields)
    for split, number in count.items():
      if not number and found[split]:
        raise errors.UserError(
          f'{self.fields["dir"]}: no mask of the {split} exams has a usable label; {_HELP}'
        )
    first = {'train': 0, 'test': count['train']}
    return {
      name: self._examples(found[name], group, first=first[name]) for name in found if found[name]
    }

  def _examples(self, found, group, *, first) -> Iterator[dict[str, Any]]:
    for exam in found:
      chosen = disk_slices.choose(slices(exam), mode=self.fields['slices'], counts=self.counts)
      for row in disk_slices.examples(
        chosen, side=self.fields['side'], group=group[exam.name], first=first, counts=self.counts
      ):
        first += 1
        yield row


def find(folder: str, *, test_exams: str = '') -> dict[str, list[Exam]]:
  """Returns the exams of 'train' and 'test', each sorted by name; see `exams.held_out`."""
  root = exams.root_of(folder, help_text=_HELP)
  if (root / 'images').is_dir() and (root / 'masks').is_dir():
    found = _paired(root)
  else:
    found = [Exam(path.stem, ((path, None),)) for path in exams.listing(root, ['.mat'], root=root)]
  if not found:
    raise errors.UserError(f'no images in {root}: {_HELP}')
  test = exams.held_out([exam.name for exam in found], where=root, chosen=test_exams)
  return {
    'train': [exam for exam in found if exam.name not in test],
    'test': [exam for exam in found if exam.name in test],
  }


def _paired(root):
  suffixes = (*pictures.PHOTOS, *pictures.ARRAYS)
  files = {}
  for kind in ('images', 'masks'):
    paths = exams.listing(root / kind, suffixes, root=root)
    files[kind] = {path.stem: path for path in paths}
    if len(files[kind]) < len(paths):
      raise errors.UserError(f'{root / kind}: two files of one name with different endings')
  for one, other in (('images', 'masks'), ('masks', 'images')):
    unpaired = sorted(files[one].keys() - files[other].keys())
    if unpaired:
      raise errors.UserError(f'{files[one][unpaired[0]]} has no file of that name in {other}/')
  for path in files['masks'].values():
    if path.suffix.lower() in ('.jpg', '.jpeg'):
      raise errors.UserError(f'{path}: .jpg changes the labels of a mask; store it as .png')
  pairs = {}
  for stem, path in files['images'].items():
    pairs.setdefault(exams.exam_of(path), []).append((path, files['masks'][stem]))
  return [Exam(name, tuple(pairs[name])) for name in sorted(pairs)]


def slices(exam: Exam) -> Iterator[disk_slices.Slice]:
  """Yields the slices of an exam in the order of their names, or from left to right."""
  for image_path, mask_path in exam.pairs:
    if mask_path is None:
      yield from _volume(image_path)
      continue
    image, mask = pictures.grey(image_path), pictures.labels(mask_path)
    if image.shape != mask.shape:
      raise errors.UserError(
        f'{mask_path}: mask of {list(mask.shape)} pixels for an image of {list(image.shape)}'
      )
    yield disk_slices.Slice(image_path.stem, mask_path, image, mask)


def _volume(path):
  with pictures.opened(path) as file:
    content = mat.read(file, ['I', 'GT'])
    missing = [key for key in ('I', 'GT') if key not in content]
    if missing:
      raise errors.UserError(f'{path}: has no {missing[0]!r}; needs I and GT [h, w, left to right]')
    volume, mask = (np.asarray(content[key], np.float64) for key in ('I', 'GT'))
  if volume.shape != mask.shape:
    raise errors.UserError(f'{path}: I is {list(volume.shape)} and GT is {list(mask.shape)}')
  mask = pictures.checked_labels(mask, path, ndim=3)
  if not np.isfinite(volume).all():
    raise errors.UserError(f'{path}: I has NaN or infinite values')
  for z in range(volume.shape[2]):
    yield disk_slices.Slice(f'{path.stem}_{z:02d}', path, volume[..., z], mask[..., z])


def _stamp(exam):
  return exams.stamp([path for pair in exam.pairs for path in pair if path])


@functools.lru_cache(maxsize=4096)
def _count(exam, stamp, mode):
  return sum(len(usable) for _, usable in disk_slices.choose(slices(exam), mode=mode))


Builder = DiskMasks

"""Lumbar disk crops with contours: a folder of .mat or .npz files (Chen et al. 2021, section 3.1).

Each file holds `img` [H, W], a square crop centred on one disk, and `shape` [176, 2], its closed
contour as (x, y) in pixels with pieces left, bottom, right, top. Files are named
`<patient>_<disk>.npz` (or .mat): the part before the last underscore is the patient. The split is
the first of these that exists:

- sub-folders `train/` and `test/`;
- list files `train.txt` and `test.txt` with one file name a line;
- else the last fifth of the patients in alphabetical order is the test set.

`test_exams` names the patients of the test set instead: 'all', or names with commas.

No patient may be in both splits. Images are min-max normalised and resized to side x side; a file
that also holds `normalised`, true, has grey values in [0, 1] already, which do not change.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import skimage.transform

from robustmed import errors
from robustmed.data import store
from robustmed.data.files import exams, mat, pictures
from robustmed.data.spine import contours
from robustmed.process import files, links

DEFAULTS = {'dir': '', 'side': 128, 'test_exams': ''}
NOMINAL = {'train': 400, 'test': 100}  # 80 and 20 patients of five disks
PATIENTS = 20
_KEYS = ('img', 'shape', 'normalised')
SUFFIXES = ('.mat', '.npz')
# Files differ in whether the first pixel is 0, 0.5 or 1, so one pixel beyond the edge is allowed.
TOLERANCE = 1.0
_HELP = (
  'put one .mat or .npz file per disk there, named <patient>_<disk>, with img [H, W] and shape '
  '[176, 2]; the public stand-in is SSMSpine (https://github.com/jiasongchen/SSMSpine), '
  'or use the phantom_lumbar_disks source, which needs no files'
)


class File(NamedTuple):
  path: pathlib.Path
  patient: str


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of files per split; without the folder, that of the paper."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return dict(NOMINAL)
  return {
    name: len(listed)
    for name, listed in find(fields['dir'], test_exams=fields['test_exams']).items()
  }


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of patients of the test split; without the folder, that of the paper."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return PATIENTS
  return len(
    {file.patient for file in find(fields['dir'], test_exams=fields['test_exams'])['test']}
  )


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, and the side."""
  contours.check_side(fields['side'])
  rows = [
    [name, *stamp]
    for name, listed in find(fields['dir'], test_exams=fields['test_exams']).items()
    for stamp in exams.stamp([file.path for file in listed])
  ]
  return {'side': fields['side'], 'files': rows}


class LumbarDisks(store.Builder):
  """Builds 'train' and 'test' from the folder of the module's docstring."""

  def features(self):
    return contours.features(self.fields['side'])

  def splits(self):
    found = find(self.fields['dir'], test_exams=self.fields['test_exams'])
    patients = sorted({file.patient for listed in found.values() for file in listed})
    group = {patient: number for number, patient in enumerate(patients)}
    first = {'train': 0, 'test': len(found['train'])}
    return {
      name: self._examples(found[name], group, first=first[name]) for name in found if found[name]
    }

  def _examples(self, listed, group, *, first) -> Iterator[dict[str, Any]]:
    for position, file in enumerate(listed):
      image, contour, kept = _read(file.path)
      image, contour = resize(image, contour, side=self.fields['side'], keep_range=kept)
      yield contours.example(
        image, contour, index=first + position, group=group[file.patient], name=file.path.stem
      )


def find(folder: str | pathlib.Path, *, test_exams: str = '') -> dict[str, list[File]]:
  """Returns the files of 'train' and 'test', each sorted by name, both with at least one.

  test_exams: see `exams.held_out`; 'train' may then be empty.
  """
  root = exams.root_of(str(folder), help_text=_HELP)
  if test_exams:
    split = _by_patient(_everything(root), root=root, chosen=test_exams)
  elif (root / 'train').is_dir() and (root / 'test').is_dir():
    split = {name: _listing(root / name, root=root) for name in ('train', 'test')}
  elif all(links.present(root, root / f'{name}.txt') for name in ('train', 'test')):
    split = {name: _listed(root, f'{name}.txt') for name in ('train', 'test')}
  else:
    split = _by_patient(_listing(root, root=root), root=root)
  if not any(split.values()):
    raise errors.UserError(f'no .mat or .npz file in {root}: {_HELP}')
  for name, listed in split.items():
    if not listed and not test_exams:
      raise errors.UserError(
        f'{root}: the {name} split has no .mat or .npz file; at least two patients are needed'
      )
  both = {file.patient for file in split['train']} & {file.patient for file in split['test']}
  if both:
    raise errors.UserError(
      f'{root}: patient {min(both)} is in train and in test; keep a patient in one of them'
    )
  return split


def _file(path):
  return File(path, exams.exam_of(path))


def _listing(folder, *, root):
  return [_file(path) for path in exams.listing(folder, SUFFIXES, root=root)]


def _listed(root, name):
  lines = files.read_text(root / name).splitlines()
  paths = sorted(root / line.strip() for line in lines if line.strip())
  for path, following in zip(paths, [*paths[1:], None]):
    links.inside(root, path, listed=name)
    if path == following:
      raise errors.UserError(f'{root / name}: lists {path.name} twice')
  return [_file(path) for path in paths]


def _everything(root):
  """All files, whatever split the folder gives them."""
  folders = [root / name for name in ('train', 'test') if (root / name).is_dir()]
  return [file for folder in folders or [root] for file in _listing(folder, root=root)]


def _by_patient(listed, *, root, chosen=''):
  if not listed:
    return {'train': [], 'test': []}
  names = [file.patient for file in listed]
  held = exams.held_out(names, where=root, kind='patients', chosen=chosen)
  return {
    'train': [file for file in listed if file.patient not in held],
    'test': [file for file in listed if file.patient in held],
  }


def read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Returns image [H, W] in [0, 1] and contour [176, 2]; a bad file is a `UserError`."""
  return _read(path)[:2]


def _read(path):
  image, contour, kept = _load(path)
  if image.ndim != 2 or min(image.shape) < 2:
    raise errors.UserError(f'{path}: img must be a grey image [H, W], not {list(image.shape)}')
  if contour.shape != (contours.NUM_POINTS, 2):
    raise errors.UserError(
      f'{path}: shape must be [{contours.NUM_POINTS}, 2] points (x, y), not {list(contour.shape)}'
    )
  for key, value in (('img', image), ('shape', contour)):
    if not np.isfinite(value).all():
      raise errors.UserError(f'{path}: {key} has NaN or infinite values')
  height, width = image.shape
  if (contour < -TOLERANCE).any() or (contour > [width, height]).any():
    raise errors.UserError(f'{path}: the contour leaves the image of {width} x {height} pixels')
  low, high = image.min(), image.max()
  if low == high:
    raise errors.UserError(f'{path}: img is constant')
  if kept and (low < 0 or high > 1):
    raise errors.UserError(f'{path}: is marked normalised, but img goes from {low:g} to {high:g}')
  return image if kept else (image - low) / (high - low), contour, kept


def _load(path):
  with pictures.opened(path) as file:
    if path.suffix.lower() == '.npz':
      archive = files.archived_arrays(file)
      content = {key: archive[key] for key in _KEYS if key in archive}
    else:
      content = mat.read(file, _KEYS)
    missing = [key for key in ('img', 'shape') if key not in content]
    if missing:
      raise errors.UserError(f'{path}: has no {missing[0]!r}; needs img [H, W] and shape [176, 2]')
    image, contour = (np.asarray(content[key], np.float64) for key in ('img', 'shape'))
    return image, contour, bool(np.all(content.get('normalised', False)))


def resize(
  image: np.ndarray, contour: np.ndarray, *, side: int, keep_range: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Returns image and contour at side x side, still aligned; unchanged if that is their size.

  A resized image is min-max normalised again, unless `keep_range`.
  """
  height, width = image.shape
  if (height, width) == (side, side):
    return image, contour
  scaled = skimage.transform.resize(
    image, (side, side), order=1, mode='edge', anti_aliasing=max(height, width) > side
  )
  if not keep_range:
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min())
  return scaled, (contour + 0.5) * (side / np.array([width, height])) - 0.5


def write(
  folder: str | pathlib.Path, image: np.ndarray, contour: np.ndarray, *, patient: int, disk: int
) -> pathlib.Path:
  """Writes one file of this source, whole or not at all, and returns its path.

  image: [h, w]; contour: [176, 2]. An image with values in [0, 1], attacked or not, is marked as
  normalised and read back bit by bit at the same side; any other is min-max normalised when read.
  """
  path = pathlib.Path(folder) / f'patient{patient:04d}_{disk:05d}.npz'
  with files.replacing(path) as temporary:
    inside = bool(np.min(image) >= 0 and np.max(image) <= 1)
    np.savez(temporary, img=image, shape=contour, normalised=inside)
  return path


Builder = LumbarDisks

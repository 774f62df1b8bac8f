"""ISBI 2015 cephalograms (Wang et al. 2016), in two layouts, with landmarks of two readers.

That of the challenge: `RawImage/*/NNN.bmp` (or .jpg, .png) and `400_senior/NNN.txt`,
`400_junior/NNN.txt` beside it or under `AnnotationsByMD`; the first 19 lines of a file are `x,y`,
the rest is not read. That of the Kaggle copy: `cepha400/NNN.jpg` with `train_senior.csv`,
`test1_senior.csv` and `test2_senior.csv` (image_path, 1_x, 1_y, ..., 19_x, 19_y).

Coordinates are pixels of the original 1935 x 2400 frame, whatever the size of the images. `reader`
is 'mean' (of both readers, truncated to whole pixels; where only one annotated, that one), 'senior'
or 'junior'. By number, 1 to 150 are the training set, 151 to 200 validation, and the test set is
201 to 300 (`test` 'test1') or 301 to 400 ('test2'). 038 and 283, and 144 and 173, are the same
radiographs: `drop_duplicates` leaves 038 and 144 out of the training set.
"""

import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data import store
from robustmed.data.cephalograms import points as cephalograms
from robustmed.data.files import exams, numbers, pictures
from robustmed.process import files, links

DEFAULTS = {
  'dir': '',
  **cephalograms.SIZE_FIELDS,
  'reader': 'mean',
  'test': 'test1',
  'drop_duplicates': False,
}
READERS = ('senior', 'junior')
DUPLICATES = ((38, 283), (144, 173))  # the first of each is a training image
_RANGES = {'train': (1, 150), 'validation': (151, 200)}
_TESTS = {'test1': (201, 300), 'test2': (301, 400)}
_COUNT = len(cephalograms.LANDMARKS)
_HELP = (
  'unpack RawImage and AnnotationsByMD of the ISBI 2015 challenge there, or cepha400 and its '
  'senior .csv files'
)


class File(NamedTuple):
  number: int
  image: pathlib.Path
  # per reader: (text file, None), or (table, its row, counted from 1 as in an editor)
  readings: Mapping[str, tuple[pathlib.Path, int | None]]


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of images per split; without the folder, that of the whole set."""
  if fields['dir'] and pathlib.Path(fields['dir']).expanduser().is_dir():
    return {name: len(listed) for name, listed in find(fields).items()}
  dropped = len(DUPLICATES) if fields['drop_duplicates'] else 0
  return {'train': 150 - dropped, 'validation': 50, 'test': 100}


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of images of the test split, each of which is a group."""
  return sizes(fields)['test']


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, and all fields but the folder."""
  cephalograms.check(fields)
  found = {
    name: exams.stamp(
      path
      for file in listed
      for path in (file.image, *(path for path, _ in file.readings.values()))
    )
    for name, listed in find(fields).items()
  }
  return {'files': found, **{name: fields[name] for name in DEFAULTS if name != 'dir'}}


class Ceph(store.Builder):
  """Builds 'train', 'validation' and 'test' from the folder of the module's docstring."""

  def features(self):
    return cephalograms.features(self.fields)

  def splits(self):
    found = find(self.fields)
    there = {file.number for listed in found.values() for file in listed}
    self.counts['duplicates_kept'] = sum({one, two} <= there for one, two in DUPLICATES)
    first, out = 0, {}
    for name, listed in found.items():
      out[name] = self._examples(listed, first=first)
      first += len(listed)
    return out

  def _examples(self, listed, *, first) -> Iterator[dict[str, Any]]:
    for index, file in enumerate(listed, start=first):
      points = [read_points(*file.readings[name]) for name in sorted(file.readings)]
      self.counts['images_of_one_reader'] += len(points) == 1
      yield cephalograms.example(
        read_image(file.image),
        np.trunc(np.mean(points, axis=0)) if self.fields['reader'] == 'mean' else points[0],
        self.fields,
        index=index,
        name=f'{file.number:03d}',
      )


def find(fields: Mapping[str, Any]) -> dict[str, list[File]]:
  """Returns the files of 'train', 'validation' and 'test', each sorted by number."""
  test = errors.lookup(_TESTS, fields['test'], kind='test set of cephalograms')
  errors.lookup(dict.fromkeys(('mean', *READERS)), fields['reader'], kind='reader of cephalograms')
  root = exams.root_of(fields['dir'], help_text=_HELP)
  if (root / 'RawImage').is_dir():
    folders = [path for path in sorted((root / 'RawImage').iterdir()) if path.is_dir()]
    images = _numbered(root, [root / 'RawImage', *folders])
    readings = _text_files(root, images)
  elif (root / 'cepha400').is_dir():
    images = _numbered(root, [root / 'cepha400'])
    readings = _tables(root)
  else:
    raise errors.UserError(f'{root}: has neither RawImage nor cepha400; {_HELP}')
  out = {}
  for name, (low, high) in {**_RANGES, 'test': test}.items():
    numbers = [number for number in sorted(images) if low <= number <= high]
    if name == 'train' and fields['drop_duplicates']:
      numbers = [number for number in numbers if number not in dict(DUPLICATES)]
    if not numbers:
      raise errors.UserError(f'{root}: has no image numbered {low} to {high} ({name}); {_HELP}')
    out[name] = [_file(number, images, readings, fields['reader']) for number in numbers]
  return out


def _file(number, images, readings, reader):
  wanted = READERS if reader == 'mean' else (reader,)
  mine = {name: readings[name][number] for name in wanted if number in readings.get(name, {})}
  if not mine:
    raise errors.UserError(
      f'{images[number]}: has no annotation of number {number:03d} by the '
      f'{reader if reader != "mean" else "senior or junior"} reader; {_HELP}'
    )
  return File(number, images[number], mine)


def _numbered(root, folders):
  images = {}
  listed = (exams.listing(folder, pictures.PHOTOS, root=root) for folder in folders)
  for path in itertools.chain.from_iterable(listed):
    if not path.stem.isdecimal():
      raise errors.UserError(f'{path}: images must be named by number, like 001{path.suffix}')
    if int(path.stem) in images:
      raise errors.UserError(f'{path}: has the number of {images[int(path.stem)]} too; keep one')
    images[int(path.stem)] = path
  return images


def _text_files(root, images):
  out = {}
  for reader in READERS:
    for folder in (root / 'AnnotationsByMD' / f'400_{reader}', root / f'400_{reader}'):
      if folder.is_dir():
        paths = {number: folder / f'{number:03d}.txt' for number in images}
        out[reader] = {n: (path, None) for n, path in paths.items() if links.present(root, path)}
        break
  return out


def _tables(root):
  rows = {}
  for part in ('train', 'test1', 'test2'):
    path = root / f'{part}_senior.csv'
    if links.present(root, path):
      for row, cells in enumerate(_table(path)[1:], start=2):
        name = pathlib.PurePath(cells[0].strip()).stem if cells else ''
        if name.isdecimal():
          rows[int(name)] = (path, row)
  return {'senior': rows}


def _table(path):
  return files.csv_rows(path)


def read_points(path: pathlib.Path, row: int | None = None) -> np.ndarray:
  """Returns one reader's landmarks [19, 2] of a text file, or of one row of a table."""
  where = str(path)
  if row is None:
    lines = [line.split(',') for line in files.read_text(path).splitlines()[:_COUNT]]
  else:
    where = f'{path}, row {row}'
    cells = _table(path)[row - 1][1:]
    lines = [cells[2 * n : 2 * n + 2] for n in range(_COUNT)]
  points = []
  for line in lines:
    try:
      x, y = (numbers.parsed(cell) for cell in line)
    except ValueError:
      break  # the lines after the landmarks, in a file with too few of them
    points.append((x, y))
  if len(points) < _COUNT:
    raise errors.UserError(f'{where}: has {len(points)} landmarks (x,y), must begin with {_COUNT}')
  points = np.array(points)
  bad = ~((points >= 0) & (points <= cephalograms.FRAME)).all(axis=1)
  if bad.any():
    n = int(np.argmax(bad))
    width, height = cephalograms.FRAME
    raise errors.UserError(
      f'{where}: landmark {n + 1} at {points[n].tolist()} is outside the {width} x {height} frame'
    )
  return points


def read_image(path: pathlib.Path) -> np.ndarray:
  """Returns the radiograph [h, w] in [0, 1]; the shape must be that of the original frame.

  [h, w, 3] where the three channels of a file without loss differ, as those of attacked images; of
  other files the first one counts, since JPEG adds colours.
  """
  array = pictures.read(path)
  if array.ndim == 3 and not (_keeps_colours(path) and _coloured(array)):
    array = array[..., 0]
  if array.dtype != np.uint8:
    raise errors.UserError(f'{path}: must be an 8-bit image, not {array.dtype}')
  height, width = array.shape[:2]
  frame = cephalograms.FRAME[0] / cephalograms.FRAME[1]
  if not 0.97 < width / height / frame < 1.03:
    raise errors.UserError(
      f'{path}: is {width} x {height} pixels, which is not the shape of 1935 x 2400 that its '
      'landmarks are given in'
    )
  return array.astype(np.float32) / 255


def _keeps_colours(path):
  return path.suffix.lower() not in ('.jpg', '.jpeg')


def _coloured(array):
  """True if an array [h, w, c] has three channels that differ."""
  return array.shape[-1] == 3 and bool((array != array[..., :1]).any())


Builder = Ceph

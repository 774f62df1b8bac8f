"""BCCD blood cells (https://github.com/Shenggan/BCCD_Dataset, MIT), Pascal VOC annotations.

`dir` is the repository or its folder `BCCD`, with `Annotations/NAME.xml` and `JPEGImages/NAME.jpg`.
The classes are Platelets, RBC and WBC, in that order. Boxes without area are dropped and boxes that
leave the image are clipped to it; both are counted.

The split is our own, by image: numpy's RandomState(13) shuffles the names from alphabetical order;
the first tenth (rounded up) is the test set, the next tenth of the rest (rounded up) the validation
set. The whole set of 364 gives 294, 33 and 37 images; a subset is split by the same rule.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data import store
from robustmed.data.cells import boxed
from robustmed.data.files import exams, pictures, xml

DEFAULTS = {'dir': '', **boxed.SIZE_FIELDS}
CLASSES = ('Platelets', 'RBC', 'WBC')
NOMINAL = {'train': 294, 'validation': 33, 'test': 37}
_SEED = 13
_HELP = (
  'put the folders Annotations and JPEGImages of https://github.com/Shenggan/BCCD_Dataset there, '
  'or use the phantom_bccd source, which needs no files'
)


class File(NamedTuple):
  annotation: pathlib.Path
  image: pathlib.Path


class Annotation(NamedTuple):
  size: tuple[int, int] | None  # width and height that the file states
  boxes: np.ndarray  # [n, 4], as written
  classes: np.ndarray  # [n]


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of images per split; without the folder, that of the whole set."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return dict(NOMINAL)
  return {name: len(listed) for name, listed in find(fields['dir']).items()}


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of images of the test split, each of which is a group."""
  return sizes(fields)['test']


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, and the sizes of the stored images."""
  boxed.check(fields)
  found = {
    name: exams.stamp(path for file in listed for path in file)
    for name, listed in find(fields['dir']).items()
  }
  return {'files': found, **{name: fields[name] for name in boxed.SIZE_FIELDS}}


class Bccd(store.Builder):
  """Builds 'train', 'validation' and 'test' from the folder of the module's docstring."""

  def features(self):
    return boxed.features(self.fields)

  def splits(self):
    first, out = 0, {}
    for name, listed in find(self.fields['dir']).items():
      out[name] = self._examples(listed, first=first)
      first += len(listed)
    return out

  def _examples(self, listed, *, first) -> Iterator[dict[str, Any]]:
    fields = self.fields
    for index, file in enumerate(listed, start=first):
      picture, annotation = read(file)
      height, width = picture.shape[:2]
      inside = np.clip(annotation.boxes, 0, [width, height, width, height])
      self.counts['boxes_clipped'] += int((inside != annotation.boxes).any(axis=1).sum())
      solid = (inside[:, 2:] > inside[:, :2]).all(axis=1)
      self.counts['boxes_without_area'] += int((~solid).sum())
      yield boxed.example(
        boxed.letterbox(
          picture,
          inside[solid],
          height=fields['height'],
          width=fields['width'],
          long_side=fields['long_side'],
        ),
        annotation.classes[solid],
        max_boxes=fields['max_boxes'],
        index=index,
        name=file.annotation.stem,
      )


def find(folder: str | pathlib.Path) -> dict[str, list[File]]:
  """Returns the files of 'train', 'validation' and 'test', each sorted by name."""
  root = exams.root_of(str(folder), help_text=_HELP)
  if (root / 'BCCD').is_dir():
    root /= 'BCCD'
  if not (root / 'Annotations').is_dir() or not (root / 'JPEGImages').is_dir():
    raise errors.UserError(f'{root}: has no folders Annotations and JPEGImages; {_HELP}')
  images = {
    path.stem: path for path in exams.listing(root / 'JPEGImages', pictures.PHOTOS, root=root)
  }
  files = []
  for path in exams.listing(root / 'Annotations', ['.xml'], root=root):
    if path.stem not in images:
      raise errors.UserError(f'{path}: its image JPEGImages/{path.stem}.jpg is not there')
    files.append(File(path, images.pop(path.stem)))
  if images:
    extra = min(images.values())
    raise errors.UserError(f'{extra}: has no annotation Annotations/{extra.stem}.xml')
  if len(files) < 3:
    raise errors.UserError(f'{root}: has {len(files)} images; at least three needed; {_HELP}')
  return split(files)


def split(files: list[File]) -> dict[str, list[File]]:
  """Returns files, given in alphabetical order, split by the rule of the module's docstring."""
  order = np.random.RandomState(_SEED).permutation(len(files))
  test = math.ceil(len(files) / 10)
  validation = math.ceil((len(files) - test) / 10)
  parts = {
    'train': order[test + validation :],
    'validation': order[test : test + validation],
    'test': order[:test],
  }
  return {name: [files[i] for i in sorted(part)] for name, part in parts.items()}


def read(file: File) -> tuple[np.ndarray, Annotation]:
  """Returns the picture [h, w, 3] in [0, 1] and its annotation, checked against each other."""
  annotation = parse(file.annotation)
  picture = pictures.read(file.image)
  if picture.ndim == 2:
    picture = np.repeat(picture[..., None], 3, axis=-1)
  if picture.dtype != np.uint8 or picture.shape[-1] < 3:
    raise errors.UserError(f'{file.image}: must be an 8-bit grey or colour image')
  height, width = picture.shape[:2]
  if annotation.size not in (None, (width, height)):
    raise errors.UserError(
      f'{file.annotation}: is for an image of {annotation.size[0]} x {annotation.size[1]} pixels, '
      f'but {file.image.name} has {width} x {height}'
    )
  return picture[..., :3].astype(np.float32) / 255, annotation


def parse(path: pathlib.Path) -> Annotation:
  """Returns the annotation of a Pascal VOC file; document types and entities are a `UserError`."""
  root = xml.read(path, kind='a Pascal VOC file')
  size = root.find('size')
  boxes, classes = [], []
  for number, node in enumerate(root.findall('object'), start=1):
    where = f'{path}: object {number}'
    name = (node.findtext('name') or '').strip()
    if name not in CLASSES:
      raise errors.UserError(f'{where} is a {name!r}; known are {", ".join(CLASSES)}')
    box = [
      xml.number(node, f'bndbox/{key}', where=where) for key in ('xmin', 'ymin', 'xmax', 'ymax')
    ]
    if box[2] < box[0] or box[3] < box[1]:
      raise errors.UserError(f'{where} has a box with max below min: {box}')
    boxes.append(box)
    classes.append(CLASSES.index(name))
  stated = None
  if size is not None:
    stated = tuple(int(xml.number(size, key, where=f'{path}: size')) for key in ('width', 'height'))
  return Annotation(stated, np.array(boxes, float).reshape(-1, 4), np.array(classes, np.int32))


Builder = Bccd

"""SSMSpine (https://github.com/jiasongchen/SSMSpine): synthetic lumbar MR made of real textures.

The public replacement of the paper's cohort: 80 train and 20 test textures (patients), 125 virtual
shapes of each. `dir` holds the unpacked archives: `.pt` files in sub-folders whose names contain
`train` and `test` (as in `SSMSpine_Train`), or all in one folder, then split by texture. Every file
is a dictionary of `torch.save` with `img` [h, w] and `disk` [5, 176, 2], (x, y) in pixels; nothing
else is read, and no code is run (`torch_archive`).

The texture of a file is the part of its name that `texture` matches (a regular expression with one
group; the default takes the part before the last underscore; a name that does not match is its own
texture). `shapes` is how many files of a texture are used, the first by name; 0 is all. One, the
default, gives 400 train and 100 test disks, the numbers of the paper. Each disk is a crop of twice
its length, with the contour points of the file.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data import store
from robustmed.data.files import exams, torch_archive
from robustmed.data.spine import contours, disk_slices
from robustmed.process import links

DISKS = 5
DEFAULTS = {'dir': '', 'side': 128, 'texture': '(.+)_', 'shapes': 1}
NOMINAL = {'train': 80 * DISKS, 'test': 20 * DISKS}  # of one shape per texture
_HELP = 'unpack SSMSpine_Train.zip and SSMSpine_Test.zip there (sub-folders with .pt files)'


class File(NamedTuple):
  path: pathlib.Path
  texture: str


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the disks per split, five a file; without the folder, those of the whole data set."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return {name: count * (fields['shapes'] or 125) for name, count in NOMINAL.items()}
  return {name: DISKS * len(listed) for name, listed in find(fields).items()}


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of textures of the test split; without the folder, of the whole set."""
  if not fields['dir'] or not pathlib.Path(fields['dir']).expanduser().is_dir():
    return NOMINAL['test'] // DISKS
  return len({file.texture for file in find(fields)['test']})


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes, times and textures, and the side."""
  contours.check_side(fields['side'])
  if fields['shapes'] < 0:
    raise errors.UserError(f'data field shapes must be 0 (all) or more, not {fields["shapes"]}')
  files = {
    name: [
      [file.texture, *stamp]
      for file, stamp in zip(listed, exams.stamp([file.path for file in listed]))
    ]
    for name, listed in find(fields).items()
  }
  return {'side': fields['side'], 'files': files}


class Ssmspine(store.Builder):
  """Builds 'train' and 'test' from the folders of the module's docstring."""

  def features(self):
    return contours.features(self.fields['side'])

  def splits(self):
    found = find(self.fields)
    textures = sorted({file.texture for listed in found.values() for file in listed})
    group = {texture: number for number, texture in enumerate(textures)}
    first = {'train': 0, 'test': DISKS * len(found['train'])}
    return {name: self._examples(found[name], group, first=first[name]) for name in found}

  def _examples(self, listed, group, *, first) -> Iterator[dict[str, Any]]:
    for position, file in enumerate(listed):
      image, disks = read(file.path)
      for disk, contour in enumerate(disks):
        yield disk_slices.example(
          image,
          contour,
          side=self.fields['side'],
          path=file.path,
          counts=self.counts,
          index=first + DISKS * position + disk,
          group=group[file.texture],
          name=f'{file.path.stem}_d{disk + 1}',
        )


def find(fields: Mapping[str, Any]) -> dict[str, list[File]]:
  """Returns the files of 'train' and 'test', each sorted by name, both with at least one."""
  root = exams.root_of(fields['dir'], help_text=_HELP)
  pattern = _pattern(fields['texture'])
  split = {'train': [], 'test': []}
  unsorted = []
  for path in links.walk(root, endings=('.pt',)):
    if path.suffix != '.pt' or path.name.startswith('.'):
      continue
    links.inside(root, path)
    match = pattern.match(path.stem)
    file = File(path, match[1] if match else path.stem)
    above = ' '.join(path.relative_to(root).parts[:-1]).lower()
    matching = [name for name in split if name in above]
    (split[matching[0]] if len(matching) == 1 else unsorted).append(file)
  if not unsorted and not any(split.values()):
    raise errors.UserError(f'no .pt file in {root}: {_HELP}')
  if unsorted and any(split.values()):
    raise errors.UserError(f'{unsorted[0].path}: neither in a train nor in a test folder; {_HELP}')
  if unsorted:
    test = exams.held_out([file.texture for file in unsorted], where=root, kind='textures')
    for file in unsorted:
      split['test' if file.texture in test else 'train'].append(file)
  for name, listed in split.items():
    if not listed:
      raise errors.UserError(f'{root}: the {name} split has no .pt file; {_HELP}')
  both = {file.texture for file in split['train']} & {file.texture for file in split['test']}
  if both:
    raise errors.UserError(
      f'{root}: texture {min(both)} is in train and in test; set the data field texture so that it '
      "tells the patients' names apart"
    )
  return {name: _first_of_each(listed, fields['shapes']) for name, listed in split.items()}


def _pattern(text):
  try:
    pattern = re.compile(text)
  except re.error as error:
    raise errors.UserError(
      f'data field texture: {text!r} is no regular expression: {error}'
    ) from None
  if pattern.groups != 1:
    raise errors.UserError(f'data field texture: {text!r} must have exactly one (group)')
  return pattern


def _first_of_each(listed, shapes):
  seen = {}
  for file in listed:
    seen.setdefault(file.texture, []).append(file)
  return [file for texture in sorted(seen) for file in seen[texture][: shapes or None]]


def read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Returns image [h, w] and contours [5, 176, 2]; a bad file is a `UserError`."""
  content = torch_archive.read(path, ('img', 'disk'))
  for key, ndim in (('img', 2), ('disk', 3)):
    if key not in content:
      raise errors.UserError(f'{path}: has no {key!r}; needs img [h, w] and disk [5, 176, 2]')
    value = content[key]
    if value.dtype.kind not in 'biuf':
      raise errors.UserError(f'{path}: {key} is no array of numbers')
    value = value[0] if key == 'img' and value.ndim == 3 and len(value) == 1 else value
    if value.ndim != ndim:
      raise errors.UserError(f'{path}: {key} has shape {list(value.shape)}')
    if not np.isfinite(value).all():
      raise errors.UserError(f'{path}: {key} has NaN or infinite values')
    content[key] = value.astype(np.float64)
  image, disks = content['img'], content['disk']
  if disks.shape != (DISKS, contours.NUM_POINTS, 2):
    raise errors.UserError(
      f'{path}: disk must be [{DISKS}, {contours.NUM_POINTS}, 2] points (x, y), '
      f'not {list(disks.shape)}'
    )
  height, width = image.shape
  if (disks < -1).any() or (disks > [width, height]).any():
    raise errors.UserError(f'{path}: a contour leaves the image of {width} x {height} pixels')
  return image, disks


Builder = Ssmspine

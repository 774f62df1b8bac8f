"""Labelled abdominal CT as distributed: nnU-Net naming (FLARE, AbdomenCT-1K), AMOS, BTCV, MSD.

`layout` says how images and labels are named and what the labels mean; `images` and `labels` are
globs below `dir` that replace those of the layout, `organs` a label map that replaces its own, such
as 'pancreas=10 kidneys=2,3 liver=6 spleen=1'. An organ that is not in the map is never labelled.
"""

import fnmatch
import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.abdomen import ct_slices
from robustmed.data.decathlon import preprocess
from robustmed.data.files import exams, nifti
from robustmed.process import links

DEFAULTS = {
  'dir': '',
  'layout': 'flare21',
  'images': '',
  'labels': '',
  'organs': '',
  **ct_slices.FIELDS,
}
_HELP = (
  'put the images and label maps of one data set there as they were distributed (*.nii.gz) and '
  'name it in the data field layout'
)
_DEPTH = 100  # slices of a subject, approximately, without the folder
_AFFINE_ATOL = 0.05  # millimetres


class Layout(NamedTuple):
  """images, labels: globs; strip: the part in which names of an image and its labels differ."""

  images: tuple[str, ...]
  labels: tuple[str, ...]
  organs: Mapping[str, tuple[int, ...]]
  strip: str = '_0000$'
  skip: str = ''  # names of images to leave out, as those that are not CT


_BTCV = {'pancreas': (11,), 'kidneys': (2, 3), 'liver': (6,), 'spleen': (1,)}
LAYOUTS = {
  'flare21': Layout(
    ('**/*_0000.nii.gz',),
    ('**/*.nii.gz',),
    {'pancreas': (4,), 'kidneys': (2,), 'liver': (1,), 'spleen': (3,)},
  ),
  'flare22': Layout(
    ('**/*_0000.nii.gz',),
    ('**/*.nii.gz',),
    {'pancreas': (4,), 'kidneys': (2, 13), 'liver': (1,), 'spleen': (3,)},
  ),
  'amos': Layout(
    ('imagesTr/*.nii.gz', 'imagesVa/*.nii.gz'),
    ('labelsTr/*.nii.gz', 'labelsVa/*.nii.gz'),
    {'pancreas': (10,), 'kidneys': (2, 3), 'liver': (6,), 'spleen': (1,)},
    skip=r'^amos_0*([5-9]\d\d|[1-9]\d{3,})$',  # ids from 500 on are MR
  ),
  'btcv': Layout(('**/img*.nii.gz',), ('**/label*.nii.gz',), _BTCV, strip='^(img|label)'),
  'msd_spleen': Layout(('imagesTr/*.nii.gz',), ('labelsTr/*.nii.gz',), {'spleen': (1,)}),
  'totalsegmentator': Layout(
    ('**/ct.nii.gz', '**/*_ct.nii.gz'),
    ('**/*seg*.nii.gz',),
    {'pancreas': (7,), 'kidneys': (2, 3), 'liver': (5,), 'spleen': (1,)},
    strip='_(ct|seg)$',
  ),
}


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the slices per split; without the folder, about those of the paper."""
  ct_slices.check_fields(fields)
  if not _folder_exists(fields):
    return {
      n: _DEPTH * count for n, count in zip(ct_slices.SPLITS, fields['subjects'], strict=True)
    }
  return ct_slices.sizes(find(fields), fields)


def depths(fields: Mapping[str, Any]) -> list[int]:
  """Returns the slices of every test subject; without the folder, about those of the paper."""
  ct_slices.check_fields(fields)
  if not _folder_exists(fields):
    return [_DEPTH] * fields['subjects'][2]
  return ct_slices.depths(find(fields), fields)


def _folder_exists(fields):
  return bool(fields['dir']) and pathlib.Path(fields['dir']).expanduser().is_dir()


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns the files with their sizes and times, the label map and the fields."""
  ct_slices.check_fields(fields)
  stamps = [exams.stamp(pair) for pair in pairs(fields).values()]
  return json.dumps([stamps, sorted(organ_map(fields).items()), *ct_slices.key(fields)])


class Abdomen(ct_slices.CtBuilder):
  """Builds the subjects of the folder that the module's docstring describes."""

  def cases(self):
    return find(self.fields)

  def check(self, shown):
    known = organ_map(self.fields)
    missing = [organ for organ in ct_slices.ORGANS if organ in known and not shown[organ]]
    if missing:
      raise errors.UserError(
        f'{self.fields["dir"]}: no subject has label {" or ".join(map(str, known[missing[0]]))} '
        f'({missing[0]}); set the data field organs to the label map of this data set, without the '
        'organs that it does not have, e.g. "spleen=1"'
      )


arrange = ct_slices.arrange
windows = ct_slices.windows


def organ_map(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns the label numbers of each organ: those of the field, else of the layout."""
  layout = errors.lookup(LAYOUTS, fields['layout'], kind='layout')
  if not fields['organs']:
    return dict(layout.organs)
  found, known = {}, dict.fromkeys(ct_slices.ORGANS)
  for word in fields['organs'].split():
    match = re.fullmatch(r'([a-z]+)=(\d+(?:,\d+)*)', word)
    if not match:
      raise errors.UserError(
        f'data field organs must be like "kidneys=2,3 liver=6", not {fields["organs"]!r}'
      )
    errors.lookup(known, match[1], kind='organ')
    found[match[1]] = tuple(int(number) for number in match[2].split(','))
  return found


def pairs(fields: Mapping[str, Any]) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """Returns subject -> (image, label map), sorted by name, for images that have a label map."""
  layout = errors.lookup(LAYOUTS, fields['layout'], kind='layout')
  root = exams.root_of(fields['dir'], help_text=_HELP)
  images = _matching(root, (fields['images'],) if fields['images'] else layout.images)
  taken = set(images)
  labels = _matching(root, (fields['labels'],) if fields['labels'] else layout.labels)
  labels = [path for path in labels if path not in taken]
  for kind, found in (('images', images), ('labels', labels)):
    if not found:
      raise errors.UserError(
        f'{root}: no {kind} like {fields[kind] or " or ".join(getattr(layout, kind))} '
        f'(layout {fields["layout"]}); set the data field {kind} to a glob below that folder, or '
        f'{_HELP}'
      )
  name = lambda path: re.sub(layout.strip, '', path.name.removesuffix('.gz').removesuffix('.nii'))
  images = [path for path in images if not (layout.skip and re.search(layout.skip, name(path)))]
  if len(images) == len(labels) == 1:
    return {name(images[0]): (images[0], labels[0])}
  by_name: dict[str, pathlib.Path] = {}
  for path in labels:
    if name(path) in by_name:
      raise errors.UserError(f'{path} and {by_name[name(path)]}: two label maps of one subject')
    by_name[name(path)] = path
  found = {name(path): (path, by_name[name(path)]) for path in images if name(path) in by_name}
  if not found:
    raise errors.UserError(
      f'{root}: no label map has the name of an image ({images[0].name if images else "no CT"} '
      f'needs {name(images[0]) if images else "one"}); check the data fields layout and labels'
    )
  return dict(sorted(found.items()))


def _matching(root, patterns):
  return [
    links.inside(root, path)
    for path in links.walk(root, endings=nifti.SUFFIXES)
    if not path.name.startswith('.')
    and any(_fits(path.relative_to(root).parts, pattern.split('/')) for pattern in patterns)
  ]


def _fits(parts, patterns) -> bool:
  """Returns whether the parts of a path are those of a glob; ** stands for any number of them."""
  if not patterns:
    return not parts
  if patterns[0] == '**':
    return any(_fits(parts[n:], patterns[1:]) for n in range(len(parts) + 1))
  fits = bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0])
  return fits and _fits(parts[1:], patterns[1:])


def find(fields: Mapping[str, Any]) -> list[ct_slices.Case]:
  organs = organ_map(fields)
  return [
    ct_slices.Case(name, _depth(image), functools.partial(read, image, label, organs), str(image))
    for name, (image, label) in pairs(fields).items()
  ]


def _depth(path):
  """Returns the number of slices in a file's header."""
  header = nifti.header(path)
  return header.shape[nifti.order(header.affine)[0]]


def read(
  image: pathlib.Path, label: pathlib.Path, organs: Mapping[str, tuple[int, ...]]
) -> preprocess.Volume:
  """Returns a subject [z, y, x, 1] with labels in the order of `ct_slices.ORGANS`, the rest 0."""
  values, numbers = nifti.read(image), nifti.labels(label)
  if values.array.shape != numbers.array.shape:
    raise errors.UserError(
      f'{label}: {list(numbers.array.shape)} voxels for an image of {list(values.array.shape)} '
      f'({image.name}); labels must lie on the grid of their image'
    )
  if not np.allclose(values.affine, numbers.affine, atol=_AFFINE_ATOL):
    raise errors.UserError(
      f'{label}: its affine is not that of {image.name}, so its voxels lie elsewhere; resample one '
      'onto the grid of the other'
    )
  own = np.zeros(numbers.array.shape, np.int8)
  for place, organ in enumerate(ct_slices.ORGANS, start=1):
    own[np.isin(numbers.array, organs.get(organ, ()))] = place
  spacing = nifti.spacing(values.affine)[list(nifti.order(values.affine))]
  return preprocess.Volume(
    np.ascontiguousarray(nifti.oriented(values), np.float32)[..., None],
    np.ascontiguousarray(nifti.oriented(values._replace(array=own))),
    tuple(float(value) for value in spacing),
  )


Builder = Abdomen

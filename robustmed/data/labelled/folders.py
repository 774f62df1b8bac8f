"""What is known of a folder from its names and tables alone; recognises its layout."""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from robustmed import errors
from robustmed.data.files import exams
from robustmed.data.labelled import formats

KINDS = ('segmentation', 'boxes', 'landmarks', 'classes')
PARTS = ('train', 'validation', 'test')
_PART_NAMES = {
  'train': ('train', 'training', 'tr'),
  'validation': ('val', 'valid', 'validation'),
  'test': ('test', 'testing', 'ts'),
}


class Case(NamedTuple):
  """One labelled image. `label` is the file of a label map, boxes (rows of `Box`), landmarks
  (rows of (x, y)) or the number of a class."""

  name: str
  images: tuple[pathlib.Path, ...]  # one per channel, or one with all channels
  label: Any
  part: str = ''  # of `PARTS`, where the folder says
  tables: tuple[pathlib.Path, ...] = ()  # the files that `label` was read from


class Box(NamedTuple):
  """In pixels from the upper left corner, or in fractions of the image's sides."""

  corners: tuple[float, float, float, float]  # x1, y1, x2, y2
  number: int  # of its class
  fractions: bool = False


class Folder(NamedTuple):
  """A folder of one layout."""

  root: pathlib.Path
  layout: str  # its name for people
  kind: str  # of `KINDS`
  cases: tuple[Case, ...]  # sorted by name
  # label maps: value of each class by name, the background first; None: the values that are there
  labels: Mapping[str, int] | None = None
  regions: Mapping[str, tuple[int, ...]] = {}  # overlapping classes, each a set of values
  ignore: int | None = None  # the value of voxels that do not count
  classes: tuple[str, ...] = ()  # of boxes, landmarks and classes
  channels: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()  # what is left out, for people


class Layout(NamedTuple):
  """How one layout is recognised (from the folder alone) and listed."""

  name: str
  matches: Callable[[pathlib.Path], bool]
  find: Callable[[pathlib.Path], Folder]
  needs: str  # what it consists of, for people


def images_of(root: pathlib.Path, folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {name without ending: file} of the images in a folder; two of a name are refused."""
  found: dict[str, pathlib.Path] = {}
  for path in exams.listing(folder, formats.SUFFIXES, root=root):
    name = formats.stem_of(path)
    if name in found:
      raise errors.UserError(
        f'{path}: has the same name as {found[name].name}; keep one of the two files'
      )
    found[name] = path
  return found


def part_of(name: str) -> str:
  """Returns the part ('train', 'validation', 'test') that a folder's or a list's name means."""
  return next((part for part, names in _PART_NAMES.items() if name.lower() in names), '')


def check_parts(values: Iterable[tuple[str, str]]) -> None:
  """Raises a `UserError` for the first of (where, name of a part) that is none, if others are."""
  named = [(where, value) for where, value in values if value]
  if any(part_of(value) for _, value in named):
    for where, value in named:
      if not part_of(value):
        raise errors.UserError(f'{where}: {value[:60]!r} is no part; train, validation or test')


def part_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {part: folder} of the folders in `root` whose names are parts, else {'': root}."""
  found = {}
  for path in sorted(root.iterdir()):
    if path.is_dir() and part_of(path.name):
      other = found.setdefault(part_of(path.name), path)
      if other != path:
        raise errors.UserError(
          f'{root}: {other.name} and {path.name} are both {part_of(path.name)}; keep one of them'
        )
  return found or {'': root}


def sorted_cases(cases: Iterable[Case], *, where: pathlib.Path) -> tuple[Case, ...]:
  """Returns the cases sorted by name; none, or two of a name, are a `UserError`."""
  ordered = sorted(cases, key=lambda case: (case.name, case.part))
  if not ordered:
    raise errors.UserError(f'{where}: has no labelled images')
  for one, other in itertools.pairwise(ordered):
    if one.name == other.name:
      raise errors.UserError(f'{where}: has two cases of the name {one.name!r}; rename one')
  return tuple(ordered)


def recognise(root: pathlib.Path, layouts: Mapping[str, Layout], *, layout: str) -> Folder:
  """Returns the folder by the layout of that name; 'auto' takes the first one that matches.

  A folder whose only content is another folder stands for it.
  """
  if layout != 'auto':
    return _checked(errors.lookup(layouts, layout, kind='layout of a folder').find(root))
  inner = _only_folder(root)
  for place in (root, *([inner] if inner else [])):
    for known in layouts.values():
      if known.matches(place):
        return _checked(known.find(place))
  raise errors.UserError(f'{root}: is of no known layout; {help_of(layouts.values())}')


def _checked(folder: Folder) -> Folder:
  """Returns the folder unless a name in it can be neither printed nor stored."""
  named = {
    'case': [case.name for case in folder.cases],
    'class': [*folder.classes, *(folder.labels or ()), *folder.regions],
    'channel': folder.channels,
  }
  for what, names in named.items():
    for name in names:
      if errors.NO_TEXT.search(name):
        raise errors.UserError(f'{folder.root}: {name[:60]!r} is no name for a {what}; rename it')
  return folder


def _only_folder(root) -> pathlib.Path | None:
  folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(('.', '_'))]
  return folders[0] if len(folders) == 1 else None


def help_of(layouts: Iterable[Layout]) -> str:
  """Returns what may be in a folder, in one sentence."""
  return 'put one of these there: ' + '; '.join(f'{one.name} ({one.needs})' for one in layouts)


def pair(
  images: Mapping[str, Any], labels: Mapping[str, pathlib.Path], *, where: Sequence[pathlib.Path]
) -> list[tuple[str, Any, pathlib.Path]]:
  """Returns (name, image, label) of equal names; a name without its partner is a `UserError`."""
  for one, other, folder in ((images, labels, where[1]), (labels, images, where[0])):
    unpaired = sorted(one.keys() - other.keys())
    if unpaired:
      found = one[unpaired[0]]
      path = found[0] if isinstance(found, tuple) else found
      raise errors.UserError(f'{path}: has no file of that name in {folder}')
  return [(name, images[name], labels[name]) for name in sorted(images)]

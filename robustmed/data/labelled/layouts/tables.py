"""Folders of images with tables: landmarks in a CSV, classes in a CSV or as folders."""

import math
import pathlib
import re
from collections.abc import Sequence

from robustmed import errors
from robustmed.data.files import exams, numbers
from robustmed.data.labelled import folders, formats, partition
from robustmed.process import files, links

_X = re.compile(r'^(.*?)[ _.-]?x$|^x[ _.-]?(\w+)$', re.I)
_Y = re.compile(r'^(.*?)[ _.-]?y$|^y[ _.-]?(\w+)$', re.I)
_AXIS = re.compile(r'^(.+[ _.-])([xy])$|^([xy])([ _.-]\w+)$')
_CLASS = ('class', 'label', 'diagnosis', 'target', 'category', 'dx')
_IMAGE = ('image', 'image_path', 'file', 'filename', 'file_name', 'name', 'path', 'id', 'image_id')
_PART = ('split', 'part', 'set', 'subset')


class Table:
  """The rows of a CSV with a header, whose first column names images."""

  def __init__(self, path: pathlib.Path):
    self.path, rows = path, partition.read_csv(path)
    self.header = [cell.strip() for cell in rows[0]] if rows else []
    self.rows = rows[1:]
    lower = [cell.lower() for cell in self.header]
    self.image = next((lower.index(name) for name in _IMAGE if name in lower), 0)
    self.part = next((lower.index(name) for name in _PART if name in lower), None)
    self.kind = next((lower.index(name) for name in _CLASS if name in lower), None)
    self.points = _point_columns(self.header)

  def cell(self, number: int, column: int) -> str:
    row = self.rows[number]
    if column >= len(row):
      raise errors.UserError(f'{self.path}, row {number + 2}: has {len(row)} cells')
    return row[column].strip()

  def check(self) -> None:
    """Raises a `UserError` where header and rows do not say one thing."""
    twice = next((name for name in self.header if name and self.header.count(name) > 1), None)
    if twice is not None:
      raise errors.UserError(f'{self.path}: has the column {twice[:60]} twice')
    alone = _unpaired(self.header)
    if self.points and alone:
      raise errors.UserError(f'{self.path}: has a column {alone} and none of its other axis')
    for number, row in enumerate(self.rows):
      if any(map(str.strip, row[len(self.header) :])):
        where = f'{self.path}, row {number + 2}'
        raise errors.UserError(f'{where}: has {len(row)} cells, the header {len(self.header)}')
    if self.part is not None:
      folders.check_parts(
        (f'{self.path}, row {n + 2}', self.cell(n, self.part)) for n in range(len(self.rows))
      )

  def part_of(self, number: int) -> str:
    """The part of a row: that of its own column, else that in the name of the table."""
    if self.part is not None:
      return folders.part_of(self.cell(number, self.part))
    words = re.findall(r'[a-z]+', self.path.stem.lower())
    return next((part for part in map(folders.part_of, words) if part), '')


def _point_columns(header) -> dict[str, tuple[int, int]]:
  """{landmark: (column of x, column of y)}."""
  found: dict[str, dict[str, int]] = {}
  for axis, pattern in (('x', _X), ('y', _Y)):
    for column, name in enumerate(header):
      match = pattern.match(name)
      if match:
        found.setdefault(match[1] or match[2] or '', {})[axis] = column
  return {name: (c['x'], c['y']) for name, c in found.items() if len(c) == 2}


def _unpaired(header) -> str:
  """A column NAME_x or x_NAME without its other axis, '' if there is none; 'sex' is no such."""
  names = {name.lower() for name in header}
  for name in names:
    match = _AXIS.match(name)
    other = {'x': 'y', 'y': 'x'}
    if match and match[1] and match[1] + other[match[2]] not in names:
      return name[:60]
    if match and match[3] and other[match[3]] + match[4] not in names:
      return name[:60]
  return ''


def _tables(root) -> list[Table]:
  paths = [p for p in exams.listing(root, ['.csv'], root=root) if p.name not in partition.FILES]
  return [Table(path) for path in paths]


def has_landmarks(root: pathlib.Path) -> bool:
  return any(table.points for table in _tables(root))


def has_classes(root: pathlib.Path) -> bool:
  return any(table.kind is not None and not table.points for table in _tables(root))


def landmarks(root: pathlib.Path) -> folders.Folder:
  """Returns the images of tables with columns NAME_x and NAME_y (or xNAME, yNAME), in pixels."""
  tables = [table for table in _tables(root) if table.points]
  if not tables:
    raise errors.UserError(f'{root}: has no table with columns NAME_x and NAME_y')
  names = tuple(tables[0].points)
  find, cases = _finder(root), []
  for table in tables:
    table.check()
    if tuple(table.points) != names:
      raise errors.UserError(f'{table.path}: has other landmarks than {tables[0].path.name}')
    for number in range(len(table.rows)):
      where = f'{table.path}, row {number + 2}'
      points = tuple(
        (_number(table.cell(number, x), where), _number(table.cell(number, y), where))
        for x, y in table.points.values()
      )
      image = find(table.cell(number, table.image), where)
      name = formats.stem_of(image)
      cases.append(folders.Case(name, (image,), points, table.part_of(number), (table.path,)))
  shown = [name if not name.isdecimal() else f'landmark {name}' for name in names]
  return _folder(root, 'landmarks in a CSV', 'landmarks', cases, shown)


def classes(root: pathlib.Path) -> folders.Folder:
  """Returns the images of tables with a column class, label, diagnosis, target or category."""
  tables = [table for table in _tables(root) if table.kind is not None]
  for table in tables:
    table.check()
    for number in range(len(table.rows)):
      if not table.cell(number, table.kind):
        raise errors.UserError(f'{table.path}, row {number + 2}: has no class')
  kinds = sorted({t.cell(n, t.kind) for t in tables for n in range(len(t.rows))})
  if all(re.fullmatch(r'\d{1,18}', kind) for kind in kinds):
    kinds.sort(key=int)
  find, cases = _finder(root), []
  for table in tables:
    for number in range(len(table.rows)):
      image = find(table.cell(number, table.image), f'{table.path}, row {number + 2}')
      kind = kinds.index(table.cell(number, table.kind))
      part = table.part_of(number)
      cases.append(folders.Case(formats.stem_of(image), (image,), kind, part, (table.path,)))
  return _folder(root, 'classes in a CSV', 'classes', cases, kinds)


def _class_folders(root):
  """[(part, class, folder)] of folders with images, in parts or not."""
  found = []
  for part, place in folders.part_folders(root).items():
    for path in sorted(place.iterdir()):
      if (
        path.is_dir()
        and not path.name.startswith('.')
        and exams.listing(path, formats.SUFFIXES, root=root)
      ):
        found.append((part, path.name, path))
  return found


def has_class_folders(root: pathlib.Path) -> bool:
  return len({name for _, name, _ in _class_folders(root)}) >= 2


def class_folders(root: pathlib.Path) -> folders.Folder:
  """Returns the images of CLASS/NAME, or of train/CLASS/NAME and test/CLASS/NAME."""
  places = _class_folders(root)
  kinds = sorted({name for _, name, _ in places})
  cases = [
    folders.Case(f'{kind}/{name}', (path,), kinds.index(kind), part)
    for part, kind, place in places
    for name, path in folders.images_of(root, place).items()
  ]
  return _folder(root, 'class folders', 'classes', cases, kinds)


def _folder(root, layout, kind, cases, classes: Sequence[str]):
  ordered = folders.sorted_cases(cases, where=root)
  return folders.Folder(root, layout, kind, ordered, classes=tuple(classes))


def _number(text: str, where: str) -> float:
  try:
    value = numbers.parsed(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise errors.UserError(f'{where}: {text[:60]!r} is not a number; every landmark needs x and y')
  return value


def _finder(root):
  """Returns (name in a table, where) -> the image: a path below the folder, or a name in it."""
  every: dict[str, list[pathlib.Path]] = {}
  for path in links.walk(root):
    if path.is_file() and formats.suffix_of(path) and not path.name.startswith('.'):
      for key in {path.name, formats.stem_of(path)}:
        every.setdefault(key, []).append(path)

  def find(name: str, where: str) -> pathlib.Path:
    place = pathlib.PurePosixPath(name.replace('\\', '/'))
    if place.is_absolute() or '..' in place.parts:
      raise errors.UserError(f'{where}: {name} lies outside the folder')
    if files.is_file(root / place):
      return links.inside(root, root / place)
    found = every.get(place.name, [])
    if len(found) != 1:
      what = 'is not in the folder' if not found else f'is there {len(found)} times'
      raise errors.UserError(f'{where}: the image {name} {what}')
    return links.inside(root, found[0])

  return find

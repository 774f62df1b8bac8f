"""Folders of images with boxes: COCO, Pascal VOC and YOLO."""

import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from robustmed import errors
from robustmed.data.files import exams, numbers, xml
from robustmed.data.labelled import folders, formats
from robustmed.process import files, links

_IMAGES = ('JPEGImages', 'images', 'Images', 'imgs')
_NAMES = ('classes.txt', 'obj.names', 'labels/classes.txt')
_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
_ANY_PART = re.compile(r'[a-z]+')


def _part_in(name: str) -> str:
  """The part that a word of a name means, such as that of instances_train2017."""
  words = _ANY_PART.findall(name.lower())
  return next((part for part in map(folders.part_of, words) if part), '')


def _pictures(root: pathlib.Path, places: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
  """{path below root: file} of all images in some folders and the folders in them."""
  found = {}
  for place in places:
    for path in links.walk(root, place) if place.is_dir() else ():
      if path.is_file() and formats.suffix_of(path) and not path.name.startswith('.'):
        found[path.relative_to(root).as_posix()] = links.inside(root, path)
  return found


def _made(root, layout, cases, classes, notes=()):
  twice = next((name for name in classes if list(classes).count(name) > 1), None)
  if twice is not None:
    raise errors.UserError(f'{root}: names the class {twice[:60]} twice')
  return folders.Folder(
    root,
    layout,
    'boxes',
    folders.sorted_cases(cases, where=root),
    classes=tuple(classes),
    notes=tuple(notes),
  )


# Pascal VOC -----------------------------------------------------------------------------------


def has_voc(root: pathlib.Path) -> bool:
  place = root / 'Annotations'
  return place.is_dir() and bool(exams.listing(place, ['.xml'], root=root))


def voc(root: pathlib.Path) -> folders.Folder:
  """Returns Annotations/NAME.xml with JPEGImages/NAME; parts by ImageSets/Main/*.txt."""
  place = next((root / name for name in _IMAGES if (root / name).is_dir()), None)
  if place is None:
    raise errors.UserError(f'{root}: has Annotations, but no folder JPEGImages or images')
  pictures, parts, cases = folders.images_of(root, place), _voc_parts(root), []
  read = {}
  for path in exams.listing(root / 'Annotations', ['.xml'], root=root):
    if path.stem not in pictures:
      raise errors.UserError(f'{path}: its image {place.name}/{path.stem} is not there')
    read[path.stem] = list(_voc_objects(path))
  unlabelled = sorted(pictures.keys() - read.keys())
  if unlabelled:
    raise errors.UserError(
      f'{pictures[unlabelled[0]]}: has no annotation Annotations/{unlabelled[0]}.xml'
    )
  classes = sorted({name for objects in read.values() for name, _ in objects})
  for stem, objects in read.items():
    label = tuple(folders.Box(box, classes.index(name)) for name, box in objects)
    table = (root / 'Annotations' / f'{stem}.xml',)
    cases.append(folders.Case(stem, (pictures[stem],), label, parts.get(stem, ''), table))
  return _made(root, 'Pascal VOC', cases, classes)


def _voc_parts(root) -> dict[str, str]:
  found = {}
  place = root / 'ImageSets' / 'Main'
  for path in exams.listing(place, ['.txt'], root=root) if place.is_dir() else ():
    part = folders.part_of(path.stem)
    if part:
      for line in files.read_text(path).splitlines():
        name = (line.split() or [''])[0]
        if name and found.setdefault(name, part) != part:
          raise errors.UserError(f'{path}: {name[:60]} is in {found[name]} and in {part}')
  return found


def _voc_objects(path) -> Iterator[tuple[str, tuple[float, ...]]]:
  root = xml.read(path, kind='a Pascal VOC file')
  if root.tag != 'annotation':
    raise errors.UserError(f'{path}: begins with <{root.tag[:40]}>, not <annotation>')
  if len(root.findall('object')) != sum(1 for _ in root.iter('object')):
    raise errors.UserError(f'{path}: has objects inside of other elements')
  for number, node in enumerate(root.findall('object'), start=1):
    for tag in ('name', 'bndbox', *(f'bndbox/{key}' for key in _CORNERS)):
      if len(node.findall(tag)) > 1:
        raise errors.UserError(f'{path}: object {number} has {tag} twice')
    name = (node.findtext('name') or '').strip()
    if not name:
      raise errors.UserError(f'{path}: object {number} has no name')
    where = f'{path}: object {number}'
    yield name, _box([xml.number(node, f'bndbox/{key}', where=where) for key in _CORNERS], where)


def _box(values: Iterable[Any], where: str) -> tuple[float, ...]:
  try:
    found = tuple(float(value) for value in values)
  except (TypeError, ValueError):
    found = ()
  if len(found) != 4 or not all(map(math.isfinite, found)):
    raise errors.UserError(f'{where}: a box must be four numbers, not {str(values)[:80]}')
  if found[2] < found[0] or found[3] < found[1]:
    raise errors.UserError(f'{where}: has a box with max below min: {list(found)}')
  return found


# COCO -----------------------------------------------------------------------------------------


def _coco_files(root):
  places = [root, root / 'annotations']
  return [
    p for place in places if place.is_dir() for p in exams.listing(place, ['.json'], root=root)
  ]


def has_coco(root: pathlib.Path) -> bool:
  keys = ('"images"', '"annotations"', '"categories"')
  return any(all(key in _head(path) for key in keys) for path in _coco_files(root))


def _head(path) -> str:
  if not path.is_file():
    return ''
  with path.open(encoding='utf-8', errors='replace') as file:
    return file.read()


def coco(root: pathlib.Path) -> folders.Folder:
  """Returns the images of every COCO file; the parts are words of their names. No crowds."""
  pictures = _pictures(root, [root])
  tables = {path: files.parsed_json(path) for path in _coco_files(root)}
  tables = {
    path: table
    for path, table in tables.items()
    if isinstance(table, dict) and {'images', 'annotations', 'categories'} <= table.keys()
  }
  if not tables:
    raise errors.UserError(f'{root}: has no COCO file with images, annotations and categories')
  kinds, cases, crowds = {}, [], 0
  try:
    for path, table in tables.items():
      for one in table['categories']:
        number, name = int(one['id']), str(one['name'])
        if kinds.setdefault(number, name) != name:
          said = f'category {number} is {kinds[number][:60]} and {name[:60]}'
          raise errors.UserError(f'{path}: {said}')
    numbers = {kind: place for place, kind in enumerate(sorted(kinds))}
    for path, table in tables.items():
      boxes: dict[Any, list] = {}
      _check_once(table['images'], path)
      for one in table['annotations']:
        if one.get('iscrowd'):
          crowds += 1
          continue
        x, y, width, height = (float(value) for value in one['bbox'])
        box = _box((x, y, x + width, y + height), f'{path}: annotation {one.get("id")}')
        boxes.setdefault(one['image_id'], []).append(folders.Box(box, numbers[one['category_id']]))
      for one in table['images']:
        image = _found(root, path, pictures, str(one['file_name']))
        name = pathlib.PurePosixPath(one['file_name']).with_suffix('').as_posix()
        label = tuple(boxes.pop(one['id'], ()))
        cases.append(folders.Case(name, (image,), label, _part_in(path.stem), (path,)))
      if boxes:
        raise errors.UserError(f'{path}: annotates image {next(iter(boxes))}, which it has not')
  except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
    reason = f'{type(error).__name__}: {str(error)[:200]}'
    raise errors.UserError(f'{path}: is no COCO file ({reason})') from error
  notes = [f'{crowds} crowds are left out'] if crowds else []
  return _made(root, 'COCO', cases, [kinds[k] for k in sorted(kinds)], notes)


def _check_once(images, path) -> None:
  seen = set()
  for one in images:
    if one['id'] in seen:
      raise errors.UserError(f'{path}: has image {str(one["id"])[:60]} twice')
    seen.add(one['id'])


def _found(root, table, pictures, name):
  """The file that a table names: below the folder, or the one file of that name anywhere in it."""
  place = pathlib.PurePosixPath(name)
  if place.is_absolute() or '..' in place.parts:
    raise errors.UserError(f'{table}: {name} lies outside the folder')
  if name in pictures:
    return pictures[name]
  several = [path for path in pictures.values() if path.name == place.name]
  if len(several) != 1:
    what = 'is not there' if not several else 'is there several times'
    raise errors.UserError(f'{root / name}: {what}; it is listed in {table}')
  return several[0]


# YOLO -----------------------------------------------------------------------------------------


def _yolo_places(root):
  """(part, images, labels) with text files of boxes."""
  found = []
  for part, folder in folders.part_folders(root).items():
    images, labels = folder / 'images', folder / 'labels'
    if not (images.is_dir() and labels.is_dir()):
      continue
    inner = {p: d for p, d in folders.part_folders(images).items() if p}
    found += [(p, d, labels / d.name) for p, d in inner.items()] or [(part, images, labels)]
  return [p for p in found if p[2].is_dir() and any(p[2].glob('*.txt'))]


def has_yolo(root: pathlib.Path) -> bool:
  return bool(_yolo_places(root))


def yolo(root: pathlib.Path) -> folders.Folder:
  """Returns images/NAME with labels/NAME.txt: class, then centre and sides in fractions.

  A line of more numbers is a polygon, of which the box is taken. An image without a text file has
  no objects.
  """
  names, cases, highest, empty = _yolo_names(root), [], -1, 0
  for part, images, labels in _yolo_places(root):
    pictures = folders.images_of(root, images)
    texts = {path.stem: path for path in exams.listing(labels, ['.txt'], root=root)}
    texts.pop('classes', None)
    lost = sorted(texts.keys() - pictures.keys())
    if lost:
      raise errors.UserError(f'{texts[lost[0]]}: has no image of that name in {images}')
    for name, picture in pictures.items():
      path = texts.get(name)
      label = tuple(_yolo_boxes(path)) if path else ()
      empty += path is None
      highest = max(highest, *(box.number for box in label), -1)
      cases.append(folders.Case(name, (picture,), label, part, (path,) if path else ()))
      if names and highest >= len(names):
        raise errors.UserError(f'{path}: class {highest} is not one of the {len(names)} names')
  classes = names or [f'class {n}' for n in range(highest + 1)]
  notes = [f'{empty} images without a text file have no objects'] if empty else []
  return _made(root, 'YOLO', cases, classes, notes)


def _yolo_names(root) -> list[str]:
  for name in _NAMES:
    if (root / name).exists() or (root / name).is_symlink():
      lines = files.read_text(links.inside(root, root / name)).splitlines()
      if not any(map(str.strip, lines)):
        raise errors.UserError(f'{root / name}: names no classes')
      return [line.strip() for line in lines if line.strip()]
  places = (root / 'data.yaml', root / 'dataset.yaml')
  path = next((place for place in places if links.present(root, place)), None)
  if path is None:
    return []
  text = files.read_text(links.inside(root, path)).partition('names:')[2]
  listed = re.match(r'\s*\[(.*?)\]', text, re.S)
  if listed:
    words = listed[1].split(',')
  else:  # one a line, '- name' or '0: name'
    pairs = re.findall(r'^[ \t]*(?:-|(\d{1,9}):)[ \t]*(.+)$', text, re.M)
    words = [word for _, word in sorted(pairs, key=lambda pair: int(pair[0] or 0))]
    numbers = sorted(int(number) for number, _ in pairs if number)
    if numbers and numbers != list(range(len(pairs))):
      raise errors.UserError(f'{path}: its names are not numbered 0, 1, ...')
  return [word.strip().strip('\'"') for word in words if word.strip()]


def _yolo_boxes(path) -> Iterator[folders.Box]:
  for number, line in enumerate(files.read_text(path).splitlines(), start=1):
    if not line.strip():
      continue
    where = f'{path}, line {number}'
    try:
      kind, *values = (numbers.parsed(word) for word in line.split())
    except ValueError:
      raise errors.UserError(f'{where}: must be numbers, not {line[:40]!r}') from None
    if kind < 0 or not kind.is_integer() or len(values) < 4 or len(values) % 2:
      raise errors.UserError(f'{where}: must be a class and four numbers, or a polygon')
    if not all(-0.01 <= value <= 1.01 for value in values):
      raise errors.UserError(f'{where}: numbers must be fractions of the image, 0 to 1')
    if len(values) == 4:
      x, y, width, height = values
      box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
      box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    yield folders.Box(_box(box, where), int(kind), fractions=True)

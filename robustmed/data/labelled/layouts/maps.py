"""Folders with label maps: nnU-Net raw, the Medical Segmentation Decathlon, images beside masks."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from robustmed import errors
from robustmed.data.labelled import folders
from robustmed.process import files, links

_CHANNEL = re.compile(r'^(.+)_(\d{4})$')
_IMAGES = ('images', 'image', 'imgs', 'img')
_LABELS = ('labels', 'label', 'masks', 'mask', 'segmentations', 'annotations')
_PLACES = (('train', 'imagesTr', 'labelsTr'), ('test', 'imagesTs', 'labelsTs'))


# nnU-Net and the Decathlon ---------------------------------------------------------------------


def has_numbered_parts(root: pathlib.Path) -> bool:
  return any((root / images).is_dir() and (root / labels).is_dir() for _, images, labels in _PLACES)


def nnunet(root: pathlib.Path) -> folders.Folder:
  """Returns the cases of imagesTr and labelsTr, and as test part those of imagesTs and labelsTs.

  dataset.json may be missing: the classes are then the values of the label maps.
  """
  path = root / 'dataset.json'
  there = path.exists() or path.is_symlink()
  found = files.parsed_json(links.inside(root, path)) if there else {}
  if not isinstance(found, dict) or (there and not found):
    raise errors.UserError(f'{path}: is not a JSON object with fields')
  labels, regions, ignore = labels_of(found, path)
  channels = _channels(found, path)
  listed = found.get('training')
  cases, notes, single = [], [], False
  for part, images, labels_folder in _PLACES:
    places = [root / images, root / labels_folder]
    if not places[0].is_dir():
      continue
    pictures = _grouped(folders.images_of(root, places[0]))
    single |= any(name in files for name, files in pictures.items())
    if not places[1].is_dir():
      notes.append(f'{images} has no {labels_folder} and is left out')
      continue
    maps = folders.images_of(root, places[1])
    if part == 'train' and isinstance(listed, list):
      pictures, maps = _listed(root, listed, pictures, maps, path)
    for name, images, label in folders.pair(_paths(pictures), maps, where=places):
      cases.append(folders.Case(name, images, label, part))
  every = {len(case.images) for case in cases}
  if len(every) > 1:
    odd = min(cases, key=lambda case: len(case.images))
    raise errors.UserError(f'{odd.images[0]}: {odd.name} has fewer channels than other cases')
  if {case.part for case in cases} == {'train'}:  # the folder splits nothing
    cases = [case._replace(part='') for case in cases]
  layout = 'Medical Segmentation Decathlon' if single and found else 'nnU-Net raw'
  return folders.Folder(
    root,
    layout if found else 'nnU-Net raw without dataset.json',
    'segmentation',
    folders.sorted_cases(cases, where=root),
    labels,
    regions,
    ignore,
    channels=channels,
    notes=tuple(notes),
  )


def _grouped(images: Mapping[str, pathlib.Path]) -> dict[str, dict[str, pathlib.Path]]:
  """Returns {case: {name of a file: file}}, the channels NAME_0000, NAME_0001, ... in order."""
  found: dict[str, dict[str, pathlib.Path]] = {}
  for name, path in sorted(images.items()):
    match = _CHANNEL.match(name)
    found.setdefault(match[1] if match else name, {})[name] = path
  for case, channels in found.items():
    numbers = [int(match[2]) for match in map(_CHANNEL.match, channels) if match]
    if numbers and (len(numbers) < len(channels) or numbers != list(range(len(numbers)))):
      raise errors.UserError(
        f'{next(iter(channels.values()))}: the channels of {case} are not numbered 0000, 0001, ...'
      )
  return found


def _paths(grouped):
  return {name: tuple(channels.values()) for name, channels in grouped.items()}


def _listed(root, listed, pictures, maps, where):
  """Returns the images and label maps that dataset.json lists; each must be there."""
  some_pictures, some_maps = {}, {}
  for entry in listed:
    if isinstance(entry, str):
      entry = {'image': entry, 'label': ''}
    if not isinstance(entry, dict) or not isinstance(entry.get('image'), str):
      raise errors.UserError(f"{where}: an entry of 'training' has no 'image'")
    parts = pathlib.PurePosixPath(entry['image'])
    for text in (entry['image'], str(entry.get('label', ''))):
      place = pathlib.PurePosixPath(text)
      if place.is_absolute() or '..' in place.parts:
        raise errors.UserError(f'{where}: {text} lies outside the folder')
    name = parts.name.partition('.')[0] if '.' in parts.name else parts.name
    if parts.name.startswith('.'):
      continue
    match = _CHANNEL.match(name)
    name = name if name in pictures or not match else match[1]
    if name in some_pictures:
      raise errors.UserError(f'{where}: lists {name} twice')
    if name not in pictures:
      raise errors.UserError(f'{root / parts}: is not there; it is listed in {where}')
    if name not in maps:
      missing = entry.get('label') or f'labelsTr/{parts.name}'
      raise errors.UserError(f'{root / missing}: the labels of {name} are not there')
    some_pictures[name], some_maps[name] = pictures[name], maps[name]
  return some_pictures, some_maps


def labels_of(
  found: Mapping[str, Any], path: pathlib.Path
) -> tuple[dict[str, int] | None, dict[str, tuple[int, ...]], int | None]:
  """Returns (value by name, regions, ignored value) of dataset.json, in either of its two forms.

  {'0': 'background', '1': 'liver'} is the Decathlon's, {'background': 0, 'liver': 1} nnU-Net's, in
  which a list of values is a region and 'ignore' the value that does not count. With regions the
  classes are the single values.
  """
  labels = found.get('labels')
  if labels is None:
    return None, {}, None
  if not isinstance(labels, dict) or not labels:
    raise errors.UserError(f"{path}: field 'labels' is not a table of classes")
  try:
    if all(isinstance(value, str) for value in labels.values()):
      names = {value: int(key) for key, value in labels.items()}
      if len(names) < len(labels):
        raise errors.UserError(f"{path}: field 'labels' has one name twice")
      labels = names
    values = {name: tuple(int(v) for v in _as_list(value)) for name, value in labels.items()}
  except (TypeError, ValueError, OverflowError) as error:
    raise errors.UserError(f"{path}: field 'labels' has values that are no numbers") from error
  ignore = values.pop('ignore', (None,))[0]
  regions = {name: several for name, several in values.items() if len(several) > 1}
  if any(v < 0 for several in values.values() for v in several):
    raise errors.UserError(f"{path}: field 'labels' has values below 0")
  single = {name: several[0] for name, several in values.items() if len(several) == 1}
  if len(set(single.values())) < len(single):
    raise errors.UserError(f"{path}: field 'labels' has one value twice")
  if not regions:
    return _background_first(single), {}, ignore
  # A region of one value is the value's name as well.
  regions = {name: several for name, several in values.items() if several != (0,)}
  names = {v: name for name, v in single.items()}
  every = sorted({v for several in regions.values() for v in several})
  classes = {names.get(v, f'label {v}'): v for v in every}
  return _background_first(classes), regions, ignore


def _background_first(labels):
  rest = dict(sorted(labels.items(), key=lambda item: item[1]))
  background = next((name for name, value in rest.items() if value == 0), 'background')
  rest.pop(background, None)
  return {background: 0, **rest}


def _as_list(value):
  return value if isinstance(value, list | tuple) else [value]


def _channels(found, path) -> tuple[str, ...]:
  named = found.get('channel_names', found.get('modality', {}))
  if isinstance(named, dict):
    named = [named[key] for key in sorted(named, key=_in_order)]
  if not isinstance(named, list):
    raise errors.UserError(f'{path}: the channels are neither a table nor a list')
  return tuple(str(name) for name in named)


def _in_order(key):
  """'2' comes before '10'."""
  return (not str(key).isdecimal(), int(key) if str(key).isdecimal() else 0, str(key))


# Images beside masks ---------------------------------------------------------------------------


def _pair_places(root):
  """Returns (part, images, labels): `images/` beside `labels/`, in parts or with parts inside."""
  found = []
  for part, folder in folders.part_folders(root).items():
    images, labels = (_first(folder, names) for names in (_IMAGES, _LABELS))
    if images is None or labels is None:
      continue
    inner = {p: d for p, d in folders.part_folders(images).items() if p}
    if not inner:
      found.append((part, images, labels))
    found += [(p, d, labels / d.name) for p, d in inner.items() if (labels / d.name).is_dir()]
  return found


def _first(folder, names):
  by_name = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
  return next((by_name[name] for name in names if name in by_name), None)


def has_pairs(root: pathlib.Path) -> bool:
  return bool(_pair_places(root))


def pairs(root: pathlib.Path) -> folders.Folder:
  """Returns the images with the label maps of equal names in the folder beside them."""
  places = _pair_places(root)
  if not places:
    raise errors.UserError(f'{root}: has no folders images and labels (or masks)')
  cases = []
  for part, images, labels in places:
    grouped, maps = _grouped(folders.images_of(root, images)), folders.images_of(root, labels)
    if not grouped.keys() & maps.keys():  # _0000 is then a part of the name
      grouped = {name: {name: path} for name, path in folders.images_of(root, images).items()}
    cases += [
      folders.Case(name, images, label, part)
      for name, images, label in folders.pair(_paths(grouped), maps, where=(images, labels))
    ]
  return folders.Folder(
    root, 'images and masks', 'segmentation', folders.sorted_cases(cases, where=root)
  )

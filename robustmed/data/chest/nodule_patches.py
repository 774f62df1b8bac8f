"""From chest CT scans to the patches that a nodule classifier and a nodule synthesiser learn from.

Of every scan: all its nodules, `negatives` places without one (candidates of class 0 of the
detector's list, or random places of the lungs) and `backgrounds`, random places of the lungs whose
patch no nodule reaches into. A source of scans adds where its scans come from and nothing else.
`cut` 'tiles' gives the tiles of `nodule_tiles` instead, of `side` and `spacing` as well.

An example has 'image' [side, side, side, 1] (float32 in [0, 1]), 'soft' (of the same shape: the
weights that cut out the nodule with a soft edge, 0 where there is no mask), 'has_mask', 'target'
(1 = nodule), 'role' (its place in `ROLES`), 'kind' (its place in `nodule_scans.KINDS`), 'diameter'
(millimetres, 0 without a nodule), 'centre' (world, x, y, z), 'group' (the scan), 'index', 'name'.
"""

import abc
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from robustmed import errors
from robustmed.data import pipeline, store
from robustmed.data.chest import nodule_scans, nodule_tiles
from robustmed.data.files import threads
from robustmed.process import console

ROLES = nodule_tiles.ROLES
CUTS = ('patches', 'tiles')
SPLITS = ('train', 'validation', 'test')
FIELDS = {
  'cut': 'patches',
  'side': 64,  # points of a patch
  'spacing': 0.625,  # millimetres between them
  'negatives': 10,  # of a scan
  'negatives_from': 'candidates',
  'backgrounds': 10,  # of a scan
  'max_nodules': 8,  # of a tile; the rest of the rows is padding
  'draw_seed': 0,  # of the places
  'workers': 0,
}
_AWAY = 5.0  # millimetres between a random negative and the border of the next nodule, at least
_SOFT_SHARE = 0.05  # what the weights take beside the images once compressed
_BYTES, _ZLIB = tfds.features.Encoding.BYTES, tfds.features.Encoding.ZLIB


class PatchBuilder(store.Builder):
  """The splits that have scans, each scan's nodules first, then negatives, then backgrounds."""

  @abc.abstractmethod
  def scans(self) -> nodule_scans.Scans:
    """All scans for these fields."""

  def features(self):
    make = nodule_tiles.features if self.fields['cut'] == 'tiles' else _features
    common = {'group': np.int32, 'index': np.int32, 'name': tfds.features.Text()}
    return tfds.features.FeaturesDict({**make(self.fields), **common})

  def splits(self):
    scans = self.scans()
    count = sizes(scans, self.fields)
    announce(sum(count.values()), self.fields['side'], pathlib.Path(self.data_dir))
    uids = sorted(uid for listed in scans.splits.values() for uid in listed)
    number = {uid: place for place, uid in enumerate(uids)}
    self.facts = {kept: {name: [] for name in scans.splits} for kept in ('roles', 'about')}
    result, first = {}, 0
    for name, listed in scans.splits.items():
      self.counts[f'{name}_scans'] = len(listed)
      self.counts[f'{name}_nodules'] = sum(scans.counts[uid] for uid in listed)
      result[name] = self._examples(scans, name, number, first=first)
      first += count[name]
    return result

  def _examples(self, scans, split, number, *, first) -> Iterator[dict[str, Any]]:
    uids = scans.splits[split]
    roles, about = (self.facts[kept][split] for kept in ('roles', 'about'))
    ready = threads.map_in_order(
      lambda uid: cut(scans.read(uid), self.fields),
      uids,
      name=f'cut {split} patches',
      workers=self.fields['workers'],
    )
    for uid, rows in zip(uids, ready):
      for row in rows:
        about.append(row.pop('about'))
        roles.append(row['role'])
        if self.fields['cut'] == 'patches':
          self.counts['nodules_without_mask'] += bool(row['target'] and not row['has_mask'])
          self.counts['backgrounds_near_nodules'] += not row.pop('free')
        yield {**row, 'group': number[uid], 'index': first}
        first += 1


def _features(fields):
  side, tensor = fields['side'], tfds.features.Tensor
  shape = (side, side, side, 1)
  return {
    'image': tensor(shape=shape, dtype=np.float32, encoding=_BYTES),
    'soft': tensor(shape=shape, dtype=np.float32, encoding=_ZLIB),
    'has_mask': np.bool_,
    'target': np.int32,
    'role': np.int32,
    'kind': np.int32,
    'diameter': np.float32,
    'centre': tensor(shape=(3,), dtype=np.float32),
  }


def check_fields(fields: Mapping[str, Any]) -> None:
  if fields['side'] < 4:
    raise errors.UserError(f'data field side must be at least 4, not {fields["side"]}')
  if not 0 < fields['spacing'] <= 10:
    raise errors.UserError(
      f'data field spacing must be a few millimetres at most, not {fields["spacing"]}'
    )
  for name in ('negatives', 'backgrounds', 'draw_seed', 'workers'):
    if fields[name] < 0:
      raise errors.UserError(f'data field {name} must be at least 0, not {fields[name]}')
  if fields['max_nodules'] < 1:
    raise errors.UserError(
      f'data field max_nodules must be at least 1, not {fields["max_nodules"]}'
    )
  errors.lookup(dict.fromkeys(CUTS), fields['cut'], kind='data field cut')
  known = {'candidates': True, 'lung': True}
  errors.lookup(known, fields['negatives_from'], kind='data field negatives_from')


def key(fields: Mapping[str, Any]) -> dict[str, Any]:
  """What the patches depend on beside the scans."""
  return {name: fields[name] for name in FIELDS if name != 'workers'}


def others(fields: Mapping[str, Any]) -> int:
  """Examples of a scan beside those of its nodules."""
  return fields['backgrounds'] + (fields['negatives'] if fields['cut'] == 'patches' else 0)


def sizes(scans: nodule_scans.Scans, fields: Mapping[str, Any]) -> dict[str, int]:
  """Patches per split; no scan is read."""
  rest = others(fields)
  return {
    name: sum(scans.counts[uid] + rest for uid in listed) for name, listed in scans.splits.items()
  }


def announce(count: int, side: int, folder: pathlib.Path) -> None:
  """Says how much is about to be written to `folder`; a `UserError` if its disk cannot hold it.

  The images count as they are; how far they can be compressed depends on their noise.
  """
  need = round(count * side**3 * 4 * (1 + _SOFT_SHARE))
  free = store.free_bytes(folder)
  if need > free:
    raise errors.UserError(
      f'{count} patches of {side}^3 points take up to {store.amount(need)}, but {folder} has '
      f'{store.amount(free)} free; set the data field cache_dir or $ROBUSTMED_CACHE to a larger '
      'disk, or lower side, negatives or backgrounds'
    )
  console.say(
    f'cutting {count} patches of {side}^3 points, at most {store.amount(need)} '
    f'({store.amount(free)} free)'
  )


def cut(scan: nodule_scans.NoduleScan, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The examples of one scan without 'group' and 'index', and with 'about' and 'free'.

  about: the kind of a nodule's example, 'none' of others. free, of patches: False where a
  background has a nodule near because the lungs have no other place. The places depend on the
  scan's id and the fields alone.
  """
  seed = [fields['draw_seed'], zlib.crc32(scan.uid.encode())]
  if fields['cut'] == 'tiles':
    return nodule_tiles.cut(scan, np.random.default_rng([*seed, 2]), fields)
  half = fields['side'] * fields['spacing'] / 2
  behind = nodule_scans.lung_places(
    scan, np.random.default_rng([*seed, 1]), fields['backgrounds'], clearance=half
  )
  without = _negatives(scan, np.random.default_rng([*seed, 0]), fields)
  nodules = nodule_scans.centres(scan.nodules)
  points = np.concatenate([nodules, without, behind.points])
  roles = np.repeat([1, 0, 2], [len(nodules), len(without), len(behind.points)])
  size = {'side': fields['side'], 'spacing': fields['spacing']}
  rows, counted = [], dict.fromkeys(ROLES, 0)
  for place, (point, role) in enumerate(zip(points, roles)):
    finding, mask = None, np.zeros((fields['side'],) * 3, bool)
    if role == 1:
      finding, mask = scan.nodules.iloc[place], nodule_scans.mask_patch(scan, place, **size)
    free = role != 2 or bool(behind.free[place - len(nodules) - len(without)])
    name = ROLES[role]
    kind = 'none' if finding is None else finding['kind']
    rows.append(
      {
        'image': nodule_scans.patches(scan, point[None], **size)[0],
        'soft': nodule_scans.soft_edge(mask)[..., None],
        'has_mask': bool(mask.any()),
        'target': int(role == 1),
        'role': int(role),
        'kind': nodule_scans.KINDS.index(kind),
        'diameter': 0.0 if finding is None else float(finding['diameter_mm']),
        'centre': point.astype(np.float32),
        'name': f'{scan.uid}_{name}_{counted[name]:02d}',
        'about': kind,
        'free': free,
      }
    )
    counted[name] += 1
  return rows


def _negatives(scan, rng, fields):
  """World points [negatives, 3]; random ones where the list of candidates has too few."""
  count = fields['negatives']
  chosen = np.zeros((0, 3))
  if fields['negatives_from'] == 'candidates' and scan.candidates is not None:
    listed = nodule_scans.centres(scan.candidates[scan.candidates['class'] == 0])
    chosen = listed[np.sort(rng.permutation(len(listed))[:count])]
  rest = nodule_scans.lung_places(scan, rng, count - len(chosen), clearance=_AWAY)
  return np.concatenate([chosen, rest.points])


def balanced(roles: Sequence[int]) -> pipeline.Sampling:
  """Half of all draws are nodules, half the rest, each half without repeats in a pass."""
  nodule = np.asarray(roles) == ROLES.index('nodule')
  halves = np.flatnonzero(nodule), np.flatnonzero(~nodule)
  if not all(map(len, halves)):
    return pipeline.Sampling()

  def choose(draw, *, seed, batch_size, size):
    half = halves[draw % 2]
    place, wish = pipeline.shuffled(draw // 2, seed=seed, batch_size=batch_size, size=len(half))
    return int(half[place]), wish

  return pipeline.Sampling(choose)


def of_role(source: Any, split: str, *names: str) -> store.Part:
  """The examples of a split ('train', ...) of a `data.Source` that have one of these roles."""
  return _part(source, split, 'roles', {ROLES.index(name) for name in names})


def of_kind(source: Any, split: str, *names: str) -> store.Part:
  """The examples of a split that were made for nodules of one of these `nodule_scans.KINDS`."""
  for name in names:
    errors.lookup(dict.fromkeys(nodule_scans.KINDS), name, kind='kind of nodule')
  return _part(source, split, 'about', set(names))


def _part(source, split, kept, wanted):
  chosen = [place for place, one in enumerate(source.info[kept][split]) if one in wanted]
  return store.Part(getattr(source, split), chosen)


def arrange(source, fields: Mapping[str, Any], facts: Mapping[str, Any]):
  """Training draws as many nodules as others. info: 'roles' and kinds ('about') of all examples."""
  return source._replace(
    sampling=balanced(facts['roles'].get('train', ())),
    info={kept: facts[kept] for kept in ('roles', 'about')},
  )

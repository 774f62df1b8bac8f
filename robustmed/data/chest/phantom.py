"""Synthetic twin of the source `luna16`: small chests with nodules, their masks and tables.

Scan i of a seed is the same whatever the number of scans. A chest is drawn each time it is read.
The first scans are the training split, the next ones validation, the last ones test.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from robustmed import errors
from robustmed.data.chest import nodule_patches, nodule_scans, phantom_chest, phantom_nodules

VERSION = '1'  # to be raised when the same fields give other voxels
DEFAULTS = {
  **nodule_patches.FIELDS,
  'side': 24,
  'spacing': 1.25,
  'negatives': 5,
  'backgrounds': 5,
  'scans': (36, 8, 16),  # train, validation, test
  'voxel': 1.5,  # millimetres between voxels of a scan
  'nodules': (2, 5),  # of one scan, minimum and maximum
  'diameters': (4.0, 16.0),  # millimetres, minimum and maximum
  'noise': 25.0,  # HU
  'seed': 0,
}
_CANDIDATES = 24  # of a scan, beside its nodules
_ANATOMY, _COUNT, _TABLE = range(3)  # random streams of a scan


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the patches per split, without drawing a scan."""
  check_fields(fields)
  return nodule_patches.sizes(scans(fields), fields)


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of scans of the test split."""
  return fields['scans'][nodule_patches.SPLITS.index('test')]


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns all fields that the drawn data depend on; a value out of range is a `UserError`."""
  check_fields(fields)
  return json.dumps([VERSION, {n: fields[n] for n in DEFAULTS if n != 'workers'}])


def scans(fields: Mapping[str, Any]) -> nodule_scans.Scans:
  """Returns the scans by split, which are drawn when they are read."""
  uids = [uid_of(number) for number in range(sum(fields['scans']))]
  ends = np.cumsum([0, *fields['scans']])
  splits = {
    name: tuple(uids[first:last])
    for name, first, last in zip(nodule_patches.SPLITS, ends, ends[1:])
  }
  read = lambda uid: draw(uids.index(uid), fields)
  return nodule_scans.Scans(
    splits={name: listed for name, listed in splits.items() if listed},
    read=read,
    tables=lambda uid: _tables(read(uid)),
    counts={uid: num_nodules(number, fields) for number, uid in enumerate(uids)},
  )


def _tables(scan):
  return nodule_scans.Tables(scan.uid, scan.nodules, scan.excluded, scan.candidates)


def uid_of(number: int) -> str:
  return f'phantom.{number:05d}'


def check_fields(fields: Mapping[str, Any]) -> None:
  nodule_patches.check_fields(fields)
  counts = fields['scans']
  if len(counts) != 3 or min(counts) < 0 or not counts[0] or not counts[2]:
    raise errors.UserError(
      f'data field scans must be three numbers with some train and test scans, not {counts}'
    )
  low, high = fields['nodules']
  if not 0 <= low <= high <= 8:
    raise errors.UserError(f'data field nodules must be (least, most) up to 8, not {low, high}')
  low, high = fields['diameters']
  if not 2 <= low < high <= 24 or high < 6:
    raise errors.UserError(
      f'data field diameters must be (least, most) within 2 and 24 mm, not {low, high}'
    )
  if not 0.75 <= fields['voxel'] <= 3:
    raise errors.UserError(f'data field voxel must lie in [0.75, 3] mm, not {fields["voxel"]}')
  if not 0 <= fields['noise'] <= 200:
    raise errors.UserError(f'data field noise must lie in [0, 200], not {fields["noise"]}')


def shape_of(fields: Mapping[str, Any]) -> tuple[int, int, int]:
  """Returns the voxels of a scan, (48, 64, 80) at 1.5 millimetres."""
  return tuple(round(side / fields['voxel']) for side in phantom_chest.SIDES)


def num_nodules(number: int, fields: Mapping[str, Any]) -> int:
  low, high = fields['nodules']
  return int(_rng(fields, number, _COUNT).integers(low, high + 1))


def _rng(fields, number, stream):
  return np.random.default_rng([fields['seed'] % 2**32, number, stream, 0xC7])


def draw(number: int, fields: Mapping[str, Any]) -> nodule_scans.NoduleScan:
  """Draws scan `number`: anatomy, nodules and irrelevant findings, then blur and noise."""
  rng = _rng(fields, number, _ANATOMY)
  shape = shape_of(fields)
  scene = phantom_chest.draw(rng, shape)
  image = scene.image.copy()
  painted = phantom_nodules.paint(
    rng,
    image,
    scene,
    count=num_nodules(number, fields),
    spacing=fields['voxel'],
    limits=fields['diameters'],
  )
  image = phantom_chest.blur(rng, image, fields['noise'])
  rng = _rng(fields, number, _TABLE)
  origin = np.round(rng.uniform(-200, 0, 3), 2)
  table = functools.partial(_table, uid_of(number), origin)
  return nodule_scans.NoduleScan(
    uid=uid_of(number),
    image=nodule_scans.normalise(image),
    spacing=(fields['voxel'],) * 3,
    origin=origin,
    direction=np.eye(3),
    lung=scene.lung,
    nodules=table(painted.nodules),
    excluded=table(painted.irrelevant, kind='unknown'),
    candidates=_candidates(rng, uid_of(number), origin, scene, painted, shape, fields['voxel']),
    masks=painted.masks,
  )


def _table(uid, origin, spots, kind=None):
  centres = np.array([spot.centre[::-1] for spot in spots]).reshape(-1, 3) + origin
  return nodule_scans.table(
    uid,
    centres,
    diameter_mm=np.array([spot.diameter for spot in spots], np.float64),
    kind=[kind or spot.kind for spot in spots],
  )


def _candidates(rng, uid, origin, scene, painted, shape, voxel):
  """Returns candidates as of a simple detector: nodules (jittered), other findings, vessels."""
  true = [spot.centre + rng.uniform(-0.2, 0.2, 3) * spot.diameter for spot in painted.nodules]
  likely = np.where(scene.forks, 5.0, 1.0)
  order = rng.choice(len(scene.vessels), size=4 * _CANDIDATES, p=likely / likely.sum())
  vessels = ((scene.vessels[order] + 0.5) * shape - 0.5) * voxel
  false = [*(spot.centre for spot in painted.irrelevant), *vessels]
  away = lambda point: min(
    (np.linalg.norm(point - spot.centre) - spot.diameter / 2 for spot in painted.nodules),
    default=np.inf,
  )
  false = [point for point in false if away(point) > voxel][:_CANDIDATES]
  points = np.array([*true, *false]).reshape(-1, 3)
  kinds = np.repeat([1, 0], [len(true), len(false)])
  return nodule_scans.table(uid, points[:, ::-1] + origin, **{'class': kinds})


arrange = nodule_patches.arrange


class PhantomNodules(nodule_patches.PatchBuilder):
  """Draws 'train', 'validation' and 'test', by default of 36, 8 and 16 scans."""

  def scans(self):
    return scans(self.fields)


Builder = PhantomNodules

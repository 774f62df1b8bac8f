"""Tiles of chest CT scans with all nodules in them, for networks that look for candidates.

One tile for every nodule, which lies anywhere in its middle half, and `backgrounds` about random
places of the lungs. Tiles lie along the world's axes and within the scan where it is large enough.

An example has 'image' [side, side, side, 1] (float32 in [0, 1]), 'centre' [max_nodules, 3] (cells
of the tile, z, y, x), 'diameter' [max_nodules] (millimetres, 0 for padding), 'kind' [max_nodules]
(places in `nodule_scans.KINDS`), 'role', 'start' (world, x, y, z, of the first cell), 'group' (the
scan), 'index' and 'name'.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from robustmed import errors
from robustmed.data.chest import nodule_scans

ROLES = ('negative', 'nodule', 'background')  # there are no negatives among tiles
_MIDDLE = 0.25  # of the side: how far a tile's nodule is moved from its middle, at most
_BYTES = tfds.features.Encoding.BYTES


def features(fields: Mapping[str, Any]) -> dict[str, Any]:
  """What an example has beside 'group', 'index' and 'name'."""
  side, most, tensor = fields['side'], fields['max_nodules'], tfds.features.Tensor
  return {
    'image': tensor(shape=(side, side, side, 1), dtype=np.float32, encoding=_BYTES),
    'centre': tensor(shape=(most, 3), dtype=np.float32),
    'diameter': tensor(shape=(most,), dtype=np.float32),
    'kind': tensor(shape=(most,), dtype=np.int32),
    'role': np.int32,
    'start': tensor(shape=(3,), dtype=np.float32),
  }


def cut(
  scan: nodule_scans.NoduleScan, rng: np.random.Generator, fields: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """The tiles of one scan; 'about' is the kind of the nodule a tile was made for."""
  side, spacing = fields['side'], fields['spacing']
  extent = (side - 1) * spacing
  nodules = nodule_scans.centres(scan.nodules)
  moved = nodules + rng.uniform(-_MIDDLE, _MIDDLE, nodules.shape) * extent
  others = nodule_scans.lung_places(scan, rng, fields['backgrounds'], clearance=0.0).points
  low, high = nodule_scans.bounds(scan)
  rows = []
  for place, middle in enumerate(np.concatenate([moved, others])):
    # within the scan, or about its middle where it is smaller than a tile
    start = np.where(
      high - low > extent,
      np.clip(middle - extent / 2, low, high - extent),
      (low + high - extent) / 2,
    )
    role = 'nodule' if place < len(nodules) else 'background'
    number = place if place < len(nodules) else place - len(nodules)
    grid = {'start': start, 'shape': (side,) * 3, 'spacing': spacing}
    rows.append(
      {
        'image': nodule_scans.sample(scan.image, scan, **grid)[..., None],
        **_nodules(scan, start, fields),
        'role': ROLES.index(role),
        'start': start.astype(np.float32),
        'name': f'{scan.uid}_{role}_{number:02d}',
        'about': scan.nodules['kind'].iloc[place] if role == 'nodule' else 'none',
      }
    )
  return rows


def _nodules(scan, start, fields):
  """The nodules whose centres lie in a tile, the largest first."""
  most = fields['max_nodules']
  cells = ((nodule_scans.centres(scan.nodules) - start) / fields['spacing'])[:, ::-1]
  within = np.flatnonzero(((cells > -0.5) & (cells < fields['side'] - 0.5)).all(axis=1))
  if len(within) > most:
    raise errors.UserError(
      f'scan {scan.uid}: has {len(within)} nodules in one tile; set the data field max_nodules '
      f'(now {most}) to that or more'
    )
  sizes = scan.nodules['diameter_mm'].to_numpy(np.float64)
  order = within[np.argsort(-sizes[within], kind='stable')]
  centre, diameter = np.zeros((most, 3), np.float32), np.zeros(most, np.float32)
  kind = np.zeros(most, np.int32)
  centre[: len(order)], diameter[: len(order)] = cells[order], sizes[order]
  kind[: len(order)] = [nodule_scans.KINDS.index(scan.nodules['kind'].iloc[i]) for i in order]
  return {'centre': centre, 'diameter': diameter, 'kind': kind}

"""Chest CT with lung nodules: what a scan is, where its points lie, patches about them.

World coordinates are those of LUNA16 and SimpleITK: (x, y, z) in millimetres, x to the patient's
left, y to the back, z to the head. Voxels are counted (z, y, x), as the arrays are. The way between
them is that of the full direction matrix, so turned, mirrored and oblique scans are all right.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.ndimage

from robustmed import errors
from robustmed.metrics import froc

KINDS = ('none', 'solid', 'calcified', 'part_solid', 'ground_glass', 'unknown')
WINDOW = (-1200.0, 600.0)  # HU that become 0 and 1, as in DeepLung (Zhu et al. 2018)
PLACE = ('coordX', 'coordY', 'coordZ')
_DRAWS = 64  # random points looked at for one that is wanted


class NoduleScan(NamedTuple):
  """One scan; the tables have uid, coordX, coordY, coordZ (world) and the columns named here."""

  uid: str
  image: np.ndarray  # [z, y, x] float32 in [0, 1]: HU by `normalise`
  spacing: tuple[float, float, float]  # z, y, x, millimetres
  origin: np.ndarray  # [3] world, of the first voxel
  direction: np.ndarray  # [3, 3], its columns point along the axes x, y, z of the voxels
  lung: np.ndarray | None  # [z, y, x] bool
  nodules: pd.DataFrame  # with diameter_mm and kind, one of `KINDS`
  excluded: pd.DataFrame  # irrelevant findings, likewise; a negative diameter is not known
  candidates: pd.DataFrame | None = None  # with class: 1 = a nodule
  masks: np.ndarray | None = None  # [z, y, x] int16, i + 1 = row i of `nodules`, 0 = none of them


class Tables(NamedTuple):
  """What is known of a scan without its voxels; the fields are those of `NoduleScan`."""

  uid: str
  nodules: pd.DataFrame
  excluded: pd.DataFrame
  candidates: pd.DataFrame | None = None


class Scans(NamedTuple):
  """A set of scans. `read` and `tables` may be called from several threads."""

  splits: Mapping[
    str, tuple[str, ...]
  ]  # ids of 'train', 'validation', 'test', sorted; no empty one
  read: Callable[[str], NoduleScan]
  tables: Callable[[str], Tables]
  counts: Mapping[str, int]  # nodules of every scan, known without reading it
  # The kinds of a scan's nodules that have a mask, likewise known; None: all nodules have one.
  masked: Callable[[str], tuple[str, ...]] | None = None


def table(uid: str, centres: Any, **columns: Any) -> pd.DataFrame:
  """A table of findings of one scan at `centres` [n, 3] (world); other columns as given."""
  centres = np.asarray(centres, np.float64).reshape(-1, 3)
  places = dict(zip(PLACE, centres.T))
  return pd.DataFrame({'uid': [uid] * len(centres), **places, **columns})


def centres(findings: pd.DataFrame) -> np.ndarray:
  """Returns the world coordinates [n, 3] of a table."""
  return findings[list(PLACE)].to_numpy(np.float64)


def normalise(hu: np.ndarray) -> np.ndarray:
  """HU to [0, 1], float32, clipped at the ends of the window."""
  low, high = WINDOW
  image = hu.astype(np.float32)
  image -= low
  image *= 1 / (high - low)
  return np.clip(image, 0, 1, out=image)


def to_hu(image: np.ndarray) -> np.ndarray:
  """The way back; what was clipped stays so."""
  low, high = WINDOW
  return image * (high - low) + low


def to_voxel(scan: Any, world: np.ndarray) -> np.ndarray:
  """World points [n, 3] to voxels [n, 3], whole numbers at the voxels' middles.

  scan: anything with the spacing, origin and direction of a `NoduleScan`.
  """
  away = np.asarray(world, np.float64) - scan.origin
  return np.linalg.solve(_matrix(scan), away.T).T[:, ::-1]


def to_world(scan: Any, voxels: np.ndarray) -> np.ndarray:
  """Voxels [n, 3] to world points [n, 3]."""
  return scan.origin + np.asarray(voxels, np.float64)[:, ::-1] @ _matrix(scan).T


def inside(scan: Any, world: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Whether points lie in a scan of `shape`, [n] bool; a voxel beyond its border still does."""
  voxels = to_voxel(scan, world)
  return ((voxels >= -1) & (voxels <= np.array(shape))).all(axis=1)


def bounds(scan: NoduleScan) -> tuple[np.ndarray, np.ndarray]:
  """The least and the greatest world coordinates [3] of the middles of a scan's voxels."""
  corners = np.stack(np.meshgrid(*((0, n - 1) for n in scan.image.shape), indexing='ij'), axis=-1)
  ends = to_world(scan, corners.reshape(-1, 3))
  return ends.min(axis=0), ends.max(axis=0)


def _matrix(scan):
  """Steps along the voxels' axes x, y, z to millimetres."""
  return np.asarray(scan.direction, np.float64) * np.array(scan.spacing[::-1])


def sample(
  array: np.ndarray,
  scan: Any,
  *,
  start: np.ndarray,
  shape: Sequence[int],
  spacing: float,
  order: int = 1,
) -> np.ndarray:
  """Reads `array`, which lies on the voxels of `scan`, on a grid along the world's axes.

  The first point is at `start` (world), `shape` counts points (z, y, x). order: 1 trilinear, 0 the
  nearest voxel. Beyond the scan its outermost voxels are repeated. Returns float32.
  """
  turn = np.linalg.inv(_matrix(scan))[::-1, ::-1] * spacing
  first = to_voxel(scan, np.reshape(start, (1, 3)))[0]
  corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing='ij'), axis=-1)
  ends = first + corners.reshape(-1, 3) @ turn.T
  limit = np.array(array.shape)
  low = np.clip(np.floor(ends.min(axis=0)) - 1, 0, limit - 1).astype(int)
  high = np.clip(np.ceil(ends.max(axis=0)) + 2, low + 1, limit).astype(int)
  part = array[tuple(slice(a, b) for a, b in zip(low, high))]
  return scipy.ndimage.affine_transform(
    part.astype(np.float32),
    turn,
    offset=first - low,
    output_shape=tuple(shape),
    output=np.float32,
    order=order,
    mode='nearest',
  )


def patches(
  scan: NoduleScan, centres_world: np.ndarray, *, side: int, spacing: float
) -> np.ndarray:
  """Cubes of `side` points, `spacing` millimetres apart, about the points [n, 3] (x, y, z).

  Trilinear, along the world's axes whatever the scan's own, so that all have the head and the left
  on the same sides. Only the voxels of each patch are resampled. Returns [n, side, side, side, 1].
  """
  found = [
    sample(scan.image, scan, start=start, shape=(side,) * 3, spacing=spacing)
    for start in _starts(centres_world, side, spacing)
  ]
  return np.stack(found)[..., None] if found else np.zeros((0, *(side,) * 3, 1), np.float32)


def mask_patch(
  scan: NoduleScan, row: int, *, side: int, spacing: float, centre: np.ndarray | None = None
) -> np.ndarray:
  """The mask of nodule `row` in the patch about it (or about `centre`), [side, side, side] bool."""
  if scan.masks is None:
    return np.zeros((side,) * 3, bool)
  middle = centres(scan.nodules)[row] if centre is None else centre
  start = _starts(np.reshape(middle, (1, 3)), side, spacing)[0]
  mine = scan.masks == row + 1
  return sample(mine, scan, start=start, shape=(side,) * 3, spacing=spacing) >= 0.5


def _starts(centres_world, side, spacing):
  return np.asarray(centres_world, np.float64).reshape(-1, 3) - (side - 1) / 2 * spacing


def soft_edge(mask: np.ndarray) -> np.ndarray:
  """Weights in [0, 1] of a mask cut with a soft edge: clip(0.5 + d / 2, 0, 1), float32.

  d is the signed distance to the mask's surface in voxels, positive inside, so the weights rise
  over two voxels and are 0 beyond. Image times weights is the nodule cut out.
  """
  if mask.all() or not mask.any():
    return mask.astype(np.float32)
  within = scipy.ndimage.distance_transform_edt(mask) - 0.5
  beyond = scipy.ndimage.distance_transform_edt(~mask) - 0.5
  return np.clip(0.5 + np.where(mask, within, -beyond) / 2, 0, 1).astype(np.float32)


def resample(scan: NoduleScan, spacing: float) -> NoduleScan:
  """The whole scan on cubes of `spacing` millimetres along the world's axes, for detectors.

  Images are resampled trilinearly, masks by the nearest voxel; the tables stay as they are.
  """
  origin, end = bounds(scan)
  shape = tuple(int(n) for n in np.floor((end - origin)[::-1] / spacing + 1e-6) + 1)
  grid = {'start': origin, 'shape': shape, 'spacing': spacing}
  nearest = lambda array: None if array is None else sample(array, scan, order=0, **grid)
  lung, masks = nearest(scan.lung), nearest(scan.masks)
  return scan._replace(
    image=sample(scan.image, scan, **grid),
    spacing=(spacing,) * 3,
    origin=origin,
    direction=np.eye(3),
    lung=None if lung is None else lung > 0.5,
    masks=None if masks is None else masks.astype(np.int16),
  )


class Places(NamedTuple):
  points: np.ndarray  # [n, 3] world
  free: np.ndarray  # [n] bool, False where none far enough from the nodules was found


def lung_places(
  scan: NoduleScan, rng: np.random.Generator, count: int, *, clearance: float
) -> Places:
  """Random points of the lungs, each the middle of a cube that no nodule reaches into.

  clearance: half the side of the cube in millimetres. Where there are too few such points the
  farthest from all nodules stand in for them.
  """
  if not count:
    return Places(np.zeros((0, 3)), np.zeros(0, bool))
  voxels = np.zeros(0, int) if scan.lung is None else np.flatnonzero(scan.lung)
  if not len(voxels):
    raise errors.UserError(
      f'scan {scan.uid}: has no lung mask, or an empty one, to draw places of the lungs from; '
      'add the mask or exclude the scan'
    )
  drawn = voxels[rng.integers(len(voxels), size=_DRAWS * count)]
  points = to_world(scan, np.stack(np.unravel_index(drawn, scan.lung.shape), axis=-1))
  gap = np.full(len(points), np.inf)
  for centre, diameter in zip(centres(scan.nodules), scan.nodules['diameter_mm']):
    gap = np.minimum(gap, np.abs(points - centre).max(axis=1) - diameter / 2)
  chosen = np.argsort(-np.minimum(gap, clearance), kind='stable')[:count]
  return Places(points[chosen], gap[chosen] >= clearance)


def findings(scans: Sequence[Any], *, min_diameter: float = 0.0) -> froc.Findings:
  """What `froc.match` needs of scans or their `Tables`; scan i of the sequence has number i.

  Nodules below `min_diameter` millimetres count as irrelevant.
  """
  number, where, diameter, nodule = [], [], [], []
  for place, scan in enumerate(scans):
    for found, relevant in ((scan.nodules, True), (scan.excluded, False)):
      sizes = found['diameter_mm'].to_numpy(np.float64)
      number.append(np.full(len(found), place))
      where.append(centres(found))
      diameter.append(sizes)
      nodule.append(relevant & (sizes >= min_diameter))
  if not number:
    raise ValueError('no scans')
  joined = (np.concatenate(parts) for parts in (number, where, diameter, nodule))
  return froc.Findings(*joined)

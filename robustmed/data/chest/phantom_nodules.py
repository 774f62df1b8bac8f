"""Draws nodules of four kinds and other, irrelevant findings into the lungs of a phantom.

The frequencies of the kinds are those of two benchmarks of Liu et al. (2020, Table 1) together: 197
solid, 26 calcified, 16 part-solid, 42 ground glass. Diameters are long-tailed like those of LUNA16,
of which 58 % are 6 millimetres or more and 24 % 10 or more, within the phantom's limits.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage

from robustmed.data.chest import phantom_chest

MIX = {'solid': 197, 'calcified': 26, 'part_solid': 16, 'ground_glass': 42}
_MEDIAN, _SPREAD = 6.6, 0.59  # median in millimetres, deviation of the logarithm; fits LUNA16
_GAP = 3.0  # millimetres between two findings, if there is room
_TRIES = 400
_KNOWN = 0.133  # share of irrelevant findings with a diameter, as in LUNA16
_SHAPES = {  # irrelevant findings: range of diameters in mm, stretch per axis, depth in the lung
  'grain': ((2.0, 3.5), (1, 1, 1), (2.0, np.inf)),
  'plaque': ((5.0, 9.0), (0.4, 1.2, 1.2), (0.0, 1.5)),
  'scar': ((6.0, 12.0), (0.3, 0.5, 2.0), (2.0, np.inf)),
}


class Spot(NamedTuple):
  centre: np.ndarray  # [3] z, y, x, millimetres from the first voxel's middle
  diameter: float
  kind: str


class Painted(NamedTuple):
  masks: np.ndarray  # [z, y, x] int16, i + 1 = nodule i
  nodules: list[Spot]
  irrelevant: list[Spot]


def diameter(rng: np.random.Generator, limits: tuple[float, float]) -> float:
  """Draws a log-normal diameter within the limits, by rejection."""
  while True:
    value = float(_MEDIAN * np.exp(_SPREAD * rng.standard_normal()))
    if limits[0] <= value <= limits[1]:
      return value


def kind(rng: np.random.Generator) -> str:
  weights = np.array(list(MIX.values()), float)
  return str(rng.choice(list(MIX), p=weights / weights.sum()))


def paint(
  rng: np.random.Generator,
  image: np.ndarray,
  scene: phantom_chest.Chest,
  *,
  count: int,
  spacing: float,
  limits: tuple[float, float],
) -> Painted:
  """Draws `count` nodules and some irrelevant findings into the lungs of `image` (HU), in place.

  No two of them touch if there is room. The mask of a nodule holds every voxel of the lungs whose
  centre lies inside its surface.
  """
  masks = np.zeros(image.shape, np.int16)
  voxels = np.argwhere(scene.lung)
  depth = scene.depth[scene.lung]
  taken = []
  sizes = sorted((diameter(rng, limits) for _ in range(count)), reverse=True)
  nodules = []
  for number, size in enumerate(sizes):
    at_wall = rng.uniform() < 0.25
    reach = (0.35 * size, 0.55 * size) if at_wall else (0.55 * size + 1, np.inf)
    spot = Spot(_place(rng, voxels, depth, taken, size, reach, spacing), size, kind(rng))
    grown = _blob(rng, image.shape, spot, spacing, stretch=rng.uniform(0.88, 1.14, 3))
    _fill(rng, image, scene, grown, spot, spacing)
    mine = masks[grown.box]
    mine[(grown.distance < 0) & scene.lung[grown.box]] = number + 1
    nodules.append(spot)
    taken.append(spot)
  irrelevant = []
  for _ in range(rng.integers(2, 6)):
    name = str(rng.choice(list(_SHAPES)))
    (low, high), stretch, reach = _SHAPES[name]
    spot = Spot(np.zeros(3), float(rng.uniform(low, high)), name)
    where = _place(rng, voxels, depth, taken, spot.diameter, reach, spacing)
    spot = spot._replace(centre=where)
    grown = _blob(rng, image.shape, spot, spacing, stretch=np.array(stretch))
    _mix(image, grown, rng.normal(20, 15), spacing)
    taken.append(spot)
    known = rng.uniform() < _KNOWN
    irrelevant.append(spot if known else spot._replace(diameter=-1.0))
  return Painted(masks, nodules, irrelevant)


class _Blob(NamedTuple):
  box: tuple[slice, ...]
  distance: np.ndarray  # to the surface, in millimetres (approximate), inside < 0
  away: np.ndarray  # distance from the centre, in units of the radius in that direction


def _place(rng, voxels, depth, taken, size, reach, spacing):
  """Returns a point of the lungs at a depth within `reach`, if possible apart from `taken`."""
  fit = np.flatnonzero((depth >= reach[0]) & (depth <= reach[1]))
  if not len(fit):
    fit = np.argsort(-depth)[:50]  # too large for these lungs: one of the deepest points
  points = voxels[fit[rng.integers(len(fit), size=_TRIES)]] + rng.uniform(-0.5, 0.5, (_TRIES, 3))
  points = points * spacing
  room = np.full(_TRIES, np.inf)
  for other in taken:
    away = np.linalg.norm(points - other.centre, axis=1)
    room = np.minimum(room, away - (size + abs(other.diameter)) / 2)
  return points[np.argmax(np.minimum(room, _GAP))]


def _blob(rng, shape, spot, spacing, *, stretch):
  """Returns a lobed, stretched, randomly rotated ball; of a nodule with the volume of the ball."""
  radius = spot.diameter / 2
  reach = radius * max(1.0, float(stretch.max())) * 1.35 + 2 * spacing
  low = np.maximum(0, np.floor((spot.centre - reach) / spacing)).astype(int)
  high = np.minimum(shape, np.ceil((spot.centre + reach) / spacing) + 1).astype(int)
  box = tuple(slice(a, b) for a, b in zip(low, high))
  lines = [np.arange(a, b) * spacing - c for a, b, c in zip(low, high, spot.centre)]
  offset = np.stack(np.meshgrid(*lines, indexing='ij'), axis=-1)
  turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  stretch = stretch / np.cbrt(np.prod(stretch)) if spot.kind not in _SHAPES else stretch
  offset = offset @ turn / stretch
  away = np.linalg.norm(offset, axis=-1) + 1e-6
  ahead = offset / away[..., None]
  rough = 0.2 if spot.kind == 'solid' and spot.diameter > 8 and rng.uniform() < 0.4 else 0.07
  bumps = [
    np.cos(ahead @ (rng.normal(size=3) * (6 if rough > 0.1 else 2.5)) + rng.uniform(0, 6.28))
    for _ in range(4)
  ]
  lobes = 1 + rough * sum(bumps) / 2
  lobes /= np.cbrt(np.mean(lobes**3))
  away = away / (radius * lobes)
  return _Blob(box, (away - 1) * radius, away)


def _mix(image, grown, value, spacing, *, inner=0.0, soft=1.2, add=False):
  """Mixes a value in where the distance is below `-inner`; `add`: only where it is brighter."""
  weight = np.clip(0.5 - (grown.distance + inner) / (soft * spacing), 0, 1).astype(np.float32)
  part = image[grown.box]
  change = weight * (np.float32(value) - part)
  part += np.maximum(change, 0) if add else change


def _fill(rng, image, scene, grown, spot: Any, spacing):
  """Paints the inside of a nodule by its kind; the wall outside the lungs does not change."""
  before = image[grown.box].copy()
  if spot.kind in ('solid', 'calcified'):
    _mix(image, grown, rng.normal(30, 15), spacing)
  else:
    _mix(image, grown, rng.uniform(-680, -520), spacing, soft=2.0, add=True)
  if spot.kind in ('part_solid', 'calcified'):  # a core
    value = rng.normal(10, 15) if spot.kind == 'part_solid' else rng.uniform(300, 800)
    _mix(image, grown, value, spacing, inner=rng.uniform(0.4, 0.65) * spot.diameter / 2)
  if spot.kind in ('part_solid', 'ground_glass'):
    grain = scipy.ndimage.gaussian_filter(rng.standard_normal(before.shape), 0.8)
    part = image[grown.box]
    part += (60 * grain * (grown.away < 0.9) * (part < -300)).astype(np.float32)
  wall = (scene.depth[grown.box] < -spacing) & (before > -300)
  image[grown.box][wall] = before[wall]

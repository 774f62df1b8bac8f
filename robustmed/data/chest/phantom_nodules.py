"""Nodules of four kinds and findings that are none, drawn into the lungs of a phantom.

How often a kind is drawn is what two benchmarks of Liu et al. (2020, Table 1) have together: 197
solid, 26 calcified, 16 part-solid, 42 ground glass. Diameters are long-tailed as those of LUNA16,
of which 58 % are 6 millimetres or more and 24 % 10 or more, between the phantom's limits.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage

from robustmed.data.chest import phantom_chest

MIX = {'solid': 197, 'calcified': 26, 'part_solid': 16, 'ground_glass': 42}
_MEDIAN, _SPREAD = 6.6, 0.59  # millimetres and the logarithm's deviation; fits LUNA16
_GAP = 3.0  # millimetres between two findings, at least
_TRIES = 400
_KNOWN = 0.133  # share of irrelevant findings with a diameter, as in LUNA16
_SHAPES = {  # irrelevant findings: diameter in mm, what it is stretched by, depth in the lung
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
  """A log-normal diameter within the limits, drawn again until it is."""
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
  """Draws `count` nodules and some irrelevant findings into `image` (HU) where the lungs are.

  No two of them touch. The mask of a nodule is every voxel of the lungs whose middle lies inside
  its surface.
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
  distance: np.ndarray  # about the millimetres to the surface, inside < 0
  away: np.ndarray  # distance from the middle, in units of the radius in that direction


def _place(rng, voxels, depth, taken, size, reach, spacing):
  """A point of the lungs at a depth within `reach`, apart from what is taken if that can be."""
  fit = np.flatnonzero((depth >= reach[0]) & (depth <= reach[1]))
  if not len(fit):
    fit = np.argsort(-depth)[:50]  # too large for these lungs: as deep as there is
  points = voxels[fit[rng.integers(len(fit), size=_TRIES)]] + rng.uniform(-0.5, 0.5, (_TRIES, 3))
  points = points * spacing
  room = np.full(_TRIES, np.inf)
  for other in taken:
    away = np.linalg.norm(points - other.centre, axis=1)
    room = np.minimum(room, away - (size + abs(other.diameter)) / 2)
  return points[np.argmax(np.minimum(room, _GAP))]


def _blob(rng, shape, spot, spacing, *, stretch):
  """A lobed, stretched ball that is turned at random and has the volume of a ball."""
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
  """Mixes a value in where the distance is below `-inner`; `add` only where that is brighter."""
  weight = np.clip(0.5 - (grown.distance + inner) / (soft * spacing), 0, 1).astype(np.float32)
  part = image[grown.box]
  change = weight * (np.float32(value) - part)
  part += np.maximum(change, 0) if add else change


def _fill(rng, image, scene, grown, spot: Any, spacing):
  """Paints the inside of a nodule by its kind; outside the lungs the wall stays as it is."""
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

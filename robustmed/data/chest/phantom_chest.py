"""Small chests in HU: lungs with vessels and airways, ribs, spine, heart, fat and muscle.

A chest is about a third as large as a real one, with vessels and nodules of real size, so that few
voxels suffice for what a detector has to distinguish: round objects, and tubes cut across. Lengths
are fractions of the sides as in `painting`, axes z (feet to head), y (front to back), x (right to
left); the box is 72 x 96 x 120 millimetres.
"""

from typing import NamedTuple

import numpy as np
import scipy.ndimage

from robustmed.data import painting

SIDES = (72.0, 96.0, 120.0)  # millimetres
_AIR, _LUNG, _FAT, _MUSCLE, _BONE, _MARROW, _DISC = -1000, -860, -95, 50, 520, 210, 90
_RIBS = 4.0  # per height of the box
_CAGE = ((-0.12, 0.0, 0.0), (0.92, 0.355, 0.405))  # centre and radii of the chest's inner wall


class Chest(NamedTuple):
  image: np.ndarray  # [z, y, x] float32, HU, without noise
  lung: np.ndarray  # [z, y, x] bool, vessels included, airways not
  depth: np.ndarray  # [z, y, x] float32, millimetres (about) to the lung's border, inside > 0
  vessels: np.ndarray  # [n, 3] points on the vessels within the lungs
  forks: np.ndarray  # [n] bool, where a vessel branches


class _Tree(NamedTuple):
  points: np.ndarray  # [n, 3]
  radii: np.ndarray  # [n]
  forks: np.ndarray  # [n] bool


def draw(rng: np.random.Generator, shape: tuple[int, int, int]) -> Chest:
  """Draws one chest of `shape` voxels; the anatomy is the same at every shape."""
  canvas = painting.Canvas(rng, shape, warp=0.012)
  image = np.full(shape, _AIR, np.float32)
  body = canvas.ellipsoid((0, 0.01, 0), (np.inf, rng.uniform(0.45, 0.47), rng.uniform(0.475, 0.49)))
  canvas.paint(image, rng.normal(_FAT, 6), body)
  canvas.paint(image, rng.normal(_MUSCLE, 6), body + rng.uniform(0.018, 0.03))
  cage = canvas.ellipsoid(*_CAGE)
  canvas.paint(image, rng.normal(10, 8), cage + 0.012)  # fat and vessels between the organs
  _bones(canvas, rng, image, cage)
  lung, heart = _lungs(canvas, rng, cage)
  canvas.paint(image, rng.normal(42, 4), heart)
  for place, radius in (((0, 0.16, 0.07), 0.038), ((0.3, -0.1, -0.045), 0.026)):
    vessel = canvas.ellipsoid(place, (np.inf, radius * 1.25, radius))
    canvas.paint(image, rng.normal(45, 5), np.maximum(vessel, -lung))  # aorta and upper cava

  z, y, _ = canvas.places
  tissue = rng.normal(_LUNG, 15) + 70 * (y + 0.5) * rng.uniform(0.5, 1)  # denser where it hangs
  tissue = tissue + 14 * painting.smooth_field(rng, shape, cells=9)
  canvas.paint(image, np.broadcast_to(tissue, shape), lung, soft=1.2)
  arteries = [_tree(rng, side) for side in (-1, 1)]
  tree = _Tree(*(np.concatenate(parts) for parts in zip(*arteries)))
  tubes = np.maximum(_tubes(shape, tree.points, tree.radii), lung)
  canvas.paint(image, rng.normal(35, 5), tubes, soft=1.2)
  airway = _airways(canvas, rng, image)
  return Chest(image, (lung < 0) & ~airway, -SIDES[2] * lung, *_within(tree, lung))


def blur(rng: np.random.Generator, image: np.ndarray, noise: float) -> np.ndarray:
  """Returns HU as a scanner records them: blurred by half a voxel, with noise of `noise` HU."""
  image = scipy.ndimage.gaussian_filter(image, 0.45)
  if noise:
    image += np.float32(noise) * painting.texture(rng, image.shape, width=0.5)
  return image


def _lungs(canvas, rng, cage):
  """Returns approximate signed distances to the lungs and to the heart, in widths of the box."""
  z, y, x = canvas.places
  heart = canvas.ellipsoid(
    (-0.25 + rng.normal(0, 0.02), -0.09, 0.06), (0.38, rng.uniform(0.19, 0.22), 0.15)
  )
  middle = 0.055 + 0.05 * np.exp(-(((y - 0.28) / 0.14) ** 2)) + 0.05 * np.clip(-y - 0.1, 0, 1)
  high = rng.uniform(-0.32, -0.26)
  dome = high - 4.5 * ((np.abs(x) - 0.2) ** 2 + (y + 0.03) ** 2) + 0.03 * np.sign(-x)
  inside = np.maximum(cage + 0.012, middle - np.abs(x - 0.008))
  inside = np.maximum(inside, -heart)
  return np.maximum(inside, (dome - z) * np.float32(SIDES[0] / SIDES[2])), heart


def _bones(canvas, rng, image, cage):
  """Paints ribs that slope down to the front, the spine with its canal and the breastbone."""
  z, y, x = canvas.places
  phase = (z - 0.75 * y + rng.uniform(0, 1)) * np.float32(_RIBS)
  along = (phase - np.round(phase)) * np.float32(SIDES[0] / SIDES[2] / _RIBS)
  rib = np.hypot(along * 0.75, cage - 0.012) - rng.uniform(0.014, 0.017)
  rib = np.maximum(rib, 0.07 - np.abs(x))
  canvas.paint(image, rng.normal(_BONE, 30), rib, soft=1.2)
  canvas.paint(image, rng.normal(_MARROW + 60, 20), rib + 0.009, soft=1.2)
  back = 0.345
  height = np.cos(2 * np.pi * (z + rng.uniform(0, 1)) * 2.5)
  column = canvas.ellipsoid((0, back - 0.035, 0), (np.inf, 0.085, 0.075))
  inner = np.where(height > -0.75, rng.normal(_MARROW, 15), rng.normal(_DISC, 10))
  canvas.paint(image, np.where(height > -0.75, rng.normal(_BONE - 60, 20), _DISC), column)
  canvas.paint(image, inner, column + 0.014)
  arch = canvas.ellipsoid((0, back + 0.07, 0), (np.inf, 0.05, 0.06))
  canvas.paint(image, rng.normal(_BONE - 120, 20), arch)
  canvas.paint(image, 25, canvas.ellipsoid((0, back + 0.06, 0), (np.inf, 0.03, 0.032)))
  breast = canvas.ellipsoid((0, -0.385, 0), (np.inf, 0.022, 0.05))
  canvas.paint(image, rng.normal(_BONE - 150, 20), breast)


def _tree(rng, side):
  """Returns the vessels of one lung from the hilum outwards, thinner at every fork."""
  stretch = SIDES[2] / np.array(SIDES)
  points, radii, forks = [], [], []
  root = np.array([rng.normal(0, 0.02), 0.03, side * 0.085])
  tips = []
  for turn in np.arange(6) + rng.uniform(-0.3, 0.3, 6):
    angle = 2 * np.pi * turn / 6
    ahead = np.array([0.9 * np.sin(angle), np.cos(angle), side * rng.uniform(0.55, 1.1)])
    tips.append((root, ahead / np.linalg.norm(ahead), rng.uniform(0.014, 0.019), 4))
  while tips:
    start, ahead, radius, left = tips.pop()
    length = rng.uniform(0.05, 0.1) * (1.25 if left == 4 else 1)
    steps = max(3, int(np.ceil(length / max(0.9 * radius, 0.007))))
    bend = rng.normal(0, 0.25, 3)
    t = np.linspace(0, 1, steps)[:, None]
    line = start + length * stretch * (t * ahead + 0.4 * t**2 * bend)
    points.append(line)
    radii.append(np.linspace(radius, 0.82 * radius, steps))
    forks.append(np.arange(steps) == steps - 1 if left else np.zeros(steps, bool))
    ahead = ahead + 0.8 * bend
    if left:
      axis = np.cross(ahead, rng.normal(size=3))
      axis /= np.linalg.norm(axis)
      for way, share in ((rng.uniform(0.35, 0.65), 0.74), (-rng.uniform(0.2, 0.6), 0.68)):
        turned = ahead / np.linalg.norm(ahead) + way * axis
        child = max(radius * share, 0.005)
        tips.append((line[-1], turned / np.linalg.norm(turned), child, left - 1))
  return _Tree(np.concatenate(points), np.concatenate(radii), np.concatenate(forks))


def _airways(canvas, rng, image):
  """Paints windpipe and bronchi with their walls; returns the mask of their lumen."""
  split = np.array([0.14, 0.0, 0.0]) + rng.normal(0, 0.01, 3)
  lines, radii = [_line((0.56, -0.08, 0), split, 40)], [np.full(40, 0.034)]
  for side in (-1, 1):
    hilum = np.array([-0.02, 0.045, side * rng.uniform(0.1, 0.12)])
    lines.append(_line(split, hilum, 24))
    radii.append(np.linspace(0.026, 0.019, 24))
    for _ in range(4):
      end = hilum + np.array([rng.uniform(-0.3, 0.3), rng.uniform(-0.2, 0.2), side * 0.13])
      lines.append(_line(hilum, end, 24))
      radii.append(np.linspace(0.014, 0.007, 24))
  tube = _tubes(image.shape, np.concatenate(lines), np.concatenate(radii))
  canvas.paint(image, rng.normal(-250, 40), tube - 0.006, soft=1.2)
  canvas.paint(image, rng.normal(-985, 5), tube, soft=1.2)
  return tube < 0


def _tubes(shape, points, radii):
  """Returns approximate signed distances to balls at points, in widths; far away `Canvas.FAR`.

  Like `Canvas.tube`, but for thousands of small balls and without the warp.
  """
  steps = (np.array(SIDES) / SIDES[2] / shape).astype(np.float32)
  reach = np.ceil(radii / steps.min() + 1.2).astype(int)
  border = reach.max() + 1
  padded = np.full(np.array(shape) + 2 * border, painting.Canvas.FAR)
  middle = (points + 0.5) * shape - 0.5 + border
  near = ((middle > border - 1) & (middle < border + np.array(shape))).all(axis=1)
  strides = np.array(padded.strides) // padded.itemsize
  for size in np.unique(reach[near]):
    mine = near & (reach == size)
    voxels = np.round(middle[mine]).astype(int)[..., None] + np.arange(-size, size + 1)
    away = (voxels - middle[mine][..., None]).astype(np.float32) * steps[:, None]
    distance = np.sqrt(_outer_sum(away**2)) - radii[mine].astype(np.float32)[:, None, None, None]
    flat = _outer_sum(voxels * strides[:, None])
    np.minimum.at(padded.reshape(-1), flat.ravel(), distance.ravel())
  return padded[(slice(border, -border),) * 3].copy()


def _outer_sum(parts):
  """Returns the outer sum [n, k, k, k] of the three rows of [n, 3, k]."""
  z, y, x = np.moveaxis(parts, 1, 0)
  return z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]


def _line(start, end, count):
  t = np.linspace(0, 1, count)[:, None]
  return np.asarray(start) + t * (np.asarray(end) - start)


def _within(tree, lung):
  """Returns the points of a tree inside the volume and the lungs, and whether each is a fork."""
  shape = np.array(lung.shape)
  voxels = np.floor((tree.points + 0.5) * shape).astype(int)
  kept = ((voxels >= 0) & (voxels < shape)).all(axis=1)
  kept[kept] = lung[tuple(voxels[kept].T)] < 0
  return tree.points[kept], tree.forks[kept]

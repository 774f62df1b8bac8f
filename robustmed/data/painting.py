"""Paints volumes from soft-edged shapes in coordinates that are bent by a smooth random warp.

Lengths are fractions of the volume's sides, positions relative to its middle, in the order z, y, x.
"""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage

_CELLS = 5  # knots per axis of a smooth field


def smooth_field(
  rng: np.random.Generator, shape: Sequence[int], *, cells: int = _CELLS
) -> np.ndarray:
  """Returns a random field of about unit variance, smooth over 1 / cells of every side."""
  knots = rng.standard_normal((cells,) * len(shape))
  for axis, size in enumerate(shape):
    places = np.linspace(0, cells - 1, size)[:, None]
    weights = np.exp(-((places - np.arange(cells)) ** 2) / 0.9)
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    knots = np.moveaxis(np.tensordot(weights, knots, axes=(1, axis)), 0, axis)
  return knots.astype(np.float32)


def texture(rng: np.random.Generator, shape: Sequence[int], *, width: float) -> np.ndarray:
  """Returns noise of unit variance, blurred over `width` voxels in the plane."""
  noise = rng.standard_normal(shape, np.float32)
  noise = scipy.ndimage.gaussian_filter(noise, (0, width, width))
  return noise / noise.std()


class Canvas:
  """The warped coordinates of one volume, in which shapes are defined and painted.

  A shape is an array of approximate signed distances, in units of the plane's side, negative
  inside; far from the shape it is `FAR`.
  """

  FAR = np.float32(1)

  def __init__(self, rng: np.random.Generator, shape: Sequence[int], *, warp: float):
    self._lines = [((np.arange(size) + 0.5) / size - 0.5).astype(np.float32) for size in shape]
    self.shape = tuple(shape)
    self.places = [
      grid + np.float32(warp) * smooth_field(rng, shape)
      for grid in np.meshgrid(*self._lines, indexing='ij', sparse=True)
    ]
    self._reach = 4 * warp + 0.06
    self._edge = 1.0 / min(shape[1:])

  def ellipsoid(self, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Returns the shape of an ellipsoid; a radius may be infinite."""
    part = self._part(np.subtract(centre, radii), np.add(centre, radii))
    squares = [
      ((place[part] - np.float32(c)) / np.float32(r)) ** 2
      for place, c, r in zip(self.places, centre, radii)
      if np.isfinite(r)
    ]
    result = np.full(self.shape, self.FAR)
    result[part] = (np.sqrt(sum(squares)) - 1) * np.float32(min(radii[1:]))
    return result

  def tube(self, points: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """Returns the union of balls at points [n, 3], round where all sides have equal voxels."""
    stretch = [size / self.shape[2] for size in self.shape]
    result = np.full(self.shape, self.FAR)
    for point, radius in zip(points, radii):
      extent = radius / np.array(stretch)
      part = self._part(point - extent, point + extent)
      away = sum(
        ((place[part] - np.float32(c)) * np.float32(s)) ** 2
        for place, c, s in zip(self.places, point, stretch)
      )
      result[part] = np.minimum(result[part], np.sqrt(away) - np.float32(radius))
    return result

  def paint(self, image: np.ndarray, value, distance: np.ndarray, *, soft: float = 1.5) -> None:
    """Mixes `value` into the image where `distance` is negative, over an edge of `soft` voxels."""
    width = np.float32(soft * self._edge)
    near = distance < width / 2
    weight = np.clip(0.5 - distance[near] / width, 0, 1)
    value = value[near] if np.ndim(value) else np.float32(value)
    image[near] += (value - image[near]) * weight

  def _part(self, low, high):
    """Returns slices that hold a shape within these bounds, with its soft edge, after the warp."""
    ends = [
      np.searchsorted(line, (a - self._reach, b + self._reach))
      for line, a, b in zip(self._lines, low, high)
    ]
    return tuple(slice(int(start), int(stop)) for start, stop in ends)

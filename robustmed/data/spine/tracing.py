"""Traces contours of label masks in the order of Chen et al. 2021, and crops images around them.

A contour has 176 points (x, y): 24 down the left end of the disk, 64 along its bottom, 24 up its
right end, 64 back along its top, each piece at equal arc lengths and without its last point, which
starts the next piece. Left and right, top and bottom are relative to the main axis of the disk (the
largest second moment of its area, pointing to the right of the image). The pieces join where the
outline is `CORNER` of the half length from the middle of the axis.
"""

from typing import NamedTuple

import numpy as np
import scipy.ndimage
import skimage.measure

PIECES = (24, 64, 24, 64)
CORNER = 0.805  # where the phantom's mean disk (a superellipse of power 3.2) has its corners
SMOOTH = 1.0  # pixels along the outline, smooths the steps between pixels
MIN_PIXELS = 32  # of a label; an outline of fewer is mostly steps
CROP = 2.0  # crop side over disk length
_DENSE = 4096


class Frame(NamedTuple):
  """Where a disk lies: (x, y) in pixels."""

  centre: np.ndarray  # of its area
  axis: np.ndarray  # unit vector, to the right
  low: float  # extent along the axis about the centre
  high: float

  @property
  def length(self):
    return self.high - self.low


class Crop(NamedTuple):
  image: np.ndarray  # [side, side] in [0, 1]
  contour: np.ndarray  # [176, 2] in pixels of the crop
  padded: bool  # the crop reaches beyond the image


def labels_of(mask: np.ndarray) -> list[int]:
  """Returns the labels of a mask [h, w] whose largest part has at least `MIN_PIXELS`, ascending."""
  values, counts = np.unique(mask[mask > 0], return_counts=True)
  likely = [int(value) for value, count in zip(values, counts) if count >= MIN_PIXELS]
  return [value for value in likely if largest_part(mask == value)[0].sum() >= MIN_PIXELS]


def largest_part(mask: np.ndarray) -> tuple[np.ndarray, int]:
  """Returns the largest connected part of a boolean mask [h, w] and the number of parts."""
  parts, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
  if count <= 1:
    return mask, count
  sizes = np.bincount(parts.ravel())[1:]
  return parts == 1 + int(sizes.argmax()), count


def trace(mask: np.ndarray) -> np.ndarray:
  """Returns the contour [176, 2] of a boolean mask [h, w] of one part, in the module's order."""
  outlines = skimage.measure.find_contours(np.pad(mask, 1).astype(np.float32), 0.5)
  outline = max(outlines, key=lambda line: abs(_moments(line)[0]))[:-1, ::-1] - 1
  dense = _resample(outline, _DENSE)
  perimeter = np.hypot(*(np.roll(dense, -1, axis=0) - dense).T).sum()
  dense = scipy.ndimage.gaussian_filter1d(dense, SMOOTH * _DENSE / perimeter, axis=0, mode='wrap')
  return _in_order(dense)


def frame(contour: np.ndarray) -> Frame:
  """Returns the main axis of a closed contour [n, 2] and the extent along it."""
  area, centre, second = _moments(contour)
  axis = np.linalg.eigh(second * np.sign(area))[1][:, 1]
  axis = axis if axis[0] > 0 else -axis
  along = (contour - centre) @ axis
  return Frame(centre, axis, float(along.min()), float(along.max()))


def crop(image: np.ndarray, contour: np.ndarray, *, side: int) -> Crop:
  """Returns a square of `CROP` x the disk's length about its centre, scaled to side x side.

  Outside the image its edge is repeated. Intensities are min-max normalised in the crop; a crop
  without any contrast raises ValueError.
  """
  place = frame(contour)
  scale = side / (CROP * place.length)
  origin = place.centre + 0.5 - CROP * place.length / 2
  x, y = ((np.arange(side) + 0.5) / scale + origin[:, None]) - 0.5
  padded = bool((origin < 0).any() or (origin + side / scale > image.shape[::-1]).any())
  image = image.astype(np.float64)
  if scale < 1:
    image = scipy.ndimage.gaussian_filter(image, (1 / scale - 1) / 2, mode='nearest')
  out = scipy.ndimage.map_coordinates(
    image, np.stack(np.meshgrid(y, x, indexing='ij')), order=1, mode='nearest'
  )
  low, high = out.min(), out.max()
  if high - low <= 1e-9 * max(abs(low), abs(high)):  # interpolation rounds
    raise ValueError('the image is constant around the disk')
  moved = (contour + 0.5 - origin) * scale - 0.5
  return Crop((out - low) / (high - low), moved, padded)


def _moments(line):
  """Returns signed area, centroid and central second moments [2, 2] of a closed polygon [n, 2]."""
  x, y = line.T
  nx, ny = np.roll(x, -1), np.roll(y, -1)
  cross = x * ny - nx * y
  area = cross.sum() / 2
  centre = np.array([((x + nx) * cross).sum(), ((y + ny) * cross).sum()]) / (6 * area)
  xx = ((x * x + x * nx + nx * nx) * cross).sum() / 12
  yy = ((y * y + y * ny + ny * ny) * cross).sum() / 12
  xy = ((x * ny + 2 * x * y + 2 * nx * ny + nx * y) * cross).sum() / 24
  second = np.array([[xx, xy], [xy, yy]]) - area * np.outer(centre, centre)
  return area, centre, second


def _resample(line, count):
  """Returns `count` points at equal arc lengths along a closed polygon, from its first point on."""
  closed = np.concatenate([line, line[:1]])
  along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
  at = np.linspace(0, along[-1], count, endpoint=False)
  return np.stack([np.interp(at, along, closed[:, k]) for k in (0, 1)], axis=-1)


def _in_order(dense):
  """Returns the contour [176, 2] of a dense closed outline: pieces left, bottom, right, top."""
  place = frame(dense)
  if _moments(dense)[0] > 0:  # clockwise on the screen, where y points down
    dense = dense[::-1]
  u = (dense - place.centre) @ place.axis
  v = (dense - place.centre) @ [-place.axis[1], place.axis[0]]
  middle, half = (place.low + place.high) / 2, place.length / 2
  dense, u, v = (np.roll(values, -u.argmin(), axis=0) for values in (dense, u, v))
  right = int(u.argmax())
  low, high = middle - CORNER * half, middle + CORNER * half
  # from the left tip along the bottom to the right tip, and back along the top
  corners = [
    int(np.flatnonzero(u[:right] < low)[-1]),
    int(np.flatnonzero(u[:right] < high)[-1]),
    right + int(np.flatnonzero(u[right:] > high)[-1]),
    right + int(np.flatnonzero(u[right:] > low)[-1]),
  ]
  starts = [corners[3] - len(dense), *corners]
  pieces = []
  for start, stop, count in zip(starts, starts[1:], PIECES):
    piece = np.take(dense, np.arange(start, stop + 1), axis=0, mode='wrap')
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(piece, axis=0).T))])
    at = np.linspace(0, along[-1], count, endpoint=False)
    pieces.append(np.stack([np.interp(at, along, piece[:, k]) for k in (0, 1)], axis=-1))
  return np.concatenate(pieces)

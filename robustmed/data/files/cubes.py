"""Three-dimensional arrays: bounding box of the foreground, resizing, intensities in [0, 1]."""

import numpy as np
import skimage.transform

from robustmed import errors

ORDERS = {0: 'nearest', 1: 'linear', 3: 'cubic'}


def foreground_box(mask: np.ndarray) -> np.ndarray:
  """Returns the bounding box [3, 2] (first, past the last) of `mask`; if empty, the whole array."""
  box = np.array([[0, n] for n in mask.shape], np.int32)
  for axis in range(mask.ndim if mask.any() else 0):
    rest = tuple(other for other in range(mask.ndim) if other != axis)
    filled = np.flatnonzero(mask.any(axis=rest))
    box[axis] = filled[0], filled[-1] + 1
  return box


def crop(array: np.ndarray, box: np.ndarray) -> np.ndarray:
  """Returns a view of the part of `array` [d, h, w, ...] inside `box`."""
  return array[tuple(slice(int(low), int(high)) for low, high in box)]


def resize(array: np.ndarray, size, *, order: int) -> np.ndarray:
  """Returns `array` with its first axes resized to `size`, outer borders kept in place; same dtype.

  order 0 takes the nearest voxel. Other orders smooth before they shrink and stay within the
  array's own range.
  """
  size = tuple(int(n) for n in size)
  errors.lookup(ORDERS, order, kind='interpolation order')
  if array.shape[: len(size)] == size:
    return array.copy()
  resized = skimage.transform.resize(
    array if order == 0 else array.astype(np.float32),
    (*size, *array.shape[len(size) :]),
    order=order,
    mode='edge',
    anti_aliasing=order > 0,
    preserve_range=True,
    clip=True,
  )
  return resized.astype(array.dtype)


def standardise(image: np.ndarray, mask: np.ndarray, *, clip: float = 5.0) -> np.ndarray:
  """Returns a series [d, h, w] in [0, 1], float32: z-scored over `mask`, clipped, min-max scaled.

  Outside the mask the result is 0; a series without contrast is 0 everywhere.
  """
  result = np.zeros(image.shape, np.float32)
  inside = image[mask].astype(np.float64)
  if not inside.size or np.ptp(inside) == 0:
    return result
  z = np.clip((inside - inside.mean()) / inside.std(), -clip, clip)
  result[mask] = (z - z.min()) / np.ptp(z)
  return result

"""Three-dimensional arrays: where the foreground is, resizing, intensities in [0, 1]."""

import numpy as np
import skimage.transform

from robustmed import errors

ORDERS = {0: 'nearest', 1: 'linear', 3: 'cubic'}


def foreground_box(mask: np.ndarray) -> np.ndarray:
  """The smallest box [3, 2] (first, past the last) that holds all of `mask`; whole if empty."""
  box = np.array([[0, n] for n in mask.shape], np.int32)
  for axis in range(mask.ndim if mask.any() else 0):
    rest = tuple(other for other in range(mask.ndim) if other != axis)
    filled = np.flatnonzero(mask.any(axis=rest))
    box[axis] = filled[0], filled[-1] + 1
  return box


def crop(array: np.ndarray, box: np.ndarray) -> np.ndarray:
  """A view of the part of `array` [d, h, w, ...] inside `box`."""
  return array[tuple(slice(int(low), int(high)) for low, high in box)]


def resize(array: np.ndarray, size, *, order: int) -> np.ndarray:
  """Resizes the first axes of `array` to `size`, outer borders kept in place; same dtype.

  order 0 takes the nearest voxel. Other orders smooth before they shrink and keep within the
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
  """One series [d, h, w] to [0, 1], float32: z-score over `mask`, clip, smallest 0, largest 1.

  Outside the mask the result is 0, as it is everywhere in a series without contrast.
  """
  result = np.zeros(image.shape, np.float32)
  inside = image[mask].astype(np.float64)
  if not inside.size or np.ptp(inside) == 0:
    return result
  z = np.clip((inside - inside.mean()) / inside.std(), -clip, clip)
  result[mask] = (z - z.min()) / np.ptp(z)
  return result

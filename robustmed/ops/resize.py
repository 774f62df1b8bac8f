"""Nearest and linear resizing over any number of spatial axes, without gathers.

Linear resizing multiplies by one small matrix per axis, so its derivatives are matrix products.
"""

import jax.numpy as jnp
import numpy as np

from robustmed import errors


def nearest(x, factor):
  """Repeats every cell of x [b, *spatial, c]; factor an int or one per spatial axis."""
  rank = x.ndim - 2
  factor = (factor,) * rank if isinstance(factor, int) else tuple(factor)
  if len(factor) != rank:
    raise errors.UserError(f'nearest resize got {len(factor)} factors for {rank} spatial axes')
  split = [size for n in x.shape[1:-1] for size in (n, 1)]
  full = [size for n, f in zip(x.shape[1:-1], factor, strict=True) for size in (n, f)]
  x = x.reshape(x.shape[0], *split, x.shape[-1])
  x = jnp.broadcast_to(x, (x.shape[0], *full, x.shape[-1]))
  grid = [n * f for n, f in zip(full[::2], full[1::2], strict=True)]
  return x.reshape(x.shape[0], *grid, x.shape[-1])


def matrix(size, target, *, align_corners):
  """Returns the interpolation weights [target, size] of one axis, float64 numpy.

  align_corners: the outer cell centres of both grids coincide; otherwise the outer cell borders
  do, and positions beyond the outer centres take the edge value.
  """
  index = np.arange(target)
  if align_corners:
    position = index * (size - 1) / max(target - 1, 1)
  else:
    position = (index + 0.5) * size / target - 0.5
  distance = np.abs(np.clip(position, 0, size - 1)[:, None] - np.arange(size)[None])
  return np.maximum(1 - distance, 0)


def linear(x, size, *, align_corners=False):
  """Resizes x [b, *spatial, c] to [b, *size, c] by linear interpolation, without antialiasing."""
  size = tuple(size)
  if len(size) != x.ndim - 2:
    raise errors.UserError(f'linear resize to {size} does not fit {x.ndim - 2} spatial axes')
  for axis, target in enumerate(size, start=1):
    if target == x.shape[axis]:
      continue
    weights = matrix(x.shape[axis], target, align_corners=align_corners)
    x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(weights, x.dtype), ((axis,), (1,))), -1, axis)
  return x

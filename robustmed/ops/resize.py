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


def cubic_kernel(distance, a, *, xp=np):
  """Returns the cubic convolution kernel of Keys 1981 at distances >= 0; a is its parameter."""
  near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
  far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
  return xp.where(distance <= 1, near, xp.where(distance < 2, far, 0))


def weights(size, position, *, cubic=None, shrink=1.0, exclude_outside=False):
  """Returns interpolation weights [len(position), size] of any positions on one axis, float64.

  cubic: the kernel's parameter, None for linear. shrink: below 1 the kernel is as much wider, which
  filters against aliasing. Elements beyond the borders are those at the border, or left out.
  """
  reach = int(np.ceil((1 if cubic is None else 2) / shrink))
  places = np.floor(position)[:, None] + np.arange(-reach, reach + 1)[None]
  distance = np.abs(places - position[:, None]) * shrink
  if cubic is None:
    parts = np.maximum(1 - distance, 0)
  else:
    parts = cubic_kernel(distance, cubic)
  if exclude_outside:
    parts = np.where((places >= 0) & (places < size), parts, 0)
  if exclude_outside or shrink < 1:
    parts /= parts.sum(1, keepdims=True)
  found = np.zeros((len(position), size))
  rows = np.arange(len(position))[:, None]
  np.add.at(found, (rows, np.clip(places, 0, size - 1).astype(np.int64)), parts)
  return found


def along(x, axis, weights):
  """Returns x with one axis multiplied by a matrix [target, size]."""
  product = jnp.tensordot(x, jnp.asarray(weights, x.dtype), ((axis,), (1,)))
  return jnp.moveaxis(product, -1, axis)

"""Pooling by reshape, whose gradient is a fused broadcast instead of a scatter over windows."""

import jax.numpy as jnp

from robustmed import errors


def _windows(x, window):
  """Returns x as [b, n1, w1, n2, w2, ..., c], and the axes of the windows."""
  spatial = x.shape[1:-1]
  window = (window,) * len(spatial) if isinstance(window, int) else tuple(window)
  if len(window) != len(spatial) or any(n % w for n, w in zip(spatial, window)):
    raise errors.UserError(
      f'pooling by {window} needs sides that are multiples of it, got {spatial}'
    )
  split = [size for n, w in zip(spatial, window) for size in (n // w, w)]
  return x.reshape(x.shape[0], *split, x.shape[-1]), tuple(range(2, 2 * len(spatial) + 1, 2))


def average(x, window):
  """Returns means of x [b, *spatial, c] over windows without overlap, an int or one per axis."""
  x, axes = _windows(x, window)
  return x.mean(axes)


def maximum(x, window):
  """Returns the maximum over windows without overlap; equal maxima share the gradient evenly."""
  x, axes = _windows(x, window)
  return jnp.max(x, axes)


def maximum_around(x, reach):
  """Returns the maximum of the (2 reach + 1)^n cells around every cell of x [b, *spatial, c].

  Cells outside the grid are ignored. One axis after the other, by shifted copies.
  """
  for axis in range(1, x.ndim - 1):
    size = x.shape[axis]
    pad = [(0, 0)] * x.ndim
    pad[axis] = (reach, reach)
    wide = jnp.pad(x, pad, constant_values=-jnp.inf)
    cut = [slice(None)] * x.ndim
    for shift in range(2 * reach + 1):
      cut[axis] = slice(shift, shift + size)
      piece = wide[tuple(cut)]
      x = piece if shift == 0 else jnp.maximum(x, piece)
  return x

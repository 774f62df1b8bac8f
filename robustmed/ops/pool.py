"""Pooling by reshape or shifted copies, whose gradients are no scatter over windows.

`average` and `maximum` take windows without overlap, `average_windows` and `maximum_windows` any.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

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


def lowest(dtype):
  """Returns the value that is no larger than any of a type."""
  return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def _slices(x, axis, taps, stride, padding, dilation, fill):
  """Yields, for every tap of one axis, the strided slice of x that it reads."""
  count = (x.shape[axis] + sum(padding) - dilation * (taps - 1) - 1) // stride + 1
  pad = [(0, 0, 0)] * x.ndim
  pad[axis] = (*padding, 0)
  wide = lax.pad(x, jnp.asarray(fill, x.dtype), pad)
  for tap in range(taps):
    start = tap * dilation
    yield lax.slice_in_dim(wide, start, start + (count - 1) * stride + 1, stride, axis)


def tap_slice(x, tap, taps, *, strides, padding, dilation, fill):
  """Returns the elements of x [b, *spatial, c] that one tap reads, [b, *out, c]."""
  rows = zip(tap, taps, strides, padding, dilation, strict=True)
  for axis, (index, *window) in enumerate(rows, start=1):
    x = next(itertools.islice(_slices(x, axis, *window, fill), index, None))
  return x


def _is_partition(x, window, strides, padding, dilation):
  whole = all(n % w == 0 for n, w in zip(x.shape[1:-1], window, strict=True))
  return whole and strides == window and not any(map(any, padding)) and set(dilation) == {1}


def maximum_windows(x, window, *, strides, padding, dilation):
  """Returns the maximum over windows of any geometry, x [b, *spatial, c] -> [b, *out, c].

  One axis after the other, by shifted strided copies: a maximum of two has a cheap gradient, which
  equal maxima share, where that of a reduction over windows is a scatter.
  """
  if _is_partition(x, window, strides, padding, dilation):
    return maximum(x, window)
  for axis, row in enumerate(zip(window, strides, padding, dilation, strict=True), start=1):
    x = functools.reduce(jnp.maximum, _slices(x, axis, *row, lowest(x.dtype)))
  return x


def average_windows(x, window, *, strides, padding, dilation, counted=None):
  """Returns means over windows of any geometry, x [b, *spatial, c] -> [b, *out, c].

  counted: (low, high) pairs of the padding that counts as zeros, the rest of a window that lies
  outside of the grid being left out; None: nothing outside counts.
  """
  if _is_partition(x, window, strides, padding, dilation):
    return average(x, window)
  counted = counted or ((0, 0),) * len(window)
  rows = zip(window, strides, padding, dilation, counted, strict=True)
  for axis, (*row, inside) in enumerate(rows, start=1):
    n, ((low, high), (before, after)) = x.shape[axis], (row[2], inside)
    present = np.pad(np.ones(n + before + after), (low - before, high - after))
    taps, stride, _, step = row
    count = (len(present) - step * (taps - 1) - 1) // stride + 1
    reads = np.arange(count)[:, None] * stride + np.arange(taps)[None] * step
    weights = 1 / present[reads].sum(1)
    x = functools.reduce(jnp.add, _slices(x, axis, *row, 0))
    shape = [1] * x.ndim
    shape[axis] = count
    x = x * jnp.asarray(weights.reshape(shape), x.dtype)
  return x

"""The adjoints of a convolution with transposed operands, which XLA's CPU backend runs fast."""

import itertools

import jax.numpy as jnp
from jax import lax

from robustmed.ops import conv_window


def _axis_plan(n, k, s, d, lo, m):
  """Returns (cells, per phase the (tap, offset into y) pairs that reach it, padding of y)."""
  count = -(-n // s)
  phases = [
    [(t, (r + lo - t * d) // s) for t in range(k) if (r + lo - t * d) % s == 0] for r in range(s)
  ]
  offsets = [offset for phase in phases for _, offset in phase]
  low = max(0, -min(offsets))
  high = max(0, max(offsets) + count - m)
  return count, phases, (low, high, 0)


def transpose(window, y, k):
  """Returns the adjoint by x of y [b, *out, features] and k [*taps, inputs, features].

  The result is [b, *size, inputs]. For fewer positions than channels, any geometry. Computed as
  K y^T with the kernel on the left in its own layout: XLA's product with a transposed right side
  repacks it at 8 to 50 GFLOP/s when there are few rows, and a transposed copy of a 1024-channel
  kernel costs more than the product.
  """
  rank, inputs = len(window.size), k.shape[-2]
  plans = [
    _axis_plan(n, t, s, d, lo, m)
    for n, t, s, (lo, _), d, m in zip(*window[:5], window.out, strict=True)
  ]
  counts = tuple(count for count, _, _ in plans)
  turned = jnp.moveaxis(y, -1, 0)
  turned = lax.pad(turned, jnp.zeros((), y.dtype), ((0, 0, 0),) * 2 + tuple(p for *_, p in plans))
  lows = [low for _, _, (low, _, _) in plans]

  def phase(choice):
    """Returns one residue of the input grid modulo the strides, [inputs, b, *counts]."""
    kernels, pieces = [], []
    for pairs in itertools.product(*choice):
      kernels.append(k[tuple(t for t, _ in pairs)])
      starts = [offset + low for (_, offset), low in zip(pairs, lows, strict=True)]
      stops = [start + count for start, count in zip(starts, counts, strict=True)]
      piece = lax.slice(turned, (0, 0, *starts), (*turned.shape[:2], *stops))
      pieces.append(piece.reshape(piece.shape[0], -1))
    if not kernels:
      return jnp.zeros((inputs, y.shape[0], *counts), y.dtype)
    # Concatenated outside the product, so that XLA hoists it out of a loop.
    left = jnp.concatenate(kernels, axis=1)
    right = lax.optimization_barrier(jnp.concatenate(pieces, axis=0))
    product = lax.dot(left, right, precision=window.precision)
    return lax.optimization_barrier(product).reshape(inputs, y.shape[0], *counts)

  parts = [phase(choice) for choice in itertools.product(*(phases for _, phases, _ in plans))]
  x = parts[0] if len(parts) == 1 else jnp.stack(parts)
  x = x.reshape(*window.strides, inputs, y.shape[0], *counts)
  grid = itertools.chain(*((rank + 2 + axis, axis) for axis in range(rank)))
  x = x.transpose(rank + 1, *grid, rank)
  full = [count * s for count, s in zip(counts, window.strides, strict=True)]
  x = x.reshape(y.shape[0], *full, inputs)
  return lax.slice(x, (0,) * x.ndim, (y.shape[0], *window.size, inputs))


def kernel_gradient(window, x, y):
  """Returns the adjoint by k as a convolution of x by y with batch and channel axes swapped.

  The arrays are transposed here: for the same as dimension numbers, as in lax, the CPU compiler
  transposes them outside loops only and runs a naive kernel inside.
  """
  rank = len(window.size)
  rows = zip(*window[:5], window.out, strict=True)
  # Negative padding at the end crops positions that no tap reads.
  padding = [(lo, (m - 1) * s + d * (k - 1) + 1 - n - lo) for n, k, s, (lo, _), d, m in rows]
  turned = lax.conv_general_dilated(
    x.transpose(rank + 1, *range(1, rank + 1), 0),
    y.transpose(*range(1, rank + 1), 0, rank + 1),
    window.dilation,
    padding,
    rhs_dilation=window.strides,
    dimension_numbers=conv_window.spec(rank),
    precision=window.precision,
  )
  return turned.transpose(*range(1, rank + 1), 0, rank + 1)

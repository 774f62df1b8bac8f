"""A strided convolution as one matrix product over folded input, for critics on the CPU.

A gradient penalty differentiates twice. On the CPU the native input gradient of a strided 3D
convolution takes a hundred times as long as this one, and second derivatives of conv_rules take
minutes to compile. This form only reshapes, slices and multiplies matrices, and so do all its
derivatives.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def conv(x: Array, kernel: Array, *, strides: int = 1, padding: int | tuple[int, ...] = 0) -> Array:
  """Correlates x [b, *spatial, inputs] with kernel [*taps, inputs, features].

  Folds every cell of `strides` voxels into channels (space to depth), then applies a kernel of
  ceil(taps / strides) cells at every cell. Holds the input (taps / strides)^axes times.
  """
  rank = kernel.ndim - 2
  padding = (padding,) * rank if isinstance(padding, int) else tuple(padding)
  taps = [-(-size // strides) for size in kernel.shape[:rank]]
  sides = [
    (n + 2 * pad - size) // strides + 1
    for n, pad, size in zip(x.shape[1:-1], padding, kernel.shape[:rank], strict=True)
  ]
  borders = [
    (pad, (side + tap - 1) * strides - n - pad, 0)
    for n, pad, side, tap in zip(x.shape[1:-1], padding, sides, taps, strict=True)
  ]
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *borders, (0, 0, 0)])
  x = _cells(x[..., None], strides, first=1, rank=rank)[..., 0]
  spare = [(0, tap * strides - size) for tap, size in zip(taps, kernel.shape[:rank], strict=True)]
  kernel = _cells(jnp.pad(kernel, [*spare, (0, 0), (0, 0)]), strides, first=0, rank=rank)
  shifted = [
    x[(slice(None), *(slice(at, at + side) for at, side in zip(place, sides, strict=True)))]
    for place in itertools.product(*map(range, taps))
  ]
  return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, kernel.shape[-1])


def _cells(value, size, *, first, rank):
  """Folds [..., *spatial, c, o] to [..., *cells, size^rank c, o]; spatial axes begin at `first`."""
  before, spatial, (inputs, features) = (
    value.shape[:first],
    value.shape[first : first + rank],
    value.shape[first + rank :],
  )
  split = [part for n in spatial for part in (n // size, size)]
  cells = [first + 2 * axis for axis in range(rank)]
  within = [axis + 1 for axis in cells]
  value = value.reshape(*before, *split, inputs, features)
  value = value.transpose(*range(first), *cells, *within, first + 2 * rank, first + 2 * rank + 1)
  return value.reshape(*before, *(n // size for n in spatial), size**rank * inputs, features)

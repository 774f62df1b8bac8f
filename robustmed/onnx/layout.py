"""Arrays whose channels axis lies last, as the convolutions want it, until somebody needs it not.

ONNX graphs are channels first, [n, c, *spatial]. `Last` holds such an array as [n, *spatial, c].
Operators that can work on it do; for all others `plain` moves the axis back. A chain of
convolutions, norms and activations is thus transposed once at each end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustmed.onnx import node as nodes


class Last(NamedTuple):
  """An array [n, c, *spatial] of the graph, held as [n, *spatial, c]."""

  array: jax.Array

  @property
  def shape(self):
    """The shape that the graph sees."""
    n, *spatial, c = self.array.shape
    return (n, c, *spatial)

  @property
  def ndim(self):
    """The number of axes."""
    return self.array.ndim

  @property
  def dtype(self):
    """The type of the elements."""
    return self.array.dtype


class Grouped(NamedTuple):
  """A `Last` that the graph sees reshaped to [n, groups, *rest], as exported group norms do."""

  base: Last
  shape: tuple[int, ...]

  @property
  def ndim(self):
    """The number of axes."""
    return len(self.shape)

  @property
  def dtype(self):
    """The type of the elements."""
    return self.base.dtype


def plain(value):
  """Returns a value as the array that the graph sees."""
  if isinstance(value, Grouped):
    return plain(value.base).reshape(value.shape)
  return jnp.moveaxis(value.array, -1, 1) if isinstance(value, Last) else value


def last(value):
  """Returns a value [n, c, *spatial] as an array [n, *spatial, c]."""
  if isinstance(value, Last):
    return value.array
  value = plain(value)
  return nodes.module(value).moveaxis(value, 1, -1)


def axis(value, logical):
  """Returns where an axis of the graph lies in the array of a `Last`."""
  rank = value.ndim
  return 0 if logical == 0 else rank - 1 if logical == 1 else logical - 1


def aligned(values):
  """Returns (arrays of one rank, function that wraps a result) for element-wise operators.

  Where one of the values of the largest rank is a `Last`, all are laid out like it.
  """
  values = [plain(value) if isinstance(value, Grouped) else value for value in values]
  rank = max(value.ndim for value in values)
  if any(isinstance(value, Last) and value.ndim == rank for value in values):
    return [
      value.array if isinstance(value, Last) else _like(value, rank) for value in values
    ], Last
  return nodes.same_rank(*map(plain, values)), lambda array: array


def _like(value, rank):
  if value.ndim == 0:
    return value
  value = value.reshape((1,) * (rank - value.ndim) + value.shape)
  return nodes.module(value).moveaxis(value, 1, -1)


def grouped(value, shape):
  """Returns a `Last` as `Grouped` if the shape merges channels to groups, or None if not."""
  if not isinstance(value, Last) or len(shape) < 3:
    return None
  n, c = value.shape[:2]
  fits = shape[0] == n and shape[1] and c % shape[1] == 0
  return Grouped(value, tuple(shape)) if fits and shape != value.shape else None

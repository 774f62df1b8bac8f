"""What operators know of the node that they compute, and helpers for arrays that may be constants.

A value is a numpy array where it is known before the call (constants and all that follows from
shapes), else a JAX array. Operators that serve shapes compute in numpy on numpy arrays, so that
under `jit` a shape stays a shape.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors

LARGEST = 2**31  # elements of one array that a node may make out of nothing


class Node(NamedTuple):
  """One node of a graph; `opset` is the version of the operator set it is written in."""

  op_type: str
  name: str
  inputs: tuple[str, ...]  # '' where an optional input is absent
  outputs: tuple[str, ...]
  attributes: Mapping[str, Any]
  opset: int

  def get(self, name, default=None):
    """Returns an attribute, or `default` where the node does not give it."""
    return self.attributes.get(name, default)

  def __str__(self):
    return f'{self.op_type} {self.name!r}'


def module(*values):
  """Returns numpy where all values (None aside) are numpy arrays, else jax.numpy."""
  given = [value for value in values if value is not None]
  return np if all(isinstance(value, np.ndarray | np.generic) for value in given) else jnp


def concrete(value, what):
  """Returns a value as a numpy array; what only running the network would tell is a `UserError`."""
  if isinstance(value, jax.core.Tracer):
    raise errors.UserError(
      f'{what} must be known before the call but depends on a traced array; give such an input of '
      'the graph as a numpy array, closed over or static under jit'
    )
  return np.asarray(value)


def integers(value, what):
  """Returns a concrete value as a tuple of Python integers."""
  return tuple(int(item) for item in concrete(value, what).reshape(-1))


def cast(x, dtype):
  """Returns x in a dtype; without 64-bit types JAX arrays take the 32-bit one of the same kind."""
  if isinstance(x, np.ndarray | np.generic):
    return x.astype(dtype)
  return x.astype(jax.dtypes.canonicalize_dtype(dtype))


def axis_of(axis, rank, node):
  """Returns an axis counted from the front, or raises `UserError`."""
  if not -rank <= axis < max(rank, 1):
    raise errors.UserError(f'{node}: axis {axis} of an array with {rank} axes')
  return int(axis) % max(rank, 1)


def limited(shape, node):
  """Returns a shape, or raises `UserError` where it has more than `LARGEST` elements."""
  shape = tuple(int(size) for size in shape)
  if any(size < 0 for size in shape) or math.prod(shape) > LARGEST:
    raise errors.UserError(f'{node} asks for an array of shape {list(shape)[:8]}')
  return shape


def same_rank(*values):
  """Returns the values with leading axes of length 1 up to the largest rank among them."""
  rank = max(value.ndim for value in values)
  return [value.reshape((1,) * (rank - value.ndim) + value.shape) for value in values]


def is_float(x):
  """Returns whether x is of any floating type, bfloat16 and the 8-bit types included."""
  return jnp.issubdtype(x.dtype, jnp.floating)

"""Checks of what users' functions return, by shape and type, while they are traced."""

import contextlib
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from robustmed import errors
from robustmed.types import Array, PyTree

_KINDS = {float: 'floating value', bool: 'bool', None: 'value'}
_SHOWN = 4  # leaves of a pytree that an error names


def per_example(value: Any, batch: int, *, what: str, dtype: type | None = float) -> Array:
  """Returns `value` as an array of shape [batch]; other shapes are a `UserError` that names `what`.

  dtype: float for any floating type, bool, or None for numbers and bools of every type.
  """
  wanted = (
    f'{what} must return one {_KINDS[dtype]} per example, shape ({batch},) (reduce every axis '
    'except the first)'
  )
  with _expected(wanted, value):
    array = _array(value)
    chex.assert_shape(array, (batch,))
    if dtype is not None:
      chex.assert_type(array, dtype)
  return array


def columns(values: Any, batch: int, *, what: str) -> dict[str, Array]:
  """Returns `values` as a dictionary of arrays of shape [batch], else raises `UserError`."""
  if not isinstance(values, Mapping):
    raise errors.UserError(
      f'{what} must return a dict of values, but returned {describe_value(values)}'
    )
  return {
    name: per_example(value, batch, what=f'{name!r} of {what}', dtype=None)
    for name, value in values.items()
  }


def batched(tree: PyTree, batch: int, *, what: str) -> PyTree:
  """Returns `tree` with arrays [batch, ...] as leaves, else raises `UserError`."""
  with _expected(f'{what} must return arrays [b, ...] whose leading axis is {batch}', tree):
    arrays = jax.tree.map(_array, tree)
    chex.assert_tree_shape_prefix(arrays, (batch,))
  return arrays


def broadcast_per_example(value: Any, like: Array, *, what: str) -> Array:
  """Returns a number, or one per example of `like` [b, ...], as [b] of its dtype."""
  batch = like.shape[0]
  wanted = f'{what} must be a number or have shape ({batch},), one per example'
  with _expected(wanted, value, verb='is'):
    array = jnp.asarray(value)
    if array.ndim:
      chex.assert_shape(array, (batch,))
    assert not jnp.iscomplexobj(array), 'a complex number'
  return jnp.broadcast_to(array.astype(like.dtype), (batch,))


def describe_value(value: Any) -> str:
  """Returns types and shapes of a value as text: 'a tuple of [0] float32 of shape (3,), ...'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(value)
  if jax.tree_util.all_leaves([value]):
    return _leaf(value)
  shown = [f'{jax.tree_util.keystr(path)} {_leaf(leaf)}' for path, leaf in leaves[:_SHOWN]]
  more = [f'and {len(leaves) - _SHOWN} more'] if len(leaves) > _SHOWN else []
  return f'a {type(value).__name__} of {", ".join(shown + more)}' if leaves else repr(value)


def _leaf(leaf):
  if not hasattr(leaf, 'shape') or not hasattr(leaf, 'dtype'):
    return f'{type(leaf).__name__} {leaf!r}'[:60]
  return f'{leaf.dtype} of shape {leaf.shape}'


def _array(value):
  # jnp.asarray would stack a tuple of equal shapes.
  if not jax.tree_util.all_leaves([value]):
    raise TypeError('not an array')
  return jnp.asarray(value)


@contextlib.contextmanager
def _expected(wanted, value, *, verb='returned'):
  try:
    yield
  except (AssertionError, TypeError, ValueError) as error:
    raise errors.UserError(f'{wanted}, but {verb} {describe_value(value)}') from error

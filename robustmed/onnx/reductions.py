"""Sums, means, extremes and norms over axes, their places, and sums along an axis."""

import math

import jax.numpy as jnp
import numpy as np

from robustmed.onnx import layout
from robustmed.onnx import node as nodes


def reduce(name):
  """Returns the operator that reduces with `_<name>` over the given axes, or all."""
  function = globals()[f'_{name}']

  def operator(node, x, axes=None):
    return _over_axes(node, x, axes, function)

  return operator


def _over_axes(node, x, axes, function):
  axes = node.get('axes') if axes is None else nodes.integers(axes, f'{node}: axes')
  if not axes:
    if node.get('noop_with_empty_axes', 0):
      return x
    axes = range(x.ndim)
  axes = tuple(nodes.axis_of(axis, x.ndim, node) for axis in axes)
  if isinstance(x, layout.Last):
    found = function(jnp, x.array, tuple(layout.axis(x, axis) for axis in axes))
    found = layout.Last(nodes.cast(found, x.dtype))
  else:
    x = layout.plain(x)
    found = nodes.cast(function(nodes.module(x), x, axes), x.dtype)
  if node.get('keepdims', 1):
    return found
  rest = [n for axis, n in enumerate(found.shape) if axis not in axes]
  return layout.plain(found).reshape(rest)


def _sum(xp, x, axes):
  return xp.sum(x, axes, keepdims=True)


def _mean(xp, x, axes):
  return xp.mean(x, axes, keepdims=True)


def _prod(xp, x, axes):
  return xp.prod(x, axes, keepdims=True)


def _extreme(xp, x, axes, name, low):
  if math.prod(x.shape[axis] for axis in axes):
    return getattr(xp, name)(x, axes, keepdims=True)
  if x.dtype == bool:
    start = low
  elif nodes.is_float(x):
    start = math.inf if low else -math.inf
  else:
    start = np.iinfo(x.dtype).max if low else np.iinfo(x.dtype).min
  return getattr(xp, name)(x, axes, keepdims=True, initial=start)


def _max(xp, x, axes):
  return _extreme(xp, x, axes, 'max', False)


def _min(xp, x, axes):
  return _extreme(xp, x, axes, 'min', True)


def _l1(xp, x, axes):
  return xp.sum(xp.abs(x), axes, keepdims=True)


def _sum_square(xp, x, axes):
  return xp.sum(xp.square(x), axes, keepdims=True)


def _l2(xp, x, axes):
  squares = _sum_square(xp, x, axes)
  # The gradient at 0 is 0, not NaN.
  positive = squares > 0
  return xp.where(positive, xp.sqrt(xp.where(positive, squares, xp.ones_like(squares))), squares)


def _log_sum(xp, x, axes):
  return xp.log(_sum(xp, x, axes))


def _log_sum_exp(xp, x, axes):
  top = _max(xp, x, axes)
  top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
  return xp.log(_sum(xp, xp.exp(x - top), axes)) + top


def arg(name):
  """Returns the operator that gives the place of an extreme along an axis."""

  def operator(node, x):
    axis = nodes.axis_of(node.get('axis', 0), x.ndim, node)
    array, place, wrap = x, axis, lambda array: array
    if isinstance(x, layout.Last):
      array, place, wrap = x.array, layout.axis(x, axis), layout.Last
    array = layout.plain(array)
    xp, n = nodes.module(array), array.shape[place]
    if node.get('select_last_index', 0):
      found = n - 1 - getattr(xp, name)(xp.flip(array, place), place)
    else:
      found = getattr(xp, name)(array, place)
    found = wrap(xp.expand_dims(nodes.cast(found, np.int64), place))
    if node.get('keepdims', 1):
      return found
    rest = [n for i, n in enumerate(found.shape) if i != axis]
    return layout.plain(found).reshape(rest)

  return operator


def cumulative_sum(node, x, axis):
  """Returns the sums up to every element, itself included or not, from either end."""
  place = nodes.axis_of(int(nodes.concrete(axis, f'{node}: axis').item()), x.ndim, node)
  xp = nodes.module(x)
  x = xp.flip(x, place) if node.get('reverse', 0) else x
  total = nodes.cast(xp.cumsum(x, place), x.dtype)
  total = total - x if node.get('exclusive', 0) else total
  return xp.flip(total, place) if node.get('reverse', 0) else total

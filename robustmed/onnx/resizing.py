"""Resize, Upsample and GridSample.

Resizing is one linear map per axis, worked out in numpy: a repetition or a choice of elements for
`nearest`, a small matrix for `linear` and `cubic`.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.onnx import layout
from robustmed.onnx import node as nodes
from robustmed.ops import resize as resizes

ROUNDINGS = {
  'round_prefer_floor': lambda position: np.ceil(position - 0.5),
  'round_prefer_ceil': lambda position: np.floor(position + 0.5),
  'floor': np.floor,
  'ceil': np.ceil,
}


def resize(node, x, *operands):
  """Returns x at the size that `scales` or `sizes` say; all modes of version 19 and before."""
  if node.opset < 11:
    roi, (scales, sizes) = None, (*operands[:1], None)
  else:
    roi, scales, sizes = (*operands, None, None, None)[:3]
  rank = x.ndim
  axes = [nodes.axis_of(axis, rank, node) for axis in node.get('axes') or range(rank)]
  if sizes is not None and sizes.size:
    wanted = nodes.integers(sizes, f'{node}: sizes')
    factors = [size / x.shape[axis] for axis, size in zip(axes, wanted, strict=True)]
    policy = node.get('keep_aspect_ratio_policy', 'stretch')
    if policy != 'stretch':
      factor = (min if policy == 'not_larger' else max)(factors)
      factors = [factor] * len(axes)
      wanted = [math.floor(factor * x.shape[axis] + 0.5) for axis in axes]
  else:
    factors = [float(value) for value in nodes.concrete(scales, f'{node}: scales').reshape(-1)]
    wanted = [math.floor(x.shape[a] * f) for a, f in zip(axes, factors, strict=True)]
  region = [None] * len(axes)
  if roi is not None and roi.size:
    roi = nodes.concrete(roi, f'{node}: roi').astype(float)
    region = list(zip(roi[: len(axes)], roi[len(axes) :], strict=True))
  plan = {
    axis: (size, factor, borders)
    for axis, size, factor, borders in zip(axes, wanted, factors, region, strict=True)
    if size != x.shape[axis] or factor != 1
  }
  crop = node.get('coordinate_transformation_mode', '') == 'tf_crop_and_resize'
  if crop:
    plan = dict(zip(axes, zip(wanted, factors, region, strict=True), strict=True))
  shape = [plan[axis][0] if axis in plan else n for axis, n in enumerate(x.shape)]
  nodes.limited(shape, node)
  return _apply(node, x, plan)


def upsample(node, x, scales=None):
  """Returns x enlarged by `scales`, an input from version 9 on and an attribute before."""
  given = node.get('scales') if scales is None else nodes.concrete(scales, f'{node}: scales')
  if given is None:
    given = (1, 1, node.get('height_scale'), node.get('width_scale'))
  attributes = {
    'mode': node.get('mode', 'nearest'),
    'coordinate_transformation_mode': 'asymmetric',
    'nearest_mode': 'floor',
  }
  plan = {
    axis: (math.floor(n * float(factor)), float(factor), None)
    for axis, (n, factor) in enumerate(zip(x.shape, given, strict=True))
    if factor != 1
  }
  nodes.limited([plan[a][0] if a in plan else n for a, n in enumerate(x.shape)], node)
  return _apply(node._replace(attributes=attributes), x, plan)


def _apply(node, x, plan):
  wrap, place = lambda array: array, lambda axis: axis
  if x.ndim > 2:
    x = layout.Last(jnp.asarray(layout.last(x)))
    x, wrap, place = x.array, layout.Last, lambda axis, value=x: layout.axis(value, axis)
  x = jnp.asarray(layout.plain(x))
  outside = []
  for axis, (target, factor, region) in sorted(plan.items()):
    size, axis = x.shape[place(axis)], place(axis)
    position, beyond = _positions(node, size, target, factor, region)
    if beyond is not None:
      outside.append((axis, beyond))
    if size != target or not np.array_equal(position, np.arange(size)):
      x = _resized(node, x, axis, position, factor)
  for axis, beyond in outside:
    beyond = beyond.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    x = jnp.where(beyond, jnp.asarray(node.get('extrapolation_value', 0.0), x.dtype), x)
  return wrap(x)


def _positions(node, size, target, factor, region):
  """Returns where in the input each output element lies, and which of them lie outside or None."""
  index, length = np.arange(target, dtype=np.float64), factor * size
  # Version 10 knows no other than asymmetric.
  mode = node.get(
    'coordinate_transformation_mode', 'half_pixel' if node.opset >= 11 else 'asymmetric'
  )
  if mode == 'align_corners':
    return index * (size - 1) / (length - 1) if length != 1 else np.zeros(target), None
  if mode == 'asymmetric':
    return index / factor, None
  if mode == 'tf_crop_and_resize':
    start, stop = region
    if length == 1:
      position = np.full(target, (stop - start) * (size - 1) / 2)
    else:
      position = index * (stop - start) * (size - 1) / (length - 1)
    position = position + start * (size - 1)
    return position, (position < 0) | (position > size - 1)
  if mode == 'tf_half_pixel_for_nn':
    return (index + 0.5) / factor, None
  if mode == 'pytorch_half_pixel' and length == 1:
    return np.full(target, -0.5), None
  position = (index + 0.5) / factor - 0.5
  if mode == 'half_pixel_symmetric':
    return position + size / 2 * (1 - target / length), None
  if mode not in ('half_pixel', 'pytorch_half_pixel'):
    raise errors.UserError(f'{node}: unknown coordinate_transformation_mode {mode!r}')
  return position, None


def _resized(node, x, axis, position, factor):
  size, target, mode = x.shape[axis], len(position), node.get('mode', 'nearest')
  if mode == 'nearest':
    rounding = node.get('nearest_mode', 'round_prefer_floor' if node.opset >= 11 else 'floor')
    index = errors.lookup(ROUNDINGS, rounding, kind='nearest_mode')(position)
    index = np.clip(index, 0, size - 1).astype(np.int64)
    if target % size == 0 and np.array_equal(index, np.arange(target) // (target // size)):
      if 0 < axis < x.ndim - 1:
        factors = [1] * (x.ndim - 2)
        factors[axis - 1] = target // size
        return resizes.nearest(x, factors)
      return jnp.repeat(x, target // size, axis)
    return jnp.take(x, index, axis)
  if mode not in ('linear', 'cubic', 'bilinear'):
    raise errors.UserError(f'{node}: unknown mode {mode!r}')
  weights = resizes.weights(
    size,
    position,
    cubic=node.get('cubic_coeff_a', -0.75) if mode == 'cubic' else None,
    shrink=min(factor, 1.0) if node.get('antialias', 0) else 1.0,
    exclude_outside=bool(node.get('exclude_outside', 0)),
  )
  return resizes.along(x, axis, weights)


def grid_sample(node, x, grid):
  """Returns x [n, c, *spatial] at the places of grid [n, *out, axes], given in [-1, 1], x first."""
  x, grid = jnp.asarray(layout.last(x)), jnp.asarray(layout.plain(grid))
  mode = node.get('mode', 'linear').removeprefix('bi')
  padding, corners = node.get('padding_mode', 'zeros'), bool(node.get('align_corners', 0))
  sizes = x.shape[1:-1]
  places = []
  for axis, size in enumerate(sizes):
    at = grid[..., len(sizes) - 1 - axis]
    at = (at + 1) / 2 * (size - 1) if corners else ((at + 1) * size - 1) / 2
    at = jnp.round(at) if mode == 'nearest' else at
    if padding == 'border':
      at = jnp.where((at < 0) | (at > size - 1), jnp.clip(at, 0, size - 1), at)
    elif padding == 'reflection':
      at = _reflected(at, size, corners)
    places.append(at)
  taps = {'nearest': (0,), 'linear': (0, 1), 'cubic': (-1, 0, 1, 2)}
  taps = errors.lookup(taps, mode, kind='mode of GridSample')
  floors = [jnp.floor(at) for at in places]
  total = jnp.zeros((*grid.shape[:-1], x.shape[-1]), x.dtype)
  for choice in itertools.product(taps, repeat=len(sizes)):
    weight = jnp.ones(grid.shape[:-1], x.dtype)
    for tap, at, floor in zip(choice, places, floors, strict=True):
      distance = jnp.abs(at - floor - tap)
      weight *= _tap_weight(mode, distance).astype(x.dtype)
    index = [floor + tap for tap, floor in zip(choice, floors, strict=True)]
    total += weight[..., None] * _pixels(x, index, padding, corners)
  return layout.Last(total)


def _tap_weight(mode, distance):
  if mode == 'nearest':
    return jnp.ones_like(distance)
  return 1 - distance if mode == 'linear' else resizes.cubic_kernel(distance, -0.75, xp=jnp)


def _reflected(at, size, corners):
  low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
  if high == low:
    return jnp.full_like(at, low)
  beyond = jnp.where(at < low, low - at, at - high)
  turns = jnp.floor(beyond / (high - low))
  rest, even = beyond - turns * (high - low), turns % 2 == 0
  below = jnp.where(even, low + rest, high - rest)
  above = jnp.where(even, high - rest, low + rest)
  return jnp.where(at < low, below, jnp.where(at > high, above, at))


def _pixels(x, index, padding, corners):
  """Returns the elements of x [n, *spatial, c] at floating whole places, [n, *out, c]."""
  sizes, flat, present = x.shape[1:-1], 0, True
  for size, at in zip(sizes, index, strict=True):
    if padding == 'zeros':
      present = present & (at >= 0) & (at <= size - 1)
    elif padding == 'reflection':
      at = jnp.trunc(_reflected(at, size, corners))
    flat = flat * size + jnp.clip(at, 0, size - 1).astype(jnp.int32)
  columns = x.reshape(x.shape[0], -1, x.shape[-1])
  found = jnp.take_along_axis(columns, flat.reshape(x.shape[0], -1, 1), axis=1)
  found = found.reshape(*flat.shape, x.shape[-1])
  return jnp.where(present[..., None], found, 0) if padding == 'zeros' else found

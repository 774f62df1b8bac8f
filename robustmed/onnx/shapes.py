"""Shapes and what makes, cuts and joins arrays; all of it computes in numpy on constants."""

import math

import jax.numpy as jnp
import numpy as np
import onnx

from robustmed import errors
from robustmed.onnx import layout
from robustmed.onnx import node as nodes


def _laid(x):
  """Returns (array, function that gives its axis, function that wraps results) of any value."""
  if isinstance(x, layout.Last):
    return x.array, lambda axis: layout.axis(x, axis), layout.Last
  return layout.plain(x), lambda axis: axis, lambda array: array


def shape(node, x):
  """Returns the shape as a numpy array, or the part of it between `start` and `end`."""
  return np.asarray(x.shape[node.get('start', 0) : node.get('end')], np.int64)


def size(node, x):
  """Returns the number of elements as a numpy array."""
  return np.asarray(math.prod(x.shape), np.int64)


def constant(node):
  """Returns the value that the node holds."""
  kinds = {'value': None, 'value_float': np.float32, 'value_int': np.int64}
  kinds |= {'value_floats': np.float32, 'value_ints': np.int64}
  kinds |= {'value_string': np.object_, 'value_strings': np.object_}
  for name, dtype in kinds.items():
    if node.get(name) is not None:
      return np.asarray(node.get(name), dtype)
  raise errors.UserError(f'{node} holds no value of a kind that is supported')


def constant_of_shape(node, wanted):
  """Returns an array of one value, float 0 by default."""
  value = node.get('value', np.zeros(1, np.float32))
  wanted = nodes.limited(nodes.integers(wanted, f'{node}: the shape'), node)
  return np.full(wanted, value.reshape(-1)[0], value.dtype)


def arange(node, start, limit, delta):
  """Returns the numbers from start to limit in steps of delta."""
  start, limit, delta = (
    nodes.concrete(value, f'{node}: its limits').reshape(()) for value in (start, limit, delta)
  )
  count = max(math.ceil((float(limit) - float(start)) / float(delta)), 0)
  nodes.limited((count,), node)
  return (start + np.arange(count, dtype=start.dtype) * delta).astype(start.dtype)


def eye_like(node, x):
  """Returns ones on a diagonal of the shape of x."""
  dtype = x.dtype
  if node.get('dtype') is not None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(node.get('dtype'))
  return np.eye(*x.shape, k=node.get('k', 0), dtype=dtype)


def trilu(node, x, k=None):
  """Returns the upper or lower triangle of the last two axes."""
  shift = 0 if k is None else int(nodes.concrete(k, f'{node}: k').item())
  rows, columns = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])[None]
  kept = columns - rows >= shift if node.get('upper', 1) else columns - rows <= shift
  kept = kept.reshape((1,) * (x.ndim - 2) + kept.shape)
  xp = nodes.module(x)
  return xp.where(kept, x, xp.zeros((), x.dtype))


def reshape(node, x, wanted=None):
  """Returns x in another shape; 0 copies an axis, unless `allowzero`, and -1 takes the rest."""
  given = node.get('shape') if wanted is None else nodes.integers(wanted, f'{node}: the shape')
  copies = not node.get('allowzero', 0)
  target = [x.shape[i] if n == 0 and copies else n for i, n in enumerate(given)]
  total = math.prod(x.shape)
  if -1 in target:
    rest = math.prod(n for n in target if n != -1)
    if rest == 0 or total % rest:
      raise ValueError(f'{list(x.shape)} does not fill {target}')
    target[target.index(-1)] = total // rest
  target = tuple(target)
  if target == tuple(x.shape):
    return x
  if isinstance(x, layout.Grouped):
    if target == x.base.shape:
      return x.base
    x = x.base
  merged = layout.grouped(x, target) if math.prod(target) == total else None
  return layout.plain(x).reshape(target) if merged is None else merged


def flatten(node, x):
  """Returns x as a matrix, the axes before `axis` being its rows."""
  axis = node.get('axis', 1)
  axis = axis + x.ndim if axis < 0 else axis
  return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(node, x):
  """Returns x with its axes in another order; to and from channels last costs nothing."""
  x = layout.plain(x) if isinstance(x, layout.Grouped) else x
  rank = x.ndim
  order = tuple(node.get('perm') or reversed(range(rank)))
  array, place, _ = _laid(x)
  order = tuple(place(nodes.axis_of(axis, rank, node)) for axis in order)
  if order == tuple(range(rank)):
    return array
  if rank > 2 and (order[0], *order[2:], order[1]) == tuple(range(rank)):
    return layout.Last(array)
  return nodes.module(array).transpose(array, order)


def _axes(node, given):
  """Returns the axes of an operand or, in old versions, of an attribute; None where absent."""
  if given is not None:
    return nodes.integers(given, f'{node}: axes')
  return node.get('axes')


def squeeze(node, x, axes=None):
  """Returns x without axes of length 1, all of them if none are named."""
  axes = _axes(node, axes)
  if axes is None:
    axes = [axis for axis, n in enumerate(x.shape) if n == 1]
  return nodes.module(x).squeeze(x, tuple(nodes.axis_of(axis, x.ndim, node) for axis in axes))


def unsqueeze(node, x, axes=None):
  """Returns x with new axes of length 1 at the given places of the result."""
  axes = _axes(node, axes)
  rank = x.ndim + len(axes)
  places = {nodes.axis_of(axis, rank, node) for axis in axes}
  rest = iter(x.shape)
  return x.reshape([1 if axis in places else next(rest) for axis in range(rank)])


def concat(node, *values):
  """Returns arrays joined along an axis, channels last if one of them is."""
  rank = values[0].ndim
  axis = nodes.axis_of(node.get('axis', 1), rank, node)
  if rank > 2 and any(isinstance(value, layout.Last) for value in values):
    arrays = [layout.last(value) for value in values]
    return layout.Last(jnp.concatenate(arrays, layout.axis(layout.Last(arrays[0]), axis)))
  arrays = [layout.plain(value) for value in values]
  return nodes.module(*arrays).concatenate(arrays, axis)


def split(node, x, lengths=None):
  """Returns parts of x along an axis, of the given or of equal lengths, the last one the rest."""
  axis = nodes.axis_of(node.get('axis', 0), x.ndim, node)
  given = node.get('split')
  if lengths is not None:
    given = nodes.integers(lengths, f'{node}: lengths')
  array, place, wrap = _laid(x)
  total = array.shape[place(axis)]
  if given is None:
    parts = node.get('num_outputs', len(node.outputs))
    step = -(-total // parts)
    given = [max(0, min(step, total - step * i)) for i in range(parts)]
  if sum(given) != total:
    raise ValueError(f'parts {list(given)} of an axis of {total}')
  stops = np.cumsum(given)[:-1].tolist()
  return tuple(map(wrap, nodes.module(array).split(array, stops, place(axis))))


def slices(node, x, *operands):
  """Returns x between starts and ends, in steps, along the given axes."""
  if node.opset < 10:
    starts, ends, axes, steps = node.get('starts'), node.get('ends'), node.get('axes'), None
  else:
    names = ('starts', 'ends', 'axes', 'steps')
    given = (*operands, None, None)[:4]
    starts, ends, axes, steps = (
      None if value is None else nodes.integers(value, f'{node}: {name}')
      for name, value in zip(names, given, strict=True)
    )
  axes = range(len(starts)) if axes is None else axes
  steps = (1,) * len(starts) if steps is None else steps
  array, place, wrap = _laid(x)
  cut = [slice(None)] * array.ndim
  for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
    axis = nodes.axis_of(axis, array.ndim, node)
    n = x.shape[axis]
    # numpy means the last element by -1; ONNX lies before the first where it is beyond it.
    start = max(start + n if start < 0 else start, 0)
    end = end + n if end < 0 else end
    if step < 0:
      end = None if end < 0 else end
      start = min(start, n - 1)
    else:
      end = max(end, 0)
    cut[place(axis)] = slice(start, end, step)
  return wrap(array[tuple(cut)])


def expand(node, x, wanted):
  """Returns x broadcast with a shape."""
  wanted = nodes.integers(wanted, f'{node}: the shape')
  target = nodes.limited(np.broadcast_shapes(x.shape, wanted), node)
  x = x.reshape((1,) * (len(target) - x.ndim) + tuple(x.shape))
  return nodes.module(x).broadcast_to(x, target)


def tile(node, x, repeats, axis=None):
  """Returns x repeated along every axis."""
  if axis is not None:  # version 1: how often, and along which axis
    counts = [1] * x.ndim
    counts[int(nodes.concrete(axis, f'{node}: axis').item())] = int(
      nodes.concrete(repeats, f'{node}: tiles').item()
    )
  else:
    counts = nodes.integers(repeats, f'{node}: repeats')
  nodes.limited([n * count for n, count in zip(x.shape, counts, strict=True)], node)
  return nodes.module(x).tile(x, counts)


def pad(node, x, pads=None, value=None, axes=None):
  """Returns x padded; negative pads crop."""
  if node.opset < 11:
    given, fill = node.get('pads') or node.get('paddings'), node.get('value', 0.0)
  else:
    given = nodes.integers(pads, f'{node}: pads')
    fill = 0 if value is None else value
  rank = x.ndim
  places = range(rank) if axes is None else nodes.integers(axes, f'{node}: axes')
  half = len(given) // 2
  array, place, wrap = _laid(x)
  width, cut = [(0, 0)] * rank, [slice(None)] * rank
  for axis, low, high in zip(places, given[:half], given[half:], strict=True):
    axis = nodes.axis_of(axis, rank, node)
    n, at = x.shape[axis], place(axis)
    width[at] = (max(low, 0), max(high, 0))
    cut[at] = slice(max(-low, 0), n - max(-high, 0))
  array = array[tuple(cut)]
  nodes.limited([n + sum(w) for n, w in zip(array.shape, width, strict=True)], node)
  if not any(map(any, width)):
    return wrap(array)
  mode = node.get('mode', 'constant')
  if mode != 'constant':
    return wrap(nodes.module(array).pad(array, width, mode=mode))
  xp = nodes.module(array, fill) if isinstance(fill, jnp.ndarray) else nodes.module(array)
  fill = xp.asarray(fill, array.dtype).reshape(())
  return wrap(xp.pad(array, width, constant_values=fill))

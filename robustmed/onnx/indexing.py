"""Gathers, scatters, the largest elements, one-hot codes and non-maximum suppression."""

import numpy as np

from robustmed import errors
from robustmed.onnx import node as nodes

UPDATES = {'none': 'set', 'add': 'add', 'mul': 'multiply', 'min': 'min', 'max': 'max'}


def _from_front(index, size):
  """Returns indices counted from the front; ONNX counts negative ones from the end."""
  xp = nodes.module(index)
  return xp.where(index < 0, index + size, index)


def gather(node, x, index):
  """Returns the slices of x at some places of an axis."""
  axis = nodes.axis_of(node.get('axis', 0), x.ndim, node)
  index = _from_front(index, x.shape[axis])
  known = isinstance(index, np.ndarray) and index.size
  if known and (index.min() < 0 or index.max() >= x.shape[axis]):
    raise IndexError(f'index outside of an axis of {x.shape[axis]}')
  return nodes.module(x, index).take(x, index, axis)


def gather_elements(node, x, index):
  """Returns the elements of x whose place along an axis is the index."""
  axis = nodes.axis_of(node.get('axis', 0), x.ndim, node)
  index = _from_front(index, x.shape[axis])
  cut = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(index.shape))
  return nodes.module(x, index).take_along_axis(x[cut], index, axis)


def gather_nd(node, x, index):
  """Returns the slices of x at index tuples, the last axis of the index."""
  batch, depth = node.get('batch_dims', 0), index.shape[-1]
  parts = tuple(_from_front(index[..., i], x.shape[batch + i]) for i in range(depth))
  rank = index.ndim - 1
  own = tuple(
    np.arange(n).reshape([-1 if i == axis else 1 for i in range(rank)])
    for axis, n in enumerate(x.shape[:batch])
  )
  return x[(*own, *parts)]


def scatter_elements(node, x, index, updates):
  """Returns x with elements changed whose place along an axis is the index."""
  axis = nodes.axis_of(node.get('axis', 0), x.ndim, node)
  index = _from_front(index, x.shape[axis])
  rank = x.ndim
  places = [
    index if i == axis else np.arange(n).reshape([-1 if j == i else 1 for j in range(rank)])
    for i, n in enumerate(index.shape)
  ]
  return _update(node, x.at[tuple(places)], updates)


def scatter_nd(node, x, index, updates):
  """Returns x with slices changed that lie at index tuples, the last axis of the index."""
  parts = tuple(_from_front(index[..., i], x.shape[i]) for i in range(index.shape[-1]))
  return _update(node, x.at[parts], updates)


def _update(node, place, updates):
  name = errors.lookup(UPDATES, node.get('reduction', 'none'), kind=f'reduction of {node}')
  return getattr(place, name)(updates)


def top_k(node, x, k=None):
  """Returns (values, places) of the k largest or smallest elements, equal ones by their place."""
  axis = nodes.axis_of(node.get('axis', -1), x.ndim, node)
  count = node.get('k') if k is None else int(nodes.concrete(k, f'{node}: k').item())
  xp, n = nodes.module(x), x.shape[axis]
  if node.get('largest', 1):
    flipped = xp.flip(x, axis)
    order = n - 1 - xp.flip(xp.argsort(flipped, axis=axis, stable=True), axis)
  else:
    order = xp.argsort(x, axis=axis, stable=True)
  cut = tuple(slice(count) if i == axis else slice(None) for i in range(x.ndim))
  order = order[cut]
  return xp.take_along_axis(x, order, axis), nodes.cast(order, np.int64)


def one_hot(node, index, depth, values):
  """Returns on at the index of a new axis and off elsewhere; values are (off, on)."""
  depth = int(nodes.concrete(depth, f'{node}: depth').reshape(-1)[0])
  axis = nodes.axis_of(node.get('axis', -1), index.ndim + 1, node)
  nodes.limited((*index.shape, depth), node)
  xp = nodes.module(index)
  whole = xp.expand_dims(index, axis)
  places = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(index.ndim + 1)])
  found = (whole % depth).astype(np.int32) == places.astype(np.int32)
  # Outside of [-depth, depth - 1] nothing is on.
  found = found & (whole >= -depth) & (whole < depth)
  return nodes.module(index, values).where(found, values[1], values[0])


def non_zero(node, x):
  """Returns the places of all elements but zeros; their number must be known before the call."""
  return np.asarray(np.nonzero(nodes.concrete(x, f'{node}: its input')), np.int64)


def non_max_suppression(node, boxes, scores, most=None, overlap=None, least=None):
  """Returns (batch, class, box) rows of the boxes that no better one of their class covers.

  Their number depends on the values, so these must be known: it does not run under jit.
  """
  boxes, scores = (nodes.concrete(v, f'{node}: boxes and scores') for v in (boxes, scores))
  most, overlap, least = (
    default if value is None else nodes.concrete(value, f'{node}: its limits').item()
    for value, default in ((most, 0), (overlap, 0.0), (least, None))
  )
  corners = _corners(boxes.astype(np.float64), node.get('center_point_box', 0))
  rows = []
  for batch in range(scores.shape[0]):
    for label in range(scores.shape[1]):
      kept = []
      for box in np.argsort(-scores[batch, label], kind='stable'):
        if len(kept) >= most or (least is not None and scores[batch, label, box] <= least):
          break
        if all(_overlap(corners[batch, box], corners[batch, other]) <= overlap for other in kept):
          kept.append(box)
      rows += [(batch, label, box) for box in kept]
  return np.asarray(rows, np.int64).reshape(-1, 3)


def _corners(boxes, centred):
  if centred:
    x, y, width, height = np.moveaxis(boxes, -1, 0)
    return np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)
  a, b = boxes[..., :2], boxes[..., 2:]
  return np.concatenate([np.minimum(a, b), np.maximum(a, b)], -1)


def _overlap(a, b):
  sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
  common = sides.prod()
  total = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common
  return common / total if total > 0 else 0.0

"""Pools over windows and over whole grids, channels last."""

import itertools
import math

import jax.numpy as jnp
import numpy as np

from robustmed.onnx import convolution, layout
from robustmed.onnx import node as nodes
from robustmed.ops import pool as pools


def _geometry(node, x):
  """Returns (taps, strides, pads, dilations); with ceil_mode the last window may begin inside."""
  taps = tuple(node.get('kernel_shape'))
  strides, dilations = convolution.window(node, len(taps))
  size = x.shape[1:-1]
  pads = convolution.pads(node, size, taps, strides, dilations)
  if node.get('ceil_mode', 0):
    pads = tuple(_ceiled(*row) for row in zip(size, taps, strides, dilations, pads, strict=True))
  return taps, strides, pads, dilations


def _ceiled(n, k, s, d, pad):
  low, high = pad
  count = -(-(n + low + high - d * (k - 1) - 1) // s) + 1
  if (count - 1) * s >= n + low:
    count -= 1
  return low, max(high, (count - 1) * s + d * (k - 1) + 1 - n - low)


def maximum(node, x):
  """Returns the maximum over windows, and where it lies if the node has a second output."""
  x = jnp.asarray(layout.last(x))
  taps, strides, pads, dilations = _geometry(node, x)
  y = pools.maximum_windows(x, taps, strides=strides, padding=pads, dilation=dilations)
  if len(node.outputs) < 2:
    return layout.Last(y)
  return layout.Last(y), layout.Last(_places(node, x, taps, strides, pads, dilations))


def _places(node, x, taps, strides, pads, dilations):
  """Returns the index of each window's first maximum in the flattened [n, c, *spatial] array."""
  spatial, pieces = x.shape[1:-1], []
  places = np.arange(math.prod(spatial)).reshape(
    spatial[::-1] if node.get('storage_order', 0) else spatial
  )
  places = (places.T if node.get('storage_order', 0) else places)[None, ..., None]
  for tap in itertools.product(*map(range, taps)):
    piece = lambda value, fill, tap=tap: pools.tap_slice(
      value, tap, taps, strides=strides, padding=pads, dilation=dilations, fill=fill
    )
    pieces.append((piece(x, pools.lowest(x.dtype)), piece(jnp.asarray(places), 0)))
  best = jnp.argmax(jnp.stack([value for value, _ in pieces]), axis=0)
  where = jnp.stack([jnp.broadcast_to(place, best.shape) for _, place in pieces])
  found = jnp.take_along_axis(where, best[None], axis=0)[0]
  n, c = x.shape[0], x.shape[-1]
  plane = (np.arange(n)[:, None] * c + np.arange(c)[None]) * math.prod(spatial)
  return found + plane.reshape(n, *(1,) * len(spatial), c)


def average(node, x):
  """Returns the mean over windows; padding counts only where `count_include_pad` is 1."""
  x = jnp.asarray(layout.last(x))
  taps, strides, pads, dilations = _geometry(node, x)
  declared = None
  if node.get('count_include_pad', 0):
    declared = convolution.pads(node, x.shape[1:-1], taps, strides, dilations)
  y = pools.average_windows(
    x, taps, strides=strides, padding=pads, dilation=dilations, counted=declared
  )
  return layout.Last(y)


def global_average(node, x):
  """Returns the mean over space, with axes of length 1."""
  return _globally(x, 'mean')


def global_maximum(node, x):
  """Returns the maximum over space, with axes of length 1."""
  return _globally(x, 'max')


def _globally(x, name):
  x = layout.last(x)
  axes = tuple(range(1, x.ndim - 1))
  return layout.Last(getattr(nodes.module(x), name)(x, axis=axes, keepdims=True))

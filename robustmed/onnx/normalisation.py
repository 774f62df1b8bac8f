"""Batch, instance, group, layer and local response normalisation."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from robustmed.onnx import layout
from robustmed.onnx import node as nodes
from robustmed.ops import batch_norm, norms


def batch(node, x, scale, bias, mean, variance):
  """Returns x normalised by given moments, or by its own and the updated ones in training mode."""
  eps = node.get('epsilon', 1e-5)
  wrap = layout.Last if x.ndim > 2 else lambda array: array
  x = jnp.asarray(layout.last(x) if x.ndim > 2 else x)
  if node.get('spatial', 1) == 0:
    raise ValueError('spatial=0 is not supported')
  if not node.get('training_mode', 0):
    return wrap(batch_norm.normalise(x, scale, bias, mean=mean, variance=variance, eps=eps))
  own_mean, own_variance = batch_norm.moments(x)
  momentum = node.get('momentum', 0.9)
  y = batch_norm.normalise(x, scale, bias, mean=own_mean, variance=own_variance, eps=eps)
  running = [
    nodes.cast(old * momentum + new * (1 - momentum), old.dtype)
    for old, new in ((mean, own_mean), (variance, own_variance))
  ]
  return wrap(y), *running


def instance(node, x, scale, bias):
  """Returns x normalised over space, per example and channel.

  Over an array that the graph reshaped to [n, groups, *rest] it is a group normalisation.
  """
  eps = node.get('epsilon', 1e-5)
  scale, bias = jnp.asarray(layout.plain(scale)), jnp.asarray(layout.plain(bias))
  if isinstance(x, layout.Grouped):
    array, groups = x.base.array, x.shape[1]
    repeats = array.shape[-1] // groups
    y = norms.group_norm(
      array, jnp.repeat(scale, repeats), jnp.repeat(bias, repeats), groups=groups, eps=eps
    )
    return layout.Grouped(layout.Last(y), x.shape)
  return layout.Last(norms.instance_norm(jnp.asarray(layout.last(x)), scale, bias, eps=eps))


def group(node, x, scale, bias):
  """Returns x normalised over space and the channels of each group; affine per channel.

  Versions 18 to 20 of the operator have one scale and bias per group.
  """
  x, groups = jnp.asarray(layout.last(x)), node.get('num_groups')
  channels = x.shape[-1]
  if scale.shape[0] != channels:
    scale, bias = (jnp.repeat(jnp.asarray(v), channels // groups) for v in (scale, bias))
  scale, bias = jnp.asarray(scale), jnp.asarray(bias)
  return layout.Last(norms.group_norm(x, scale, bias, groups=groups, eps=node.get('epsilon', 1e-5)))


def layer(node, x, scale, bias=None):
  """Returns (x normalised over the axes from `axis` on, mean, reciprocal deviation)."""
  axis = nodes.axis_of(node.get('axis', -1), x.ndim, node)
  axes = tuple(range(axis, x.ndim))
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = wide.mean(axes, keepdims=True)
  centred = wide - mean
  rate = lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + node.get('epsilon', 1e-5))
  y, scale = nodes.same_rank((centred * rate).astype(x.dtype), scale)
  y = y * scale
  if bias is not None:
    y, bias = nodes.same_rank(y, bias)
    y = y + bias
  return y, mean, rate


def root_mean_square(node, x, scale):
  """Returns x divided by its root mean square over the axes from `axis` on."""
  axes = tuple(range(nodes.axis_of(node.get('axis', -1), x.ndim, node), x.ndim))
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  rate = lax.rsqrt(jnp.square(wide).mean(axes, keepdims=True) + node.get('epsilon', 1e-5))
  y, scale = nodes.same_rank((wide * rate).astype(x.dtype), scale)
  return y * scale


def local_response(node, x):
  """Returns x / (bias + alpha / size * sum of squares of neighbouring channels)^beta."""
  x, size = jnp.asarray(layout.last(x)), node.get('size')
  low, channels = (size - 1) // 2, x.shape[-1]
  squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(low, size - 1 - low)])
  total = functools.reduce(
    jnp.add, [lax.slice_in_dim(squares, i, i + channels, axis=x.ndim - 1) for i in range(size)]
  )
  share = node.get('alpha', 1e-4) / size
  return layout.Last(x / (node.get('bias', 1.0) + share * total) ** node.get('beta', 0.75))


def lp(node, x):
  """Returns x divided by its norm of order `p` along an axis; zero where the norm is zero."""
  axis = node.get('axis', -1)
  if node.get('p', 2) == 1:
    size = jnp.abs(x).sum(axis, keepdims=True)
  else:
    squares = jnp.square(x).sum(axis, keepdims=True)
    size = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
  return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0).astype(x.dtype)


def mean_variance(node, x):
  """Returns x with mean 0 and deviation 1 over the given axes."""
  axes = tuple(node.get('axes', (0, 2, 3)))
  centred = x - x.mean(axes, keepdims=True)
  return centred / (jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True)) + 1e-9)


def softmax(node, x):
  """Returns the softmax along an axis; before version 13 over all axes from it on."""
  return _softmax(node, x, logarithm=False)


def log_softmax(node, x):
  """Returns the logarithm of `softmax`."""
  return _softmax(node, x, logarithm=True)


def _softmax(node, x, *, logarithm):
  x = layout.plain(x) if isinstance(x, layout.Grouped) else x
  axis = nodes.axis_of(node.get('axis', -1 if node.opset >= 13 else 1), x.ndim, node)
  wrap, shape = lambda array: array, x.shape
  if isinstance(x, layout.Last) and node.opset >= 13:
    x, axis, wrap, shape = x.array, layout.axis(x, axis), layout.Last, x.array.shape
  x = layout.plain(x)
  if node.opset < 13:
    x, axis = x.reshape(math.prod(shape[:axis]), -1), 1
  xp = nodes.module(x)
  shifted = (
    x - lax.stop_gradient(x.max(axis, keepdims=True))
    if xp is jnp
    else x - x.max(axis, keepdims=True)
  )
  powers = xp.exp(shifted)
  total = powers.sum(axis, keepdims=True, dtype=x.dtype)
  y = shifted - xp.log(total) if logarithm else powers / total
  return wrap(y.reshape(shape))


def hardmax(node, x):
  """Returns 1 at the first maximum along an axis, else 0."""
  axis = nodes.axis_of(node.get('axis', -1 if node.opset >= 13 else 1), x.ndim, node)
  shape = x.shape
  if node.opset < 13:
    x, axis = x.reshape(math.prod(shape[:axis]), -1), 1
  best = jnp.expand_dims(jnp.argmax(x, axis), axis)
  places = np.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
  return (best == places).astype(x.dtype).reshape(shape)

"""Normalisation layers as one function with a gradient of its own, and per-example norms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def _per_channel(group_values, channels):
  """[b, groups] -> [b, channels]."""
  return jnp.repeat(group_values, channels // group_values.shape[-1], axis=-1)


def _over_space(values, x):
  """[b, c] -> broadcastable against x [b, *spatial, c]."""
  return values.reshape(values.shape[0], *(1,) * (x.ndim - 2), values.shape[-1])


def _space_sum(x):
  """[b, *spatial, c] -> [b, c], in float32 or better.

  In two steps, the first over whole rows of the last spatial axis, which fill the vector units of a
  CPU however few channels there are; the barrier keeps XLA from making one reduction of both.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if x.ndim < 4:
    return wide.sum(tuple(range(1, x.ndim - 1)))
  *outer, inner = x.shape[1:-1]
  rows = wide.reshape(x.shape[0], math.prod(outer), inner * x.shape[-1]).sum(1)
  rows = jax.lax.optimization_barrier(rows)
  return rows.reshape(x.shape[0], inner, x.shape[-1]).sum(1)


def _group_mean(channel_sums, groups, count):
  """[b, c] sums over space -> [b, groups] means over space and the group's channels.

  A matrix product and not a second sum: XLA would merge two sums into one strided reduction over
  the whole array, twenty times slower on the CPU.
  """
  channels = channel_sums.shape[-1]
  if groups == channels:
    return channel_sums / count
  members = np.repeat(np.eye(groups), channels // groups, axis=0) / count
  members = jnp.asarray(members, channel_sums.dtype)
  return jnp.matmul(channel_sums, members, precision='highest')


def _statistics(x, groups, eps):
  """Mean and reciprocal deviation, [b, c] each, in float32 or better, from two passes."""
  channels = x.shape[-1]
  count = math.prod(x.shape[1:-1]) * channels // groups
  mean = _per_channel(_group_mean(_space_sum(x), groups, count), channels)
  squares = _space_sum(jnp.square(x - _over_space(mean, x)))
  rate = jax.lax.rsqrt(_group_mean(squares, groups, count) + eps)
  return mean, _per_channel(rate, channels)


def _coefficients(mean, rate, scale, bias):
  slope = rate * scale[None]
  return slope, bias[None] - mean * slope


def _activate(z, leak):
  return z if leak is None else jnp.where(z >= 0, z, leak * z)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _group_norm(x, scale, bias, groups, eps, leak):
  mean, rate = _statistics(x, groups, eps)
  a, c = _coefficients(mean, rate, scale, bias)
  z = _over_space(a, x) * x + _over_space(c, x)
  return _activate(z, leak).astype(x.dtype)


def _group_norm_forward(x, scale, bias, groups, eps, leak):
  mean, rate = _statistics(x, groups, eps)
  a, c = _coefficients(mean, rate, scale, bias)
  z = _over_space(a, x) * x + _over_space(c, x)
  return _activate(z, leak).astype(x.dtype), (x, scale, bias, mean, rate)


def _group_norm_backward(groups, eps, leak, saved, g):
  """dx = a g' + (p x + q), with one pass for the sums and one for the result."""
  x, scale, bias, mean, rate = saved
  channels = x.shape[-1]
  count = math.prod(x.shape[1:-1]) * channels // groups
  a, c = _coefficients(mean, rate, scale, bias)
  if leak is not None:
    z = _over_space(a, x) * x + _over_space(c, x)
    g = jnp.where(z >= 0, g, leak * g)
  g_sum = _space_sum(g)
  gx_sum = _space_sum(g * (x - _over_space(mean, x))) * rate
  weighted = lambda sums: _per_channel(_group_mean(sums * scale[None], groups, count), channels)
  p = -rate * rate * weighted(gx_sum)
  q = -rate * weighted(g_sum) - p * mean
  dx = _over_space(a, x) * g + _over_space(p, x) * x + _over_space(q, x)
  return dx.astype(x.dtype), gx_sum.sum(0).astype(scale.dtype), g_sum.sum(0).astype(bias.dtype)


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def group_norm(x, scale, bias, *, groups, eps=1e-5, leak=None):
  """GroupNorm of x [b, *spatial, c] with affine scale and bias [c], then LeakyReLU(leak) if given.

  Wu and He 2018, eq. 1-2; variance without Bessel's correction, as torch and Flax have it.
  Statistics are taken in float32 at least. Differentiable to any order in reverse mode.
  """
  return _group_norm(x, scale, bias, groups, eps, leak)


def instance_norm(x, scale, bias, *, eps=1e-5, leak=None):
  """`group_norm` with one group per channel."""
  return group_norm(x, scale, bias, groups=x.shape[-1], eps=eps, leak=leak)


def l2(x):
  """Euclidean norm of each example, x [b, ...] -> [b]; its gradient at 0 is 0, not NaN."""
  squares = jnp.square(x).reshape(x.shape[0], -1).sum(-1)
  positive = squares > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def linf(x):
  """Largest magnitude in each example, x [b, ...] -> [b]."""
  return jnp.abs(x).reshape(x.shape[0], -1).max(-1)

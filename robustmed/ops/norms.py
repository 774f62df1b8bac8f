"""Group and instance normalisation with a custom gradient, and per-example norms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def _per_channel(group_values, channels):
  """Repeats values of groups, [b, groups] -> [b, channels]."""
  return jnp.repeat(group_values, channels // group_values.shape[-1], axis=-1)


def _over_space(values, x):
  """Reshapes values [b, c] to broadcast against x [b, *spatial, c]."""
  return values.reshape(values.shape[0], *(1,) * (x.ndim - 2), values.shape[-1])


def _space_sum(x):
  """Sums over space, [b, *spatial, c] -> [b, c], in float32 or better.

  In two steps, the first over whole rows of the last spatial axis, which fill the vector units of a
  CPU also with few channels; the barrier keeps XLA from merging both into one reduction.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if x.ndim < 4:
    return wide.sum(tuple(range(1, x.ndim - 1)))
  *outer, inner = x.shape[1:-1]
  rows = wide.reshape(x.shape[0], math.prod(outer), inner * x.shape[-1])
  if x.ndim == 4 and x.shape[0] == 1:
    # For the planes of one example the sum of a product with x is ten times slower on the CPU.
    ones = jnp.ones(rows.shape[:2], wide.dtype)
    rows = jnp.einsum('bn,bnc->bc', ones, rows, precision='highest')
  else:
    rows = jax.lax.optimization_barrier(rows.sum(1))
  return rows.reshape(x.shape[0], inner, x.shape[-1]).sum(1)


def _group_mean(channel_sums, groups, count):
  """Turns sums over space [b, c] into means over space and each group's channels, [b, groups].

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
  """Returns mean and reciprocal deviation, [b, c] each, in float32 or better, by two passes."""
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
  """Returns dx = a g' + (p x + q) and both affine gradients; one pass for sums, one for dx."""
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
  """Returns GroupNorm of x [b, *spatial, c] with scale and bias [c], then LeakyReLU(leak) if given.

  Wu and He 2018, eq. 1-2; variance without Bessel's correction, as in torch and Flax. Statistics
  are in float32 at least. Differentiable to any order in reverse mode.
  """
  return _group_norm(x, scale, bias, groups, eps, leak)


def instance_norm(x, scale, bias, *, eps=1e-5, leak=None):
  """Returns `group_norm` with one group per channel."""
  return group_norm(x, scale, bias, groups=x.shape[-1], eps=eps, leak=leak)


def l2(x):
  """Returns the Euclidean norm per example, x [b, ...] -> [b]; its gradient at 0 is 0, not NaN."""
  squares = jnp.square(x).reshape(x.shape[0], -1).sum(-1)
  positive = squares > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def linf(x):
  """Returns the largest magnitude in each example, x [b, ...] -> [b]."""
  return jnp.abs(x).reshape(x.shape[0], -1).max(-1)

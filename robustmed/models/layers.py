"""Linen layers over robustmed.ops, with torch's initialisation by default."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from robustmed import errors
from robustmed.ops import batch_norm, conv, norms
from robustmed.process import shared_statistics


def uniform_fan_in(fan_in):
  """Returns U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's initialiser of weights and biases."""
  bound = 1 / math.sqrt(fan_in)
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def he_normal(leak):
  """Returns fan_in -> N(0, 2 / ((1 + leak^2) fan_in)), torch's kaiming_normal_(a=leak)."""

  def of(fan_in):
    deviation = math.sqrt(2 / ((1 + leak**2) * fan_in))
    return lambda key, shape, dtype=jnp.float32: deviation * jax.random.normal(key, shape, dtype)

  return of


def _cast(dtype, *arrays):
  """Returns the arrays that are not None in `dtype`, or else in their common type."""
  dtype = dtype or jnp.result_type(*(a for a in arrays if a is not None))
  return [None if a is None else a.astype(dtype) for a in arrays]


def _check_features(features):
  if not isinstance(features, int | np.integer) or features < 1:
    raise errors.UserError(f'a layer of a network needs at least one channel, not {features}')


class Conv(nn.Module):
  """Convolution of x [b, *spatial, c]; padding as in `conv.conv`, by default kernel // 2."""

  features: int
  kernel: tuple[int, ...]
  strides: int | tuple[int, ...] = 1
  padding: int | tuple[int | tuple[int, int], ...] | None = None
  groups: int = 1
  use_bias: bool = False
  dtype: jnp.dtype | None = None
  init_of: Callable = uniform_fan_in  # fan_in -> initialiser
  bias_init: Callable | None = None  # None: as the kernel

  @nn.compact
  def __call__(self, x):
    _check_features(self.features)
    inner = x.shape[-1] // self.groups
    init = self.init_of(inner * math.prod(self.kernel))
    kernel = self.param('kernel', init, (*self.kernel, inner, self.features))
    bias_init = self.bias_init or init
    bias = self.param('bias', bias_init, (self.features,)) if self.use_bias else None
    x, kernel, bias = _cast(self.dtype, x, kernel, bias)
    padding = tuple(k // 2 for k in self.kernel) if self.padding is None else self.padding
    y = conv.conv(x, kernel, strides=self.strides, padding=padding, groups=self.groups)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


class ConvTranspose(nn.Module):
  """Transposed convolution with torch's padding and output_padding.

  The defaults double the grid exactly. The kernel is [*taps, features, inputs], as in the
  convolution that this is the adjoint of; torch's fan_in is then taps x features.
  """

  features: int
  kernel: tuple[int, ...]
  strides: int | tuple[int, ...] = 2
  padding: int | tuple[int, ...] | None = None
  output_padding: int | tuple[int, ...] = 1
  use_bias: bool = False
  dtype: jnp.dtype | None = None
  init_of: Callable = uniform_fan_in  # fan_in -> initialiser

  @nn.compact
  def __call__(self, x):
    _check_features(self.features)
    init = self.init_of(self.features * math.prod(self.kernel))
    kernel = self.param('kernel', init, (*self.kernel, self.features, x.shape[-1]))
    bias = self.param('bias', init, (self.features,)) if self.use_bias else None
    x, kernel, bias = _cast(self.dtype, x, kernel, bias)
    padding = tuple(k // 2 for k in self.kernel) if self.padding is None else self.padding
    y = conv.conv_transpose(
      x, kernel, strides=self.strides, padding=padding, output_padding=self.output_padding
    )
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


class Norm(nn.Module):
  """GroupNorm (groups=None: InstanceNorm) with affine parameters and, if given, LeakyReLU."""

  groups: int | None = None
  eps: float = 1e-5
  leak: float | None = None
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    x = x.astype(self.dtype or x.dtype)
    return norms.group_norm(
      x, scale, bias, groups=self.groups or channels, eps=self.eps, leak=self.leak
    )


class BatchNorm(nn.Module):
  """Batch normalisation with torch's running statistics and, if given, LeakyReLU (0 is ReLU).

  In training the batch is that of all devices, without padding (`shared_statistics.counting`);
  collection 'batch_stats' has 'mean' and 'var', the
  latter unbiased.
  """

  eps: float = 1e-5
  momentum: float = 0.1  # share of the new batch in the running statistics
  leak: float | None = None
  affine: bool = True

  @nn.compact
  def __call__(self, x, *, train: bool):
    channels = (x.shape[-1],)
    scale, bias = jnp.ones(channels), jnp.zeros(channels)
    if self.affine:
      scale = self.param('scale', nn.initializers.ones, channels)
      bias = self.param('bias', nn.initializers.zeros, channels)
    running = {
      'mean': self.variable('batch_stats', 'mean', jnp.zeros, channels),
      'var': self.variable('batch_stats', 'var', jnp.ones, channels),
    }
    if not train:
      mean, variance = running['mean'].value, running['var'].value
    else:
      weight = shared_statistics.weights(len(x))
      mean, variance = batch_norm.moments(x, mean_of=shared_statistics.mean, weight=weight)
      count = math.prod(x.shape[:-1]) * shared_statistics.devices()
      if weight is None:
        unbiased = count / max(count - 1, 1)
      else:
        count *= shared_statistics.mean(weight.mean())
        unbiased = count / jnp.maximum(count - 1, 1)
      seen = {'mean': mean, 'var': variance * unbiased}
      for name, value in seen.items():
        old = running[name].value
        running[name].value = old + self.momentum * (jax.lax.stop_gradient(value) - old)
    x = batch_norm.normalise(x, scale, bias, mean=mean, variance=variance, eps=self.eps)
    return x if self.leak is None else jnp.where(x >= 0, x, self.leak * x)


class Dense(nn.Module):
  """Dense layer, x [b, c] -> [b, features]."""

  features: int
  use_bias: bool = False
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    init = uniform_fan_in(x.shape[-1])
    kernel = self.param('kernel', init, (x.shape[-1], self.features))
    bias = self.param('bias', init, (self.features,)) if self.use_bias else None
    x, kernel, bias = _cast(self.dtype, x, kernel, bias)
    y = x @ kernel
    return y if bias is None else y + bias[None]

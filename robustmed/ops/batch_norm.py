"""Batch normalisation by given moments, and the moments of a batch."""

import jax
import jax.numpy as jnp


def moments(x, *, mean_of=lambda tree: tree):
  """Returns mean and biased variance [c] of x [b, *spatial, c] over all other axes, in >= float32.

  `mean_of` averages both over the other parts of the batch, such as devices.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axes = tuple(range(x.ndim - 1))
  mean = mean_of(wide.mean(axes))
  return mean, mean_of(jnp.square(wide - _channels_last(mean, x)).mean(axes))


def normalise(x, scale, bias, *, mean, variance, eps=1e-5):
  """Returns x [b, *spatial, c] normalised by given moments [c], with affine scale and bias [c].

  Ioffe and Szegedy 2015, algorithm 1: batch moments in training, running ones in inference.
  """
  slope = scale * jax.lax.rsqrt(variance + eps)
  shift = bias - mean * slope
  return (_channels_last(slope, x) * x + _channels_last(shift, x)).astype(x.dtype)


def _channels_last(values, x):
  return values.reshape((1,) * (x.ndim - 1) + (-1,))

"""Batch normalisation by given moments, and the moments of a batch."""

import jax
import jax.numpy as jnp


def moments(x, *, mean_of=lambda tree: tree, weight=None):
  """Returns mean and biased variance [c] of x [b, *spatial, c] over all other axes, in >= float32.

  `mean_of` averages both over the other parts of the batch, such as devices. `weight` [b]: how much
  each example counts.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axes = tuple(range(x.ndim - 1))
  if weight is None:
    average = lambda values: mean_of(values.mean(axes))
  else:
    each = weight.reshape(-1, *(1,) * (x.ndim - 1))
    share = jnp.maximum(mean_of(weight.mean()), 1e-12)
    average = lambda values: mean_of((each * values).mean(axes)) / share
  mean = average(wide)
  return mean, average(jnp.square(wide - _channels_last(mean, x)))


def normalise(x, scale, bias, *, mean, variance, eps=1e-5):
  """Returns x [b, *spatial, c] normalised by given moments [c], with affine scale and bias [c].

  Ioffe and Szegedy 2015, algorithm 1: batch moments in training, running ones in inference.
  """
  slope = scale * jax.lax.rsqrt(variance + eps)
  shift = bias - mean * slope
  return (_channels_last(slope, x) * x + _channels_last(shift, x)).astype(x.dtype)


def _channels_last(values, x):
  return values.reshape((1,) * (x.ndim - 1) + (-1,))

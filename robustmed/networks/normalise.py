"""Intensities of files to those that a network was trained on, named as 'ct:-100:240:80:40'.

  none                  as stored
  zscore                minus the mean, by the deviation of each image and channel
  minmax                0 to 1 between the extremes of each image and channel
  scale:TOP             divided by TOP
  window:LOW:HIGH       clipped, 0 to 1
  standard:MEAN:STD     minus MEAN, by STD
  ct:LOW:HIGH:MEAN:STD  clipped, then minus MEAN, by STD, as nnU-Net treats CT

A number may be several with commas, one for each channel.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors

_TINY = 1e-8
_NUMBERS = {'none': 0, 'zscore': 0, 'minmax': 0, 'scale': 1, 'window': 2, 'standard': 2, 'ct': 4}


def parse(text: str) -> Callable[[jax.Array], jax.Array]:
  """Returns the differentiable function of stored images [b, *spatial, c] that `text` names."""
  name, *parts = text.split(':')
  count = errors.lookup(_NUMBERS, name, kind='normalisation')
  try:
    numbers = [np.array([float(one) for one in part.split(',')], np.float32) for part in parts]
  except ValueError:
    numbers = []
  if len(numbers) != count or not all(np.isfinite(one).all() for one in numbers):
    raise errors.UserError(
      f'input.normalise={text}: {name} takes {count} numbers, such as '
      f'{":".join([name, *["1"] * count])}'
    )
  plain = {'none': lambda image: image, 'zscore': _zscore, 'minmax': _minmax}
  return plain[name] if name in plain else functools.partial(_scaled, name, numbers)


def _scaled(name, numbers, image):
  numbers = [one.reshape((1,) * (image.ndim - 1) + (-1,)) for one in numbers]
  if name == 'scale':
    return image / numbers[0]
  if name == 'standard':
    return (image - numbers[0]) / numbers[1]
  low, high = numbers[:2]
  if name == 'window':
    return (jnp.clip(image, low, high) - low) / (high - low)
  return (jnp.clip(image, low, high) - numbers[2]) / numbers[3]


def _zscore(image):
  space = tuple(range(1, image.ndim - 1))
  mean = jnp.mean(image, axis=space, keepdims=True)
  variance = jnp.mean(jnp.square(image - mean), axis=space, keepdims=True)
  return (image - mean) / jnp.sqrt(variance + _TINY)


def _minmax(image):
  space = tuple(range(1, image.ndim - 1))
  low, high = (f(image, axis=space, keepdims=True) for f in (jnp.min, jnp.max))
  return (image - low) / (high - low + _TINY)

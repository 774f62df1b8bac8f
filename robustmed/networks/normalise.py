"""Intensities of files to those that a network was trained on, named as 'ct:-100:240:80:40'.

  none                  as stored
  zscore                minus the mean, by the deviation of each image and channel
  minmax                0 to 1 between the extremes of each image and channel
  scale:TOP             divided by TOP
  window:LOW:HIGH       clipped, 0 to 1
  standard:MEAN:STD     minus MEAN, by STD
  ct:LOW:HIGH:MEAN:STD  clipped, then minus MEAN, by STD, as nnU-Net treats CT
  present               zscore over the values that are not 0; these stay 0, as MONAI's nonzero
  inside                zscore over what is not 0 or is enclosed by that; the rest as stored
  case                  0 to 1 between the 0.5 and 99.5 % quantiles of the whole case
  case_zscore           minus the mean, by the deviation of the whole case

The last two are of the case as stored, of which an image may be one slice: images are read in these
units (`OF_CASE`), and the function is the identity. A number may be several with commas, one for
each channel. Several names, one for each channel: 'zscore|ct:-100:240:80:40'. 'nonzero:' before
them: nnU-Net's crop, so all of it over the box of what is not 0 in any channel, and 0 outside of
the box.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustmed import errors

_TINY = 1e-8
OF_CASE = {'case': 'case', 'case_zscore': 'zscore'}  # -> intensity of data/labelled/units.py
NUMBERS = {
  **dict.fromkeys(OF_CASE, 0),
  'none': 0,
  'zscore': 0,
  'minmax': 0,
  'inside': 0,
  'present': 0,
  'scale': 1,
  'window': 2,
  'standard': 2,
  'ct': 4,
}
EXAMPLES = {  # of intensities as stored, such as Hounsfield units
  'scale': 'scale:BY, such as scale:255',
  'window': 'window:LOW:HIGH, such as window:-100:240',
  'standard': 'standard:MEAN:DEVIATION, such as standard:80:40',
  'ct': 'ct:LOW:HIGH:MEAN:DEVIATION, such as ct:-100:240:80:40',
}
_CROPPED = 'nonzero:'


def parse(text: str, *, channels: int | None = None) -> Callable[[jax.Array], jax.Array]:
  """Returns the differentiable function of stored images [b, *spatial, c] that `text` names."""
  cropped = text.startswith(_CROPPED)
  each = [_one(part) for part in text.removeprefix(_CROPPED).split('|')]
  if channels is not None and len(each) not in (1, channels):
    raise errors.UserError(f'input.normalise={text}: {len(each)} names for {channels} channels')

  def apply(image):
    where = box(image) if cropped else None
    if len(each) == 1:
      found = each[0](image, image, where)
    else:
      parts = [one(image[..., n : n + 1], image, where) for n, one in enumerate(each)]
      found = jnp.concatenate(parts, axis=-1)
    return found if where is None else jnp.where(where, found, 0)

  return apply


def _one(text):
  """Returns the function (channels, all channels, box or None) -> normalised channels."""
  name, *parts = text.split(':')
  count = errors.lookup(NUMBERS, name, kind='normalisation')
  try:
    numbers = [np.array([float(one) for one in part.split(',')], np.float32) for part in parts]
  except ValueError:
    numbers = []
  if len(numbers) != count or not all(np.isfinite(one).all() for one in numbers):
    raise errors.UserError(
      f'input.normalise={text}: {name} takes {count} numbers'
      f'{", " + EXAMPLES[name] if count else ""}'
    )
  same = lambda image, *_: image
  plain = {**dict.fromkeys(OF_CASE, same), 'none': same, 'zscore': _zscore, 'minmax': _minmax}
  plain |= {'inside': _inside, 'present': _present}
  return plain[name] if name in plain else functools.partial(_scaled, name, numbers)


def _scaled(name, numbers, image, *_):
  numbers = [one.reshape((1,) * (image.ndim - 1) + (-1,)) for one in numbers]
  if name == 'scale':
    return image / numbers[0]
  if name == 'standard':
    return (image - numbers[0]) / numbers[1]
  low, high = numbers[:2]
  if name == 'window':
    return (jnp.clip(image, low, high) - low) / (high - low)
  return (jnp.clip(image, low, high) - numbers[2]) / numbers[3]


def _zscore(image, whole, where):
  del whole
  space = _space(image)
  count = {} if where is None else {'where': jnp.broadcast_to(where, image.shape)}
  mean = jnp.mean(image, axis=space, keepdims=True, **count)
  variance = jnp.mean(jnp.square(image - mean), axis=space, keepdims=True, **count)
  return (image - mean) / jnp.sqrt(variance + _TINY)


def _inside(image, whole, box):
  mask = _filled(jnp.any(lax.stop_gradient(whole) != 0, axis=-1, keepdims=True))
  mask = mask if box is None else mask & box
  mask = mask | ~jnp.any(mask, axis=_space(mask), keepdims=True)  # an image of zeros
  return jnp.where(mask, _zscore(image, whole, mask), image)


def _present(image, whole, box):
  del whole, box
  mask = lax.stop_gradient(image) != 0
  some = mask | ~jnp.any(mask, axis=_space(mask), keepdims=True)
  return jnp.where(mask, _zscore(image, image, some), image)


def _minmax(image, whole, where):
  del whole
  inside = lambda other: image if where is None else jnp.where(where, image, other)
  low = jnp.min(inside(jnp.inf), axis=_space(image), keepdims=True)
  high = jnp.max(inside(-jnp.inf), axis=_space(image), keepdims=True)
  return (image - low) / (high - low + _TINY)


def _space(image) -> tuple[int, ...]:
  return tuple(range(1, image.ndim - 1))


def box(image: jax.Array) -> jax.Array:
  """Returns where the box of non-zero values is, [b, *spatial, 1]; all of an image of zeros."""
  mask = jnp.any(lax.stop_gradient(image) != 0, axis=-1, keepdims=True)
  box = jnp.ones_like(mask)
  for axis in _space(mask):
    others = tuple(n for n in _space(mask) if n != axis)
    line = jnp.any(mask, axis=others, keepdims=True).astype(jnp.int32)
    started = jnp.cumsum(line, axis) > 0
    box = box & started & jnp.flip(jnp.cumsum(jnp.flip(line, axis), axis) > 0, axis)
  return box | ~jnp.any(mask, axis=_space(mask), keepdims=True)


def _filled(mask):
  """Returns the mask with its holes filled: what no path of open neighbours leads to.

  Neighbours share a face. Each sweep carries the outside along whole lines of every axis.
  """
  opened = ~mask
  edge = jnp.zeros_like(mask)
  for axis in _space(mask):
    ends = [slice(None)] * mask.ndim
    for end in (0, -1):
      ends[axis] = end
      edge = edge.at[tuple(ends)].set(True)

  def along(outside, axis, reverse):
    def step(before, now):
      free, reached = now
      after = free & (before | reached)
      return after, after

    lines = jnp.moveaxis(opened, axis, 0), jnp.moveaxis(outside, axis, 0)
    _, found = lax.scan(step, jnp.zeros_like(lines[0][0]), lines, reverse=reverse)
    return jnp.moveaxis(found, 0, axis)

  def sweep(state):
    outside, _ = state
    found = outside
    for axis in _space(mask):
      found = along(along(found, axis, False), axis, True)
    return found, jnp.any(found != outside)

  outside, _ = lax.while_loop(lambda state: state[1], sweep, (edge & opened, jnp.array(True)))
  return ~outside

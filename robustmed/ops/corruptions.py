"""Artefacts of acquisition on the device: motion ghosts, Rician and Poisson noise, bias field.

Every entry of `CORRUPTIONS` works on images of any number of spatial axes, [b, *spatial, c], under
one key per example and with a traced severity (scalar or [b]). Guarantees:

- severity 0 returns the image bit for bit, and examples do not depend on each other;
- intensities are magnitudes: no value falls below 0 that was not below it;
- voxels that are exactly 0 in all channels (the background of skull-stripped images) stay 0;
- motion keeps the sum of the image before the magnitude is taken (the central lines have no shift),
  the bias field keeps the mean logarithm of the foreground;
- values are not clipped above: clipping to the range of the data is left to the caller.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors

_STILL = 0.06  # share of the lines of k-space, around its centre, without motion
_WAVES = 3  # cosines per axis of a bias field
PHOTONS = 250.0  # counted per mAs where the image is 1
_MANY = 1e8  # counts: whole numbers in 32 bits end at 2e9, and end there silently


class Corruption(NamedTuple):
  """apply: (key, image [*spatial, c], severity) -> image, of one example."""

  apply: Callable[..., jax.Array]
  unit: str  # of the severity
  levels: tuple[float, ...]  # from hardly visible to severe, for images in [0, 1]


def corrupt(name: str, image: jax.Array, *, severity, keys: jax.Array) -> jax.Array:
  """Returns image [b, *spatial, c] with the artefact `name`; severity scalar or [b], keys [b]."""
  apply = errors.lookup(CORRUPTIONS, name, kind='corruption').apply
  severity = jnp.broadcast_to(jnp.asarray(severity, image.dtype), image.shape[:1])

  def one(key, image, severity):
    background = jnp.all(image == 0, axis=-1, keepdims=True)
    changed = jnp.where(background, 0, apply(key, image, severity))
    return jnp.where(severity == 0, image, changed.astype(image.dtype))

  return jax.vmap(one)(keys, image, severity)


def rician(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
  """Returns the magnitude of image + complex Gaussian noise of deviation `severity` (Rice)."""
  noise = severity * jax.random.normal(key, (2, *image.shape), image.dtype)
  return jnp.sqrt(jnp.square(image + noise[0]) + jnp.square(noise[1]))


def poisson(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
  """Returns counts at a dose of 1 / severity mAs, in units of the image; negative values stay.

  For images that are proportional to the photons that a detector counts, `PHOTONS` per mAs where
  they are 1: the deviation is sqrt(image * severity / PHOTONS). Counts above `_MANY` are drawn from
  a normal distribution.
  """
  gain = PHOTONS / jnp.where(severity > 0, severity, 1)
  light = jnp.maximum(image, 0)
  many = light * gain > _MANY
  few = jax.random.poisson(key, jnp.where(many, 0, light * gain)).astype(image.dtype) / gain
  noise = jax.random.normal(jax.random.fold_in(key, 1), image.shape, image.dtype)
  drawn = jnp.where(many, light + jnp.sqrt(light / gain) * noise, few)
  return jnp.where(image < 0, image, drawn)


def bias_field(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
  """Returns image * exp(field): a smooth field of at most +-`severity`, equal for all channels.

  The field is a random sum of products of cosines, its mean over the foreground 0.
  """
  spatial = image.shape[:-1]
  weight = jax.random.normal(key, (_WAVES,) * len(spatial), image.dtype)
  for size in spatial:  # contracts the first axis and appends its result as the last one
    places = (np.arange(size) + 0.5) / size
    waves = np.cos(np.pi * np.arange(_WAVES)[:, None] * places) / (1 + np.arange(_WAVES)[:, None])
    weight = jnp.tensordot(weight, jnp.asarray(waves, image.dtype), ((0,), (0,)))
  inside = jnp.any(image != 0, axis=-1)
  count = jnp.maximum(jnp.sum(inside), 1)
  field = weight - jnp.sum(jnp.where(inside, weight, 0)) / count
  size = jnp.max(jnp.where(inside, jnp.abs(field), 0))
  field = field / jnp.maximum(size, jnp.finfo(image.dtype).tiny)
  return image * jnp.exp(severity * field)[..., None]


def motion(key: jax.Array, image: jax.Array, severity: jax.Array) -> jax.Array:
  """Returns the image of a head that moved while k-space was acquired line by line.

  Lines run along the last spatial axis and are counted along the last but one (front to back in
  [d, h, w] and in axial slices [h, w]), all slices of a volume at once. At line t the head is
  shifted by up to `severity` of the image's side along either axis: a breathing wave and a few
  sudden steps, drawn independently for each channel. The central lines have no shift, so the head
  keeps its place. There is no rotation.
  """
  if image.ndim < 3:
    raise errors.UserError(f'motion needs at least two spatial axes, not shape {image.shape}')
  keys = jax.random.split(key, image.shape[-1])
  shifts = jax.vmap(lambda one: _path(one, image.shape[-3], image.dtype))(keys)
  return moved(image, severity * jnp.moveaxis(shifts, 0, -1))


def moved(image: jax.Array, shifts: jax.Array) -> jax.Array:
  """Returns image [*spatial, c] with line t of k-space shifted by shifts[:, t] sides.

  shifts: [2, lines, c or 1], 1 for one path of all channels. Lines and readout are the last two
  spatial axes.
  """
  lines, readout = image.ndim - 3, image.ndim - 2
  # a shift by s sides changes the phase at frequency f (cycles per side) by 2 pi f s
  frequency = [
    jnp.asarray(np.fft.fftfreq(size) * size, image.dtype) for size in image.shape[lines:-1]
  ]
  phase = frequency[0][:, None, None] * shifts[0][:, None] + (
    frequency[1][None, :, None] * shifts[1][:, None]
  )
  rotation = jnp.exp(-2j * jnp.pi * phase).reshape((1,) * lines + phase.shape)
  spectrum = jnp.fft.fftn(image, axes=(lines, readout)) * rotation
  return jnp.abs(jnp.fft.ifftn(spectrum, axes=(lines, readout))).astype(image.dtype)


def still(shifts: jax.Array) -> jax.Array:
  """Returns shifts [..., lines] with zeros at the central lines, in the order of fftfreq."""
  return jnp.where(np.abs(np.fft.fftfreq(shifts.shape[-1])) <= _STILL / 2, 0, shifts)


def _path(key, count, dtype):
  """Returns the head's position at each line, [2, count] within [-1, 1], 0 for central lines."""
  rate, start, when, where, share = jax.random.split(key, 5)
  # lines in the order of fftfreq; in the scanner they run from the lowest frequency up
  order = np.argsort(np.argsort(np.fft.fftfreq(count)))
  time = jnp.asarray(order[None] / max(count - 1, 1), dtype)
  cycles = jax.random.uniform(rate, (2, 1), dtype, 3, 8)
  wave = jnp.sin(2 * jnp.pi * (cycles * time + jax.random.uniform(start, (2, 1), dtype)))
  moments = jax.random.uniform(when, (3, 1), dtype)
  places = jax.random.uniform(where, (2, 3), dtype, -1, 1)
  steps = jnp.sum(places[..., None] * (time > moments)[None], axis=1) / 3
  part = jax.random.uniform(share, (2, 1), dtype, 0.3, 0.7)
  return still(part * wave + (1 - part) * steps)


CORRUPTIONS = {
  'motion': Corruption(motion, 'largest shift, share of the side', (0.01, 0.02, 0.04, 0.08)),
  'rician': Corruption(rician, 'standard deviation, units of the image', (0.02, 0.05, 0.1, 0.2)),
  'poisson': Corruption(poisson, '1 / dose in mAs', (0.01, 0.1, 0.5, 2.0)),
  'bias_field': Corruption(bias_field, 'largest logarithm of the field', (0.1, 0.25, 0.5, 1.0)),
}

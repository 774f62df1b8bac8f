"""nnU-Net v1's augmentation of slices, on the device (Isensee et al. 2021, 'moreDA' in 2D).

Every example has its own key and does not depend on the others of its batch. The original warps
with spline interpolation of order 3; the warp here is linear, since one linear warp serves image
and class maps together, cannot overshoot and leaves an unchanged slice equal bit by bit. Upsampling
from the simulated low resolution is cubic (Keys 1981).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors, types
from robustmed.ops import warp

Array = jax.Array
PROBABILITIES = {
  'rotation': 0.2,
  'scaling': 0.2,
  'noise': 0.1,
  'blur': 0.2,
  'brightness': 0.15,
  'contrast': 0.15,
  'low_resolution': 0.25,
  'gamma_inverted': 0.1,
  'gamma': 0.3,
  'mirror': 0.5,  # each axis
}
CHANNEL_SHARE = 0.5  # probability of each channel under blur and low resolution
SCALES, FACTORS, GAMMAS = (0.7, 1.4), (0.75, 1.25), (0.7, 1.5)
NOISE, SIGMAS, ZOOM = 0.1, (0.5, 1.0), 0.5
_EXAMPLE = ('angle', 'scale', 'scale_side', 'noise_size', 'mirror_rows', 'mirror_columns')
_CHANNEL = ('blur_on', 'sigma', 'factor', 'contrast', 'contrast_side', 'low_on', 'zoom')
_CHANNEL += ('inverted', 'inverted_side', 'power', 'power_side')


def make(
  *,
  patch: tuple[int, int],
  num_classes: int,
  max_angle: float = 180.0,
  mask_outside: bool = False,
  probabilities: dict[str, float] | None = None,
) -> Callable[[Array, types.Batch], dict]:
  """Returns (keys [b], batch) -> batch, augmented and cut to `patch` about its middle.

  Where the loader had no data, images [b, H, W, c] are 0 and 'labels' [b, H, W] are -1; classes are
  0 ... num_classes - 1. Labels become >= 0. `max_angle` is in degrees; `mask_outside` sets the
  image to 0 where the label was -1 (normalisation within a mask). `probabilities` replaces entries
  of PROBABILITIES.
  """
  chance = dict(PROBABILITIES)
  for name, value in (probabilities or {}).items():
    errors.lookup(chance, name, kind='augmentation')
    chance[name] = value

  def apply(keys, batch):
    image, labels = batch['image'], batch['target']['labels']
    if any(n < m for n, m in zip(image.shape[1:3], patch, strict=True)):
      raise errors.UserError(f'slices of {image.shape[1:3]} are smaller than the patch {patch}')
    draw = jax.vmap(lambda key: _draws(key, chance, image.shape[-1]))(keys)
    image, labels = _spatial(image, labels, draw, patch, num_classes, max_angle)
    normal = lambda key: jax.random.normal(jax.random.fold_in(key, 1), image.shape[1:])
    noise = jnp.where(draw['on']['noise'], NOISE * draw['noise_size'], 0)
    image = image + _broadcast_channels(noise[:, None]) * jax.vmap(normal)(keys)
    blurred = draw['on']['blur'][:, None] & (draw['blur_on'] < CHANNEL_SHARE)
    image = _along_axes(image, lambda n: _blur(n, _between(draw['sigma'], *SIGMAS)), blurred)
    factor = jnp.where(draw['on']['brightness'][:, None], _between(draw['factor'], *FACTORS), 1)
    image = _broadcast_channels(factor) * image
    contrast = _two_sided(draw['contrast_side'], draw['contrast'], *FACTORS)
    image = _select(draw['on']['contrast'], _contrast(image, contrast), image)
    low = draw['on']['low_resolution'][:, None] & (draw['low_on'] < CHANNEL_SHARE)
    image = _along_axes(image, lambda n: _coarsen(n, _between(draw['zoom'], ZOOM, 1)), low)
    gamma = lambda name: _two_sided(draw[f'{name}_side'], draw[name], *GAMMAS)
    image = _select(draw['on']['gamma_inverted'], -_gamma(-image, gamma('inverted')), image)
    image = _select(draw['on']['gamma'], _gamma(image, gamma('power')), image)
    for axis, name in ((1, 'mirror_rows'), (2, 'mirror_columns')):
      flip = draw[name] < chance['mirror']
      image = _select(flip, jnp.flip(image, axis), image)
      labels = _select(flip, jnp.flip(labels, axis), labels)
    if mask_outside:
      image = jnp.where(labels[..., None] < 0, 0, image)
    target = {**batch['target'], 'labels': jnp.maximum(labels, 0)}
    return {**batch, 'image': image, 'target': target}

  return apply


def _draws(key, chance, channels):
  """Returns all uniform numbers of one example; one random call compiles once, not 30 times."""
  fired = [name for name in chance if name != 'mirror']
  count = len(fired) + len(_EXAMPLE)
  numbers = jax.random.uniform(key, (count + len(_CHANNEL) * channels,))
  on = {name: numbers[i] < chance[name] for i, name in enumerate(fired)}
  single = {name: numbers[len(fired) + i] for i, name in enumerate(_EXAMPLE)}
  rest = numbers[count:].reshape(len(_CHANNEL), channels)
  return {'on': on, **single, **{name: rest[i] for i, name in enumerate(_CHANNEL)}}


def _between(u, low, high):
  return low + (high - low) * u


def _two_sided(side, u, low, high):
  """Returns a factor that is below 1 as often as above it, uniform on each side."""
  return jnp.where(side < 0.5, _between(u, low, 1), _between(u, 1, high))


def _broadcast_channels(values):
  """Returns [b, c] as [b, 1, 1, c]."""
  return values[:, None, None]


def _select(on, new, old):
  """Returns `new` for the examples that are `on` [b], `old` for the others."""
  return jnp.where(on.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)


def _spatial(image, labels, draw, patch, num_classes, max_angle):
  """Rotates and scales (isotropically) about the middle, in one warp of image and class maps."""
  angle = jnp.where(draw['on']['rotation'], jnp.deg2rad(max_angle) * (2 * draw['angle'] - 1), 0)
  scale = _two_sided(draw['scale_side'], draw['scale'], *SCALES)
  scale = jnp.where(draw['on']['scaling'], scale, 1)
  cos, sin = scale * jnp.cos(angle), scale * jnp.sin(angle)
  turn = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
  half = (np.array(patch, np.float32) - 1) / 2
  # A whole number of pixels, so that the crop without a warp is exact for even and odd margins.
  middle = half + np.array([(n - m) // 2 for n, m in zip(labels.shape[1:], patch)], np.float32)
  grid = np.stack(np.meshgrid(*map(np.arange, patch), indexing='ij'), -1).astype(np.float32) - half
  where = jnp.einsum('bij,hwj->bhwi', turn, grid, precision='highest') + middle[None, None, None]
  inside = labels >= 0
  maps = [inside, *(labels == k for k in range(1, num_classes))]
  both = jnp.concatenate([image, jnp.stack(maps, -1).astype(image.dtype)], axis=-1)
  both = warp.sample(both, where, padding='zero')
  image, inside, maps = jnp.split(both, [image.shape[-1], image.shape[-1] + 1], axis=-1)
  found = jnp.where(inside[..., 0] >= 0.5, 0, -1)
  for k in range(1, num_classes):  # of two classes with exactly 1/2 the later one is taken
    found = jnp.where(maps[..., k - 1] >= 0.5, k, found)
  return image, found.astype(labels.dtype)


def _along_axes(image, matrix_of, on):
  """Multiplies rows and columns of channels that are `on` [b, c] by `matrix_of(n)` [b, c, n, n]."""
  height, width = image.shape[1:3]
  chosen = lambda n: jnp.where(on[..., None, None], matrix_of(n), jnp.eye(n)[None, None])
  image = jnp.einsum('bcik,bkwc->biwc', chosen(height), image, precision='highest')
  return jnp.einsum('bcjk,bhkc->bhjc', chosen(width), image, precision='highest')


def _interpolation_matrix(weights, sources, size):
  """Returns the matrix [b, c, n, n] of weights and source indices, lists of [b, c, n]."""
  cells = jnp.arange(size).reshape(1, 1, 1, size)
  hit = lambda index: (index[..., None] == cells).astype(jnp.float32)
  return sum(w[..., None] * hit(s) for w, s in zip(weights, sources, strict=True))


def _blur(size, sigma):
  """Returns the matrix of a Gaussian of width sigma [b, c], cut at 4 sigma, mirrored at borders."""
  index = np.arange(size)
  weights, sources = [], []
  for offset in range(-4, 5):
    weight = jnp.exp(-0.5 * (offset / sigma) ** 2)
    weight = jnp.where(abs(offset) <= jnp.floor(4 * sigma + 0.5), weight, 0)
    weights.append(jnp.broadcast_to(weight[..., None], (*sigma.shape, size)))
    around = (index + offset) % (2 * size)
    source = np.where(around < size, around, 2 * size - 1 - around)
    sources.append(jnp.broadcast_to(jnp.asarray(source)[None, None], (*sigma.shape, size)))
  total = sum(weights)
  return _interpolation_matrix([w / total for w in weights], sources, size)


def _coarsen(size, zoom):
  """Returns the matrix of a nearest reduction to round(zoom * size) cells and a cubic way back."""
  cells = jnp.round(zoom * size)[..., None]
  position = (jnp.arange(size)[None, None] + 0.5) * cells / size - 0.5
  low = jnp.floor(position)
  weights, sources = [], []
  for offset in (-1, 0, 1, 2):
    d = jnp.abs(position - low - offset)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights.append(jnp.where(d <= 1, near, jnp.where(d < 2, far, 0)))
    cell = jnp.clip(low + offset, 0, cells - 1)
    sources.append(jnp.floor((cell + 0.5) * size / cells))
  return _interpolation_matrix(weights, sources, size)


def _contrast(image, factor):
  """Scales each channel about its mean, within its old range."""
  mean = image.mean((1, 2), keepdims=True)
  low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
  return jnp.clip((image - mean) * _broadcast_channels(factor) + mean, low, high)


def _gamma(image, power):
  """Returns x^power of each channel, scaled to [0, 1], with its old mean and deviation restored."""
  low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
  bent = jnp.maximum((image - low) / (high - low + 1e-7), 0) ** _broadcast_channels(power)
  bent = bent - bent.mean((1, 2), keepdims=True)
  deviation = image.std((1, 2), keepdims=True) / (bent.std((1, 2), keepdims=True) + 1e-8)
  return bent * deviation + image.mean((1, 2), keepdims=True)

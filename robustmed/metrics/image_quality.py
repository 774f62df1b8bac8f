"""Distances between two images: RMSE, PSNR, SSIM, per example over all channels.

Images [b, *spatial, c] of one or more spatial axes; `data_range` is the width of their scale, 1 for
images in [0, 1].
"""

import jax
import jax.numpy as jnp

from robustmed import errors

WINDOW = 7  # cells per axis of an SSIM window


def rmse(image: jax.Array, reference: jax.Array) -> jax.Array:
  """Returns the root of the mean squared difference, [b]."""
  axes = tuple(range(1, image.ndim))
  return jnp.sqrt(jnp.mean(jnp.square(image - reference), axis=axes))


def psnr(image: jax.Array, reference: jax.Array, *, data_range: float = 1.0) -> jax.Array:
  """Returns 20 log10(data_range / RMSE) in decibels, [b]; inf for equal images."""
  return 20 * (jnp.log10(jnp.float32(data_range)) - jnp.log10(rmse(image, reference)))


def ssim(image: jax.Array, reference: jax.Array, *, data_range: float = 1.0) -> jax.Array:
  """Returns the structural similarity (Wang et al. 2004), [b], averaged over windows and channels.

  Flat windows of 7 cells per axis (the whole axis where it is shorter), only those that lie inside
  the image; sample variances; K1 = 0.01, K2 = 0.03: the defaults of scikit-image.
  """
  windows = [min(WINDOW, n) for n in image.shape[1:-1]]
  count = 1
  for size in windows:
    count *= size
  if count < 2:
    raise errors.UserError(f'SSIM needs more than one cell, not images of shape {image.shape}')

  def local(values):
    for axis, size in enumerate(windows, start=1):
      kept = values.shape[axis] - size + 1
      parts = [
        jax.lax.slice_in_dim(values, start, start + kept, axis=axis) for start in range(size)
      ]
      values = sum(parts[1:], parts[0]) / size
    return values

  # Centred on the image's mean, so that float32 keeps the digits of small variances.
  centre = jnp.mean(reference, axis=tuple(range(1, image.ndim)), keepdims=True)
  x, y = image - centre, reference - centre
  mean_x, mean_y = local(x), local(y)
  sample = count / (count - 1)
  variance_x = sample * (local(x * x) - mean_x * mean_x)
  variance_y = sample * (local(y * y) - mean_y * mean_y)
  covariance = sample * (local(x * y) - mean_x * mean_y)
  mean_x, mean_y = mean_x + centre, mean_y + centre
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
  similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
  return jnp.mean(similarity, axis=tuple(range(1, image.ndim)))

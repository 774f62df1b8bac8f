"""Changes of intensities: a bias field, gamma, offset, scale, and blur."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from robustmed.attacks.physical.transform import Transform, like


def bias_field(image_shape: Sequence[int], *, waves: int = 3) -> Transform:
  """Returns multiplication by exp(field), the field a sum of cosines that stays within +-eps.

  waves: cosines per axis, the first one constant. For images whose background is 0.
  """
  spatial = tuple(image_shape[:-1])
  basis = [np.cos(np.pi * np.arange(waves)[:, None] * (np.arange(n) + 0.5) / n) for n in spatial]
  # the sum of all |basis functions| is largest at a corner; that they share eps keeps the bound
  most = math.prod(float(np.abs(one).sum(0).max()) for one in basis)

  def apply(z, image):
    field = z / most
    for one in basis:  # contracts the first axis of coefficients, appends one of places
      field = jnp.tensordot(field, jnp.asarray(one, z.dtype), ((1,), (0,)))
    return image * jnp.exp(field)[..., None]

  shape = (waves,) * len(spatial)
  return Transform(shape, apply, 'largest logarithm of the field (0.1 is about 10 %)')


def gamma(image_shape: Sequence[int], *, bounds: tuple[float, float] = (0.0, 1.0)) -> Transform:
  """Returns v ** exp(z) of the intensities v, scaled to [0, 1] by `bounds`; outside they stay."""
  del image_shape
  low, high = bounds

  def apply(z, image):
    v = (image - low) / (high - low)
    inside = (v > 0) & (v < 1)
    safe = jnp.where(inside, v, 0.5)
    # v ** g - v = v (exp((g - 1) log v) - 1), exactly 0 at g = 1
    change = safe * jnp.expm1(jnp.expm1(like(z, image)) * jnp.log(safe))
    return image + jnp.where(inside, change * (high - low), 0)

  return Transform((1,), apply, 'logarithm of the exponent')


def offset(image_shape: Sequence[int]) -> Transform:
  """Returns the image plus one number, such as a shift of all HU."""
  del image_shape
  return Transform(
    (1,), lambda z, image: image + like(z, image), 'units of the image, added everywhere'
  )


def scale(image_shape: Sequence[int], *, centre: float = 0.0) -> Transform:
  """Returns centre + (1 + z) (image - centre)."""
  del image_shape
  return Transform(
    (1,),
    lambda z, image: image + like(z, image) * (image - centre),
    f'share by which the distance to {centre:g} changes',
  )


def blur(image_shape: Sequence[int]) -> Transform:
  """Returns a convolution with a Gaussian, the deviation |z| of each axis a parameter.

  Borders wrap around, as in k-space.
  """
  axes = tuple(range(1, len(image_shape)))

  def apply(z, image):
    exponent = 0.0
    for axis in axes:
      size = image.shape[axis]
      square = jnp.square(jnp.fft.fftfreq(size).astype(image.dtype)).reshape(
        tuple(size if k == axis else 1 for k in range(image.ndim))
      )
      exponent += square * like(jnp.square(z[:, axis - 1 : axis]), image)
    lost = jnp.expm1(-2 * jnp.pi**2 * exponent)
    change = jnp.fft.ifftn(jnp.fft.fftn(image, axes=axes) * lost, axes=axes)
    return image + change.real.astype(image.dtype)

  return Transform((len(axes),), apply, 'standard deviation in pixels')

"""Artefacts of k-space that is acquired line by line: motion and ghosts."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks.physical.transform import Transform
from robustmed.ops import corruptions


def motion(image_shape: Sequence[int]) -> Transform:
  """Returns the image of a head that moves from line to line of k-space; a shift per line and axis.

  As `ops.corruptions.motion`, whose drawn path is replaced by the parameters. The central lines
  have no shift. Intensities are magnitudes; where an image has negative ones (z-scores), what the
  magnitude gains or loses is added to them, so that small shifts are small changes.
  """
  if len(image_shape) < 3:
    raise errors.UserError(f'motion needs at least two spatial axes, not shape {image_shape}')
  lines = image_shape[-3]

  def apply(z, image):
    moved = jax.vmap(lambda one, shifts: corruptions.moved(one, shifts[..., None]))
    return image + (moved(image, corruptions.still(z)) - moved(image, jnp.zeros_like(z)))

  return Transform((2, lines), apply, 'shift in shares of the side')


def ghosting(image_shape: Sequence[int], *, every: int = 4) -> Transform:
  """Returns ghosts of the image, `every` of them, at distances of side / every along its lines.

  Lines of k-space are acquired in turn as `every` groups, each with an amplitude and a phase of its
  own, which are the parameters: [2, every], shares and radians. Lines are those of `motion`; the
  central ones are as they were. Intensities are as in `motion`.
  """
  if len(image_shape) < 3:
    raise errors.UserError(f'ghosting needs at least two spatial axes, not shape {image_shape}')
  axis, lines = len(image_shape) - 2, image_shape[-3]
  if not 2 <= every <= lines:
    raise errors.UserError(f'ghosting needs every from 2 to the {lines} lines, not {every}')
  # the order of lines in the scanner, from the lowest frequency up
  group = np.argsort(np.argsort(np.fft.fftfreq(lines))) % every

  def apply(z, image):
    error = corruptions.still(z[..., group])
    gain = (1 + error[:, 0]) * jnp.exp(1j * error[:, 1])
    gain = gain.reshape(len(z), *(lines if k == axis else 1 for k in range(1, image.ndim)))
    spectrum = jnp.fft.fft(image, axis=axis)
    size = lambda spectrum: jnp.abs(jnp.fft.ifft(spectrum, axis=axis)).astype(image.dtype)
    return image + (size(spectrum * gain) - size(spectrum * jnp.ones_like(gain)))

  return Transform((2, every), apply, 'share of the amplitude, and radians, of a group of lines')

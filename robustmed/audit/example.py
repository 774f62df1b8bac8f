"""A network for the demonstration: brightness, smoothed, in the units of the synthetic volumes."""

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import networks
from robustmed.ops import conv

_CENTRES = (0.05, 1.75, 3.45)  # background, organ and lesion, in deviations of the slice
_SHARPNESS = 2.0


def make() -> networks.Network:
  """Returns a network with three channels of logits, of slices in deviations of each."""
  variables = {
    'kernel': np.full((3, 3, 1, 1), 1 / 9, np.float32),
    'centres': np.array(_CENTRES, np.float32),
  }
  stated = {
    'input.normalise': ('zscore', 'the network'),
    'output.classes': (('background', 'organ', 'lesion'), 'the network'),
  }
  return networks.from_function(_apply, variables, channels=1, name='brightness', stated=stated)


def _apply(variables, image: jax.Array) -> jax.Array:
  smooth = conv.conv_general_dilated(
    image,
    variables['kernel'],
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  centres = variables['centres'].reshape(1, 1, 1, -1)
  return -_SHARPNESS * jnp.square(smooth - centres)

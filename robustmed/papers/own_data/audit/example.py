"""A network for the demonstration: brightness, smoothed, in the units of the synthetic volumes."""

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import networks
from robustmed.ops import conv

_CENTRES = (0.36, 0.62, 0.85)  # brightness of background, organ and lesion in data/labelled/phantom
_SHARPNESS = 60.0


def make() -> networks.Network:
  """Returns a network with three channels of logits, of slices in [0, 1]."""
  variables = {
    'kernel': np.full((5, 5, 1, 1), 1 / 25, np.float32),
    'centres': np.array(_CENTRES, np.float32) / max(_CENTRES),
  }
  stated = {
    'input.normalise': ('minmax', 'the network'),
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

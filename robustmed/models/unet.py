"""The standard U-Net in 2D or 3D: Ronneberger et al. 2015, padded, with batch normalisation.

Chen et al. 2019 attack such a network; they give no further details of its layers.
"""

import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers
from robustmed.ops import pool

_HE = layers.he_normal(0.0)


class Block(nn.Module):
  """conv3, batch norm, ReLU, twice."""

  features: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    kernel = (3,) * (x.ndim - 2)
    for place in range(2):
      x = layers.Conv(self.features, kernel, dtype=self.dtype, init_of=_HE, name=f'conv{place}')(x)
      x = layers.BatchNorm(leak=0.0, name=f'norm{place}')(x, train=train)
    return x


class UNet(nn.Module):
  """Maps image [b, *spatial, channels] to {'head0': [b, *spatial, num_classes] logits}.

  Level i has base_features * 2^i * width features, `poolings` + 1 levels; sides must be multiples
  of 2^poolings. Outputs are float32 for any `dtype`.
  """

  num_classes: int = 5
  channels: int = 1
  base_features: int = 64
  poolings: int = 4
  width: float = 1.0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    whole = 2**self.poolings
    if image.shape[-1] != self.channels or any(n % whole for n in image.shape[1:-1]):
      raise errors.UserError(
        f'UNet reads images [b, *spatial, {self.channels}] with sides that are multiples of '
        f'{whole}, got {image.shape}; pad them, or set channels or poolings'
      )
    features = lambda level: max(1, round(self.base_features * 2**level * self.width))
    double = (2,) * (image.ndim - 2)
    x, skips = image, []
    for level in range(self.poolings):
      x = Block(features(level), dtype=self.dtype, name=f'down{level}')(x, train=train)
      skips.append(x)
      x = pool.maximum(x, 2)
    x = Block(features(self.poolings), dtype=self.dtype, name='bottom')(x, train=train)
    for level in reversed(range(self.poolings)):
      x = layers.ConvTranspose(
        features(level),
        double,
        strides=2,
        padding=0,
        output_padding=0,
        use_bias=True,
        dtype=self.dtype,
        init_of=_HE,
        name=f'rise{level}',
      )(x)
      x = jnp.concatenate([skips.pop(), x], axis=-1)
      x = Block(features(level), dtype=self.dtype, name=f'up{level}')(x, train=train)
    head = layers.Conv(
      self.num_classes, (1,) * len(double), use_bias=True, dtype=self.dtype, name='head0'
    )
    return {'head0': head(x).astype(jnp.float32)}

"""Residual network that gives one class of an image (He et al. 2016), with group norms.

Group norms (Wu and He 2018) keep examples apart, in training as well, and need no statistics.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers

_HE = layers.he_normal(0.0)


class Block(nn.Module):
  """conv3, norm, ReLU, conv3, norm, plus the shortcut, then ReLU."""

  features: int
  stride: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    rank = x.ndim - 2
    conv = lambda taps, stride, name: layers.Conv(
      self.features,
      (taps,) * rank,
      strides=stride,
      dtype=self.dtype,
      init_of=_HE,
      name=name,
    )
    norm = lambda name: layers.Norm(groups(self.features), name=name)
    y = jax.nn.relu(norm('norm0')(conv(3, self.stride, 'conv0')(x)))
    y = norm('norm1')(conv(3, 1, 'conv1')(y))
    if x.shape != y.shape:
      x = norm('norm_shortcut')(conv(1, self.stride, 'shortcut')(x))
    return jax.nn.relu(x + y)


class ResNet(nn.Module):
  """Maps image [b, *spatial, channels] to {'logits': [b, num_classes]}.

  A stem of half the image's grid, then stages of `blocks` blocks, each but the first on half the
  grid of the one before; stage i has base_features * 2^i * width features. Logits are of the means
  of the last ones. Sides must be multiples of 16. Outputs are float32 for any `dtype`.
  """

  num_classes: int = 2
  channels: int = 1
  base_features: int = 64
  stages: int = 4
  blocks: int = 2
  width: float = 1.0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    whole = 2**self.stages
    if image.shape[-1] != self.channels or any(n % whole for n in image.shape[1:-1]):
      raise errors.UserError(
        f'ResNet reads images [b, *spatial, {self.channels}] with sides that are multiples of '
        f'{whole}, got {image.shape}; resize them (data.height, data.width), or set channels'
      )
    features = lambda stage: max(1, round(self.base_features * 2**stage * self.width))
    kernel = (3,) * (image.ndim - 2)
    stem = layers.Conv(features(0), kernel, strides=2, dtype=self.dtype, init_of=_HE, name='stem')
    x = stem(2 * image - 1)
    x = jax.nn.relu(layers.Norm(groups(features(0)), name='norm')(x))
    for stage in range(self.stages):
      for block in range(self.blocks):
        stride = 2 if stage and not block else 1
        name = f'stage{stage}_{block}'
        x = Block(features(stage), stride, dtype=self.dtype, name=name)(x)
    x = jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim - 1)))
    return {'logits': layers.Dense(self.num_classes, use_bias=True, name='head')(x)}


def groups(features: int) -> int:
  """Returns the number of groups of a norm."""
  return math.gcd(features, 8)

"""The lumbar disk shape network: one grey image to a 176-point contour and a segmentation map.

Chen, Qian, Urakov, Gu, Liang, 'Adversarial robustness study of convolutional neural network for
lumbar disk shape reconstruction from MR images', SPIE Medical Imaging 2021; layers as in the
authors' public network. 38,998,721 parameters at side 128, width 1.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers
from robustmed.ops import pool

NUM_POINTS = 176
LEAK = 0.01


class Block(nn.Module):
  """conv3, norm, act, conv1, plus a pooled 1x1 shortcut; norm and act come after the sum."""

  features: int
  strides: int = 1
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    groups = self.features // 4
    y = layers.Conv(self.features, (3, 3), strides=self.strides, dtype=self.dtype)(x)
    y = layers.Norm(groups, leak=LEAK)(y)
    y = layers.Conv(self.features, (1, 1), dtype=self.dtype)(y)
    if self.strides > 1:
      x = pool.average(x, self.strides)
    if x.shape[-1] != self.features:
      x = layers.Conv(self.features, (1, 1), dtype=self.dtype, name='shortcut')(x)
    return layers.Norm(groups, leak=LEAK)(x + y)


class Doubling(nn.Module):
  """Transposed conv that doubles the grid, norm, act."""

  features: int
  groups: int
  kernel: int = 3
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    kernel = (self.kernel, self.kernel)
    x = layers.ConvTranspose(self.features, kernel, dtype=self.dtype)(x)
    return layers.Norm(math.gcd(self.groups, self.features), leak=LEAK)(x)


class Merge(nn.Module):
  """Concatenates the skip, conv3, norm, act, then a `Doubling`."""

  features: int
  groups: int
  kernel: int = 3
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, skip, x):
    x = jnp.concatenate([skip, x], axis=-1)
    x = layers.Conv(self.features, (3, 3), dtype=self.dtype)(x)
    x = layers.Norm(math.gcd(self.groups, self.features), leak=LEAK)(x)
    return Doubling(self.features, self.groups, self.kernel, dtype=self.dtype)(x)


class DiskShapeNet(nn.Module):
  """Maps image [b, side, side, 1] to a contour and to one or two maps.

  {'contour': [b, 176, 2] in pixels, x first, 'segmentation': [b, side, side, 1] logits} and, with
  num_maps=2, 'reconstruction' [b, side, side, 1] in (0, 1).

  `side` is 64 times a power of two (128 in the paper); the contour is offset by side / 2.
  `width` scales every channel count, in steps of 4. Outputs are float32 for any `dtype`.
  """

  side: int = 128
  width: float = 1.0
  num_maps: int = 1
  dtype: jnp.dtype | None = None

  def _channels(self, full):
    return max(4, 4 * round(full * self.width / 4))

  def _check(self, image):
    blocks = self.side // 64
    if self.side % 64 or blocks < 1 or blocks & (blocks - 1):
      raise errors.UserError(f'DiskShapeNet needs side 64 or 128 (or 64 * 2^n), got {self.side}')
    if self.num_maps not in (1, 2):
      raise errors.UserError(f'DiskShapeNet has 1 or 2 maps, got num_maps {self.num_maps}')
    if image.shape[1:] != (self.side, self.side, 1):
      raise errors.UserError(
        f'DiskShapeNet(side={self.side}) reads images [b, {self.side}, {self.side}, 1], '
        f'got {image.shape}; resize them or set side'
      )

  def _contour(self, z):
    wide = self._channels(1024)
    h = layers.Norm(1, leak=LEAK, name='head_norm0')(z.reshape(z.shape[0], -1))
    h = layers.Dense(wide, dtype=self.dtype, name='head_dense0')(h)
    h = layers.Norm(1, leak=LEAK, name='head_norm1')(h)
    h = layers.Dense(2 * NUM_POINTS, use_bias=True, dtype=self.dtype, name='head_dense1')(h)
    return h.astype(jnp.float32).reshape(-1, NUM_POINTS, 2) + self.side / 2

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    del train  # neither dropout nor batch statistics
    self._check(image)
    dtype, c = self.dtype, self._channels
    x = layers.Conv(c(32), (7, 7), strides=2, use_bias=True, dtype=dtype, name='stem0')(image)
    x = jnp.where(x >= 0, x, LEAK * x)
    x = layers.Conv(c(64), (5, 5), strides=2, dtype=dtype, name='stem1')(x)
    x = layers.Norm(leak=LEAK, name='stem_norm')(x)

    skips = [x]
    for level, full in enumerate((128, 256, 512, 1024), start=1):
      x = Block(c(full), strides=2, dtype=dtype, name=f'e{level}_0')(x)
      x = Block(c(full), dtype=dtype, name=f'e{level}_1')(x)
      skips.append(x)
    left = self.side // 64
    z = layers.Conv(c(1024), (left, left), padding=0, dtype=dtype, name='bottleneck')(skips.pop())
    outputs = {'contour': self._contour(z)}

    y = z
    for step in range(left.bit_length()):
      y = Doubling(c(512), min(step + 1, 2), dtype=dtype, name=f'g4_{step}')(y)
    for level, (full, groups, kernel) in enumerate(
      ((256, 4, 3), (128, 8, 3), (64, 16, 3), (32, 32, 7))
    ):
      y = Merge(c(full), groups, kernel, dtype=dtype, name=f'g{3 - level}')(skips.pop(), y)
    maps = layers.ConvTranspose(self.num_maps, (5, 5), use_bias=True, dtype=dtype, name='maps')(y)
    maps = maps.astype(jnp.float32)
    outputs['segmentation'] = maps[..., :1]
    if self.num_maps == 2:
      outputs['reconstruction'] = jax.nn.sigmoid(maps[..., 1:])
    return outputs

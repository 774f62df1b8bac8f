"""The residual U-Net of Isensee et al. 2017 in 3D, and the same graph in 2D.

Liu et al. 2021, 'Robustifying Deep Networks for Medical Image Segmentation', fig. 1, with the
counts of the public re-implementation 3DUnetCNN: 8,269,676 parameters in 3D and 2,775,788 in 2D for
four series and four labels.
"""

import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers
from robustmed.ops import resize

LEVELS = 5
HEADS = 3  # levels whose segmentations are summed


class Block(nn.Module):
  """conv, InstanceNorm, LeakyReLU; stride 2 halves even grids as 'SAME' padding does."""

  features: int
  kernel: int = 3
  stride: int = 1
  leak: float = 0.01
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    rank = x.ndim - 2
    # Not added, only counted as a parameter: the norm removes every constant.
    self.param('bias', nn.initializers.zeros, (self.features,))
    x = layers.Conv(
      self.features,
      (self.kernel,) * rank,
      strides=self.stride,
      padding=((0, 1),) * rank if self.stride == 2 else None,
      dtype=self.dtype,
      init_of=layers.he_normal(self.leak),
      name='conv',
    )(x)
    return layers.Norm(leak=self.leak, name='norm')(x)


class Down(nn.Module):
  """A block, plus its residual branch: block, channel-wise dropout, block."""

  features: int
  stride: int
  dropout: float
  leak: float
  train: bool
  dtype: jnp.dtype | None

  @nn.compact
  def __call__(self, x):
    block = lambda name, stride=1: Block(
      self.features, stride=stride, leak=self.leak, dtype=self.dtype, name=name
    )
    first = block('first', self.stride)(x)
    x = block('context0')(first)
    whole_channels = tuple(range(1, x.ndim - 1))
    x = nn.Dropout(self.dropout, whole_channels, deterministic=not self.train, name='drop')(x)
    return first + block('context1')(x)


class Up(nn.Module):
  """Nearest upsampling by 2, a block, concatenation with the skip, a block, a 1x1 block."""

  features: int
  leak: float
  dtype: jnp.dtype | None

  @nn.compact
  def __call__(self, x, skip):
    block = lambda name, kernel=3: Block(
      self.features, kernel=kernel, leak=self.leak, dtype=self.dtype, name=name
    )
    x = block('rise')(resize.nearest(x, 2))
    x = jnp.concatenate([x, skip], axis=-1)
    return block('last', 1)(block('join')(x))


class BratsUNet(nn.Module):
  """Maps image [b, *spatial, channels] to {'head0': [b, *spatial, num_classes] logits}.

  `rank` spatial axes, each a multiple of 16. Level l has 16 * 2^l features, scaled by `width`. The
  logits are the sum of those of the three finest levels, coarser ones upsampled (deep supervision
  by sums), times `logit_gain`: distillation at temperature T of networks with logit_gain=T is that
  of networks without it at T = 1. The gain is the variable 'logit_gain' of the collection 'fixed',
  so that networks that differ only in it share programs. With `remat` every level is recomputed in
  the backward pass instead of being kept. Logits are float32 for any `dtype`.
  """

  rank: int = 3
  num_classes: int = 4
  channels: int = 4
  width: float = 1.0
  dropout: float = 0.3
  leak: float = 0.01
  logit_gain: float = 1.0
  remat: bool = False
  dtype: jnp.dtype | None = None

  def _check(self, image):
    multiple = 2 ** (LEVELS - 1)
    if (
      image.ndim != self.rank + 2
      or image.shape[-1] != self.channels
      or any(n % multiple for n in image.shape[1:-1])
    ):
      sides = ', '.join([f'{multiple}n'] * self.rank)
      raise errors.UserError(
        f'BratsUNet reads images [b, {sides}, {self.channels}], got {image.shape}; resize them, or '
        'set rank or channels'
      )

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    self._check(image)
    down, up = (nn.remat(Down), nn.remat(Up)) if self.remat else (Down, Up)
    features = [max(1, round(16 * 2**level * self.width)) for level in range(LEVELS)]
    x, skips = image, []
    for level, count in enumerate(features):
      stride = 2 if level else 1
      x = down(count, stride, self.dropout, self.leak, train, self.dtype, name=f'down{level}')(x)
      skips.append(x)
    logits = None
    for level in reversed(range(LEVELS - 1)):
      x = up(features[level], self.leak, self.dtype, name=f'up{level}')(x, skips[level])
      if level < HEADS:
        head = layers.Conv(
          self.num_classes,
          (1,) * self.rank,
          use_bias=True,
          dtype=self.dtype,
          name=f'head{level}',
        )(x).astype(jnp.float32)
        logits = head if logits is None else resize.nearest(logits, 2) + head
    gain = self.variable('fixed', 'logit_gain', lambda: jnp.float32(self.logit_gain))
    return {'head0': gain.value * logits}

"""The plain U-Net of nnU-Net v1 over any number of spatial axes, with deep supervision.

Isensee et al., 'nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation', Nature Methods 2021; layers as in the public network of version 1. In 2D it has
29,966,112 parameters for the heart, 1,928,256 for the hippocampus and 29,967,840 for the prostate
of the Medical Segmentation Decathlon.
"""

import math

import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers

LEAK = 0.01
_HE = layers.he_normal(LEAK)


class Block(nn.Module):
  """conv3, InstanceNorm, LeakyReLU."""

  features: int
  strides: tuple[int, ...]
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    kernel = (3,) * len(self.strides)
    # The published network has this bias, but the norm removes every constant: it is counted as a
    # parameter and not added.
    self.param('bias', nn.initializers.zeros, (self.features,))
    x = layers.Conv(
      self.features,
      kernel,
      strides=self.strides,
      padding=(1,) * len(kernel),
      dtype=self.dtype,
      init_of=_HE,
      name='conv',
    )(x)
    return layers.Norm(leak=LEAK, name='norm')(x)


class NnUNet(nn.Module):
  """Maps image [b, *spatial, channels] to logits 'head0' [b, *spatial, num_classes], 'head1', ...

  Head i is at the i-th resolution, head 0 the full one; there is one per pooling. `strides` are
  those of the poolings from the top, each an int or one per axis (see nnunet_planner). Stage i has
  min(base_features 2^i, max_features) features, all scaled by `width`. Outputs are float32 for any
  `dtype`.
  """

  num_classes: int = 3
  channels: int = 1
  strides: tuple[int | tuple[int, ...], ...] = (2, 2, 2)
  base_features: int = 32
  max_features: int = 480
  width: float = 1.0
  dtype: jnp.dtype | None = None

  def _features(self, stage):
    return max(1, round(min(self.base_features * 2**stage, self.max_features) * self.width))

  def _strides(self, image):
    rank = image.ndim - 2
    strides = [(s,) * rank if isinstance(s, int) else tuple(s) for s in self.strides]
    if not strides or rank < 1 or any(len(s) != rank for s in strides):
      raise errors.UserError(
        f'NnUNet strides {self.strides} do not fit images {image.shape}, which must be [b, *sides, '
        'channels] with a stride for each side'
      )
    whole = [math.prod(axis) for axis in zip(*strides, strict=True)]
    grid = image.shape[1:-1]
    if image.shape[-1] != self.channels or any(n % m for n, m in zip(grid, whole, strict=True)):
      raise errors.UserError(
        f'NnUNet reads images [b, {", ".join(f"{m}n" for m in whole)}, {self.channels}], '
        f'got {image.shape}; pad them, or set channels or strides'
      )
    return strides

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    del train  # neither dropout nor batch statistics
    strides, dtype = self._strides(image), self.dtype
    ones, skips, x = (1,) * (image.ndim - 2), [], image
    for stage, first in enumerate([ones, *strides]):
      features = self._features(stage)
      x = Block(features, first, dtype=dtype, name=f'down{stage}_0')(x)
      x = Block(features, ones, dtype=dtype, name=f'down{stage}_1')(x)
      skips.append(x)
    skips.pop()
    outputs = {}
    for stage in reversed(range(len(strides))):
      features, factor = self._features(stage), strides[stage]
      x = layers.ConvTranspose(
        features,
        factor,
        strides=factor,
        padding=0,
        output_padding=0,
        dtype=dtype,
        init_of=_HE,
        name=f'rise{stage}',
      )(x)
      x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = Block(features, ones, dtype=dtype, name=f'up{stage}_0')(x)
      x = Block(features, ones, dtype=dtype, name=f'up{stage}_1')(x)
      head = layers.Conv(self.num_classes, ones, dtype=dtype, init_of=_HE, name=f'head{stage}')
      outputs[f'head{stage}'] = head(x).astype(jnp.float32)
    return dict(sorted(outputs.items()))

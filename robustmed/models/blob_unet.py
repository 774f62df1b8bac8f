"""Candidate networks for lung nodules: a residual U-Net for heat maps, with or without boxes.

Liu et al. 2020, 'No Surprises: training robust lung nodule detection for low-dose CT scans by
augmenting with adversarial attacks', section 3.1. The paper gives no layers: at these widths the
heat map takes 139,889 parameters and 67.4 G multiply-adds for 128^3 (paper: 143.92k, 67.15), with
three anchors 278,046 and 113.0 G (paper: 276.93k, 113.91).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers
from robustmed.ops import resize

PRIOR = -4.0  # logit of a cell before training: nodules are rare
_HE = layers.he_normal(0.0)


class Residual(nn.Module):
  """BatchNorm, ReLU, conv3, twice, and a shortcut (1x1 where the stride or the width changes)."""

  features: int
  stride: int = 1
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    rank, y = x.ndim - 2, x
    for i, stride in enumerate((self.stride, 1)):
      y = jax.nn.relu(layers.BatchNorm(name=f'norm{i}')(y, train=train))
      y = layers.Conv(
        self.features,
        (3,) * rank,
        strides=stride,
        dtype=self.dtype,
        init_of=_HE,
        name=f'conv{i}',
      )(y)
    if self.stride != 1 or x.shape[-1] != self.features:
      x = layers.Conv(
        self.features, (1,) * rank, strides=self.stride, dtype=self.dtype, name='shortcut'
      )(x)
    return x + y


class BoxHead(nn.Module):
  """Maps features [b, *spatial, c] to [b, *spatial / 2, anchors, 1 + 2 rank]: a logit and a box."""

  anchors: int
  features: tuple[int, int]
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    rank = x.ndim - 2
    narrow, wide = self.features
    for i, (features, stride) in enumerate(((narrow, 1), (wide, 2), (wide, 1))):
      x = layers.Conv(
        features, (3,) * rank, strides=stride, dtype=self.dtype, init_of=_HE, name=f'conv{i}'
      )(x)
      x = jax.nn.relu(layers.BatchNorm(name=f'norm{i}')(x, train=train))
    numbers = 1 + 2 * rank
    x = layers.Conv(
      self.anchors * numbers,
      (1,) * rank,
      use_bias=True,
      bias_init=box_bias(numbers),
      dtype=self.dtype,
      name='out',
    )(x)
    return x.reshape(*x.shape[:-1], self.anchors, numbers)


def box_bias(numbers: int):
  """Returns an initialiser of a bias [anchors * numbers]: `PRIOR` for logits, 0 for boxes."""

  def init(key, shape, dtype=jnp.float32):
    del key
    return jnp.where(jnp.arange(shape[0]) % numbers == 0, PRIOR, 0.0).astype(dtype)

  return init


class BlobUNet(nn.Module):
  """Maps image [b, *spatial, channels] to {'heat': [b, *spatial, 1] logits}.

  With `anchors` also to 'boxes' [b, *spatial / 2, anchors, 1 + 2 rank], see `tasks.proposals`.

  One level per entry of `widths`, each half the grid of the one above; any number of spatial axes.
  Decoder: 1x1 to the skip's width, linear upsampling by 2, sum with the skip, a residual block.
  Outputs are float32 for any `dtype`.
  """

  channels: int = 1
  widths: tuple[int, ...] = (16, 16, 16, 16, 24)
  anchors: int = 0
  box_features: tuple[int, int] = (12, 64)
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    widths, rank = tuple(self.widths), image.ndim - 2
    check_grid(image, 'BlobUNet', levels=len(widths), channels=self.channels, setting='widths')
    conv = lambda features, taps, name: layers.Conv(
      features, (taps,) * rank, dtype=self.dtype, init_of=_HE, name=name
    )
    x = conv(widths[0], 3, 'stem')(image)
    skips = []
    for level, features in enumerate(widths):
      stride = 2 if level else 1
      x = Residual(features, stride, self.dtype, name=f'down{level}')(x, train=train)
      skips.append(x)
    skips.pop()
    for level in reversed(range(len(skips))):
      skip = skips[level]
      x = conv(skip.shape[-1], 1, f'rise{level}')(x)
      x = resize.linear(x, skip.shape[1:-1]) + skip
      x = Residual(widths[level], dtype=self.dtype, name=f'up{level}')(x, train=train)
    x = jax.nn.relu(layers.BatchNorm(name='norm')(x, train=train))
    heat = layers.Conv(
      1,
      (1,) * rank,
      use_bias=True,
      bias_init=nn.initializers.constant(PRIOR),
      dtype=self.dtype,
      name='heat',
    )(x)
    outputs = {'heat': heat.astype(jnp.float32)}
    if self.anchors:
      head = BoxHead(self.anchors, tuple(self.box_features), self.dtype, name='boxes')
      outputs['boxes'] = head(x, train=train).astype(jnp.float32)
    return outputs


def check_grid(image, name: str, *, levels: int, channels: int, setting: str) -> None:
  """Raises `UserError` for other channels, or sides that cannot be halved `levels` - 1 times."""
  if levels < 1:
    raise errors.UserError(f'{name} needs at least one of {setting}')
  multiple = 2 ** (levels - 1)
  if image.shape[-1] != channels or any(n % multiple for n in image.shape[1:-1]):
    sides = ', '.join([f'{multiple}n'] * (image.ndim - 2))
    raise errors.UserError(
      f'{name} reads images [b, {sides}, {channels}], got {image.shape}; pad them, or set '
      f'channels or {setting}'
    )

"""YOLOv5s as published in version 6.1, which Ma & Liang 2022 train on blood cells.

Written from the published layer table: 7,027,720 parameters at 3 classes, 7,235,389 at 80.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers
from robustmed.ops import pool, resize

STRIDES = (8, 16, 32)
# Width and height in pixels, three per stride.
ANCHORS = (
  ((10, 13), (16, 30), (33, 23)),
  ((30, 61), (62, 45), (59, 119)),
  ((116, 90), (156, 198), (373, 326)),
)


class ConvBlock(nn.Module):
  """conv without bias, BatchNorm, SiLU."""

  features: int
  kernel: int = 1
  stride: int = 1
  padding: int | None = None  # default kernel // 2
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    kernel = (self.kernel, self.kernel)
    padding = self.kernel // 2 if self.padding is None else self.padding
    x = layers.Conv(
      self.features,
      kernel,
      strides=self.stride,
      padding=(padding, padding),
      dtype=self.dtype,
      name='conv',
    )(x)
    return jax.nn.silu(layers.BatchNorm(eps=1e-3, momentum=0.03, name='bn')(x, train=train))


class Bottleneck(nn.Module):
  """1x1 and 3x3 `ConvBlock`, with a residual connection if `add`."""

  features: int
  add: bool
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    y = ConvBlock(self.features, dtype=self.dtype, name='cv1')(x, train=train)
    y = ConvBlock(self.features, 3, dtype=self.dtype, name='cv2')(y, train=train)
    return x + y if self.add else y


class C3(nn.Module):
  """Two 1x1 branches of half the features, bottlenecks on the first, concatenated, and a 1x1."""

  features: int
  number: int = 1
  add: bool = True
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    half = self.features // 2
    block = lambda features, name: ConvBlock(features, dtype=self.dtype, name=name)
    y = block(half, 'cv1')(x, train=train)
    for i in range(self.number):
      y = Bottleneck(half, self.add, dtype=self.dtype, name=f'm_{i}')(y, train=train)
    y = jnp.concatenate([y, block(half, 'cv2')(x, train=train)], axis=-1)
    return block(self.features, 'cv3')(y, train=train)


class SPPF(nn.Module):
  """1x1 to half the features, three 5x5 max poolings in sequence, all concatenated, a 1x1."""

  features: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    x = ConvBlock(x.shape[-1] // 2, dtype=self.dtype, name='cv1')(x, train=train)
    parts = [x]
    for _ in range(3):
      parts.append(pool.maximum_around(parts[-1], 2))
    x = jnp.concatenate(parts, axis=-1)
    return ConvBlock(self.features, dtype=self.dtype, name='cv2')(x, train=train)


class Yolo(nn.Module):
  """Maps image [b, 32m, 32n, channels] to {'p8': [b, 4m, 4n, 3, 5 + num_classes], 'p16', 'p32'}.

  Per anchor the raw x, y, width, height, objectness and classes. The layers `model_<i>` have the
  numbers of the published table; all features are scaled by `width`. Outputs are float32 for any
  `dtype`.
  """

  num_classes: int = 3
  channels: int = 3
  width: float = 1.0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    if (
      image.ndim != 4
      or image.shape[-1] != self.channels
      or any(n % STRIDES[-1] for n in image.shape[1:3])
    ):
      raise errors.UserError(
        f'Yolo reads images [b, 32m, 32n, {self.channels}], got {image.shape}; letterbox them to '
        'such a size'
      )
    wide = lambda features: 2 * max(1, round(features * self.width / 2))

    def conv(place, features, *size):
      made = ConvBlock(wide(features), *size, dtype=self.dtype, name=f'model_{place}')
      return lambda x: made(x, train=train)

    def c3(place, features, number=1, add=True):
      made = C3(wide(features), number, add, dtype=self.dtype, name=f'model_{place}')
      return lambda x: made(x, train=train)

    x = conv(1, 64, 3, 2)(conv(0, 32, 6, 2, 2)(image))
    x = conv(3, 128, 3, 2)(c3(2, 64)(x))
    fine = c3(4, 128, 2)(x)
    middle = c3(6, 256, 3)(conv(5, 256, 3, 2)(fine))
    x = c3(8, 512)(conv(7, 512, 3, 2)(middle))
    x = SPPF(wide(512), dtype=self.dtype, name='model_9')(x, train=train)
    coarse = conv(10, 256)(x)
    x = c3(13, 256, add=False)(jnp.concatenate([resize.nearest(coarse, 2), middle], axis=-1))
    half = conv(14, 128)(x)
    p8 = c3(17, 128, add=False)(jnp.concatenate([resize.nearest(half, 2), fine], axis=-1))
    x = jnp.concatenate([conv(18, 128, 3, 2)(p8), half], axis=-1)
    p16 = c3(20, 256, add=False)(x)
    x = jnp.concatenate([conv(21, 256, 3, 2)(p16), coarse], axis=-1)
    p32 = c3(23, 512, add=False)(x)
    outputs = {}
    for i, (stride, x) in enumerate(zip(STRIDES, (p8, p16, p32), strict=True)):
      head = layers.Conv(
        3 * (5 + self.num_classes),
        (1, 1),
        use_bias=True,
        dtype=self.dtype,
        bias_init=_detection_bias(stride, self.num_classes, x.shape[-1]),
        name=f'model_24_m_{i}',
      )(x)
      grid = head.shape[:3]
      outputs[f'p{stride}'] = head.reshape(*grid, 3, 5 + self.num_classes).astype(jnp.float32)
    return outputs


def _detection_bias(stride, num_classes, fan_in):
  """Returns torch's initialiser plus a prior: 8 objects per image of 640, 0.6 / classes a class."""
  objects, share = math.log(8 / (640 / stride) ** 2), math.log(0.6 / (num_classes - 0.999999))

  def draw(key, shape, dtype=jnp.float32):
    moved = jnp.array([0.0] * 4 + [objects] + [share] * num_classes, dtype)
    return layers.uniform_fan_in(fan_in)(key, shape, dtype) + jnp.tile(moved, 3)

  return draw

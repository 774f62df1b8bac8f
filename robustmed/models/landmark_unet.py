"""The Multi-Task U-Net for landmarks: a VGG19 encoder, heat maps and offsets.

Yao, He, Quan, Zhou, 'Miss the point: targeted adversarial attack on multiple landmark detection',
MICCAI 2020, as Ma & Liang 2022 train it. 24,308,153 parameters for 19 landmarks at width 1.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import layers
from robustmed.ops import pool, resize

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # features and convolutions of VGG19
DECODER = (256, 128, 64, 128, 64)
MIN_FEATURES = 32  # of the layer before the maps, which are three per landmark
_HE = layers.he_normal(0.0)


class DoubleConv(nn.Module):
  """conv3 with bias, BatchNorm, ReLU, twice."""

  features: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    for i in range(2):
      x = layers.Conv(
        self.features, (3, 3), use_bias=True, dtype=self.dtype, init_of=_HE, name=f'conv_{i}'
      )(x)
      x = jax.nn.relu(layers.BatchNorm(name=f'norm_{i}')(x, train=train))
    return x


class LandmarkUNet(nn.Module):
  """Maps image [b, h, w, channels] to {'heat': [b, h, w, landmarks], 'offset_x', 'offset_y'}.

  'heat' holds logits. Any sides of at least 32; odd grids lose a row in the poolings, as in torch.
  Skips are the five poolings of the encoder; the layers `features_<i>` have the numbers of
  torchvision's vgg19. All features are scaled by `width`, those before the maps to at least
  MIN_FEATURES. Outputs are float32 for any `dtype`.
  """

  landmarks: int = 19
  channels: int = 3
  width: float = 1.0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    if image.ndim != 4 or image.shape[-1] != self.channels or min(image.shape[1:3]) < 32:
      raise errors.UserError(
        f'LandmarkUNet reads images [b, h, w, {self.channels}] with sides of at least 32, '
        f'got {image.shape}'
      )
    features = lambda count: max(1, round(count * self.width))
    x, pooled, place = image, [], 0
    for count, convolutions in STAGES:
      for _ in range(convolutions):
        x = layers.Conv(
          features(count),
          (3, 3),
          use_bias=True,
          dtype=self.dtype,
          init_of=_HE,
          bias_init=nn.initializers.zeros,
          name=f'features_{place}',
        )(x)
        x = jax.nn.relu(x)
        place += 2
      height, width = (n // 2 * 2 for n in x.shape[1:3])
      x = pool.maximum(x[:, :height, :width], 2)
      pooled.append(x)
      place += 1
    x = pooled.pop()
    for level, count in enumerate(DECODER):
      last = level == len(DECODER) - 1
      x = resize.linear(x, [2 * n for n in x.shape[1:3]], align_corners=True)
      skip = pooled.pop() if pooled else None
      x = _padded(x, image.shape if skip is None else skip.shape)
      if skip is not None:
        x = jnp.concatenate([skip, x], axis=-1)
      x = DoubleConv(
        max(features(count), MIN_FEATURES if last else 1), dtype=self.dtype, name=f'up_{level}'
      )(x, train=train)
    maps = layers.Conv(3 * self.landmarks, (1, 1), use_bias=True, dtype=self.dtype, name='maps')(
      x
    ).astype(jnp.float32)
    return dict(zip(('heat', 'offset_x', 'offset_y'), jnp.split(maps, 3, axis=-1), strict=True))


def _padded(x, shape):
  """Returns x zero-padded to the grid of `shape`, the smaller half above and to the left."""
  rest = [n - m for n, m in zip(shape[1:3], x.shape[1:3], strict=True)]
  return jnp.pad(x, ((0, 0), *((r // 2, r - r // 2) for r in rest), (0, 0)))

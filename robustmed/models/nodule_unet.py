"""The classifier of nodules against false candidates: a dense U-Net with a small head.

Liu et al. 2020, 'No Surprises', section 3.1: pre-trained to segment nodules, then 'shallow
classifier layers on top'. The paper gives no layers: at these widths it has 454,059 parameters and
17.0 G multiply-adds for 64^3 (paper: 455.98k, 17.24).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed.models import blob_unet, layers
from robustmed.ops import pool, resize

_HE = layers.he_normal(0.0)


class DenseBlock(nn.Module):
  """BatchNorm, ReLU, conv3 to `growth` features, concatenated to the input; `depth` times."""

  depth: int
  growth: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    taps = (3,) * (x.ndim - 2)
    for i in range(self.depth):
      y = jax.nn.relu(layers.BatchNorm(name=f'norm{i}')(x, train=train))
      y = layers.Conv(self.growth, taps, dtype=self.dtype, init_of=_HE, name=f'conv{i}')(y)
      x = jnp.concatenate([x, y], axis=-1)
    return x


class NoduleUNet(nn.Module):
  """Maps image [b, *spatial, channels] to {'logits': [b, 2], 'segmentation': [b, *spatial, 1]}.

  Output 1 of 'logits' is for a nodule, output 0 against it; 'segmentation' holds logits too. The
  classifier reads the means of the coarsest and of the finest features. `levels` grids, each half
  the one above; any number of spatial axes. Outputs are float32 for any `dtype`.
  """

  channels: int = 1
  levels: int = 4
  depth: int = 3  # layers of a dense block
  growth: int = 12
  stem: int = 12
  rise: int = 24  # features that are upsampled
  hidden: int = 32
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    blob_unet.check_grid(
      image, 'NoduleUNet', levels=self.levels, channels=self.channels, setting='levels'
    )
    rank, dtype = image.ndim - 2, self.dtype
    active = lambda x, name: jax.nn.relu(layers.BatchNorm(name=name)(x, train=train))
    point = lambda features, name: layers.Conv(
      features, (1,) * rank, dtype=dtype, init_of=_HE, name=name
    )
    dense = lambda depth, name: DenseBlock(depth, self.growth, dtype, name=name)
    x = layers.Conv(self.stem, (3,) * rank, dtype=dtype, init_of=_HE, name='stem')(image)
    skips = []
    for level in range(self.levels):
      if level:
        skips.append(x)
        x = point(x.shape[-1], f'turn{level}')(active(x, f'norm{level}'))
        x = pool.average(x, 2)
      x = dense(self.depth, f'down{level}')(x, train=train)
    x = deep = active(x, 'deep')
    for level in reversed(range(len(skips))):
      skip = skips[level]
      x = resize.linear(point(self.rise, f'rise{level}')(x), skip.shape[1:-1])
      x = dense(1, f'up{level}')(jnp.concatenate([skip, x], axis=-1), train=train)
    fine = active(x, 'fine')
    mask = layers.Conv(1, (1,) * rank, use_bias=True, dtype=dtype, name='segmentation')(fine)
    means = [part.mean(tuple(range(1, rank + 1))) for part in (deep, fine)]
    y = layers.Dense(self.hidden, use_bias=True, dtype=dtype, name='hidden')(
      jnp.concatenate(means, axis=-1)
    )
    logits = layers.Dense(2, use_bias=True, dtype=dtype, name='logits')(jax.nn.relu(y))
    return {
      'logits': logits.astype(jnp.float32),
      'segmentation': mask.astype(jnp.float32),
    }

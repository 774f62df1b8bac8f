"""The reference detector: DeepLung's Res18 (Zhu et al. 2018), also with a classifier's head.

5,383,623 parameters and 168.7 G multiply-adds for 128^3 as detector; Liu et al. 2020, 'No
Surprises', table 2, have 5.36M and 168.43 for their row 'DeepLung'.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import blob_unet, layers
from robustmed.ops import pool

_HE = layers.he_normal(0.0)


class Block(nn.Module):
  """conv3, BatchNorm, ReLU, conv3, BatchNorm, plus the shortcut, then ReLU."""

  features: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    rank = x.ndim - 2
    conv = lambda taps, name: layers.Conv(
      self.features, (taps,) * rank, use_bias=True, dtype=self.dtype, init_of=_HE, name=name
    )
    norm = lambda name: layers.BatchNorm(name=name)
    y = jax.nn.relu(norm('norm0')(conv(3, 'conv0')(x), train=train))
    y = norm('norm1')(conv(3, 'conv1')(y), train=train)
    if x.shape[-1] != self.features:
      x = norm('norm_shortcut')(conv(1, 'shortcut')(x), train=train)
    return jax.nn.relu(x + y)


class NoduleResNet(nn.Module):
  """Maps image [b, *spatial, channels] to boxes of nodules, or to the logits of a nodule.

  head='detector': {'boxes': [b, *spatial / 4, anchors, 2 + rank]}; head='classifier': {'logits':
  [b, 2]}, against a nodule and for it, from the means of the detector's last features. `stages` are
  (features, blocks), each half the grid of the one before; those coarser than a quarter of the
  image are upsampled to that grid, where the position in the image is concatenated to the features.
  (DeepLung takes the position in the lungs, which a crop does not show.) All features are scaled by
  `width`. Outputs are float32 for any `dtype`.
  """

  channels: int = 1
  head: str = 'detector'
  anchors: int = 3
  stages: tuple[tuple[int, int], ...] = ((32, 2), (64, 2), (64, 3), (64, 3))
  last: int = 128
  dropout: float = 0.5
  width: float = 1.0
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    head = errors.lookup(
      {'detector': self._boxes, 'classifier': self._classes}, self.head, kind='NoduleResNet head'
    )
    if len(self.stages) < 3:
      raise errors.UserError(f'NoduleResNet needs three stages or more, got {self.stages}')
    blob_unet.check_grid(
      image,
      'NoduleResNet',
      levels=len(self.stages) + 1,
      channels=self.channels,
      setting='stages',
    )
    rank = image.ndim - 2
    features = lambda count: max(1, round(count * self.width))
    active = lambda x, name: jax.nn.relu(layers.BatchNorm(name=name)(x, train=train))
    x = image
    for i in range(2):
      x = layers.Conv(
        features(24),
        (3,) * rank,
        use_bias=True,
        dtype=self.dtype,
        init_of=_HE,
        name=f'stem{i}',
      )(x)
      x = active(x, f'norm_stem{i}')
    kept = []
    for stage, (count, blocks) in enumerate(self.stages):
      x = pool.maximum(x, 2)
      for i in range(blocks):
        x = Block(features(count), self.dtype, name=f'down{stage}_{i}')(x, train=train)
      kept.append(x)
    for stage in reversed(range(1, len(kept) - 1)):
      x = layers.ConvTranspose(
        features(self.stages[stage + 1][0]),
        (2,) * rank,
        padding=0,
        output_padding=0,
        use_bias=True,
        dtype=self.dtype,
        name=f'rise{stage}',
      )(x)
      parts = [active(x, f'norm_rise{stage}'), kept[stage]]
      if stage == 1:
        parts.append(_positions(x))
      x = jnp.concatenate(parts, axis=-1)
      count = self.last if stage == 1 else self.stages[stage][0]
      for i in range(3):
        x = Block(features(count), self.dtype, name=f'up{stage}_{i}')(x, train=train)
    whole_channels = tuple(range(1, rank + 1))
    x = nn.Dropout(self.dropout, whole_channels, deterministic=not train, name='drop')(x)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), head(x, features(64)))

  def _boxes(self, x, hidden):
    rank = x.ndim - 2
    point = lambda count, name, **more: layers.Conv(
      count, (1,) * rank, use_bias=True, dtype=self.dtype, name=name, **more
    )
    numbers = 2 + rank
    x = jax.nn.relu(point(hidden, 'hidden', init_of=_HE)(x))
    x = point(self.anchors * numbers, 'boxes', bias_init=blob_unet.box_bias(numbers))(x)
    return {'boxes': x.reshape(*x.shape[:-1], self.anchors, numbers)}

  def _classes(self, x, hidden):
    del hidden
    means = x.mean(tuple(range(1, x.ndim - 1)))
    return {'logits': layers.Dense(2, use_bias=True, dtype=self.dtype, name='logits')(means)}


def _positions(x):
  """Returns the position in the image, from -1/2 to 1/2, of every cell of x, [b, *grid, rank]."""
  axes = jnp.meshgrid(*(jnp.linspace(-0.5, 0.5, n) for n in x.shape[1:-1]), indexing='ij')
  place = jnp.stack(axes, axis=-1).astype(x.dtype)
  return jnp.broadcast_to(place[None], (len(x), *place.shape))

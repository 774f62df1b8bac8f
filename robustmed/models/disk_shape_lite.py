"""A small network with the interface of the disk-shape network, for laptops, notebooks and tests.

Not from a paper: three strided stages, a contour head and three up-sampling stages with skips. It
compiles in about a second where the full network takes ten.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from robustmed import errors
from robustmed.models import disk_shape, layers
from robustmed.ops import resize

LEAK = disk_shape.LEAK


class DiskShapeLite(nn.Module):
  """Maps image [b, side, side, 1] to outputs as of `disk_shape.DiskShapeNet`; side: 8n."""

  side: int = 64
  width: float = 1.0
  num_maps: int = 1
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    del train  # neither dropout nor batch statistics
    if self.side % 8 or image.shape[1:] != (self.side, self.side, 1):
      raise errors.UserError(
        f'DiskShapeLite(side={self.side}) reads images [b, {self.side}, {self.side}, 1], the side '
        f'being a multiple of 8, got {image.shape}'
      )
    skips, x = [], image
    for level, full in enumerate((16, 32, 64)):
      x = self._stage(x, full, f'down{level}', strides=2)
      skips.append(x)
    flat = x.reshape(x.shape[0], -1)
    points = layers.Dense(2 * disk_shape.NUM_POINTS, use_bias=True, dtype=self.dtype, name='head')(
      flat
    )
    outputs = {
      'contour': points.astype(jnp.float32).reshape(-1, disk_shape.NUM_POINTS, 2) + self.side / 2
    }
    for level, full in ((1, 32), (0, 16)):
      x = jnp.concatenate([resize.nearest(x, 2), skips[level]], axis=-1)
      x = self._stage(x, full, f'up{level}')
    maps = layers.Conv(self.num_maps, (3, 3), use_bias=True, dtype=self.dtype, name='maps')(
      resize.nearest(x, 2)
    ).astype(jnp.float32)
    outputs['segmentation'] = maps[..., :1]
    if self.num_maps == 2:
      outputs['reconstruction'] = jax.nn.sigmoid(maps[..., 1:])
    return outputs

  def _stage(self, x, full, name, *, strides=1):
    channels = max(4, 4 * round(full * self.width / 4))
    x = layers.Conv(channels, (3, 3), strides=strides, dtype=self.dtype, name=name)(x)
    return layers.Norm(1, leak=LEAK, name=f'{name}_norm')(x)

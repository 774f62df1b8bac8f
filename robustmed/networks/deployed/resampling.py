"""nnU-Net's resampling as one matrix per axis, so that it can be differentiated."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from robustmed.networks import nnunet_plans, nnunet_preprocess
from robustmed.ops import resize

Array = jax.Array


class Resampling(NamedTuple):
  """The linear map of `nnunet_preprocess.resample` for one pair of shapes."""

  matrices: tuple[np.ndarray | None, ...]  # per axis [target, size]; None leaves it
  clipped: tuple[int, ...]  # axes over whose extremes values are clipped; () not at all
  last: int | None  # the axis that is resampled by itself, after clipping

  def __call__(self, data: Array) -> Array:
    """Returns data [*spatial, c] on the other grid; each channel is clipped by its own values."""
    low = jnp.min(data, axis=self.clipped, keepdims=True) if self.clipped else None
    high = jnp.max(data, axis=self.clipped, keepdims=True) if self.clipped else None
    for axis, matrix in enumerate(self.matrices):
      if matrix is not None and axis != self.last:
        data = resize.along(data, axis, matrix)
    if self.clipped:
      data = jnp.clip(data, low, high)
    if self.last is not None and self.matrices[self.last] is not None:
      data = resize.along(data, self.last, self.matrices[self.last])
    return data


def of(
  size: Sequence[int],
  shape: Sequence[int],
  how: nnunet_plans.Resampling,
  *,
  spacings: tuple[Sequence[float], Sequence[float]],
) -> Resampling:
  """Returns the resampling from a grid of `size` to one of `shape`; spacings: (now, then).

  The matrix of an axis is what the functions of the preprocessing make of the unit vectors.
  """
  size, shape = tuple(size), tuple(int(n) for n in shape)
  if size == shape:
    return Resampling((None,) * len(size), (), None)
  axis = nnunet_preprocess.separate_axis(how.options, spacings)
  torch = how.name == 'resample_torch_fornnunet'
  make = _torch if torch else _zoomed
  matrices = [
    None if n == m else make(n, m, how.options, alone=side == axis)
    for side, (n, m) in enumerate(zip(size, shape, strict=True))
  ]
  if torch:
    return Resampling(tuple(matrices), (), None)
  return Resampling(tuple(matrices), tuple(k for k in range(3) if k != axis), axis)


def _torch(size, target, options, *, alone):
  nearest = alone and options.get('aniso_axis_mode', 'nearest-exact') != 'linear'
  return nnunet_preprocess.by_axis(np.eye(size), 0, target, nearest=nearest)


def _zoomed(size, target, options, *, alone):
  """The spline of `skimage.transform.resize`, or that of an axis alone, of the unit vectors."""
  units = np.eye(size)
  if not alone:
    zoom, order = (target / size, 1), int(options['order'])
    return scipy.ndimage.zoom(units, zoom, order=order, mode='nearest', grid_mode=True)
  place = size / target * (np.arange(target, dtype=np.float64) + 0.5) - 0.5
  at = np.meshgrid(place, np.arange(size, dtype=np.float64), indexing='ij')
  order = int(options.get('order_z', 0))
  return scipy.ndimage.map_coordinates(units, at, order=order, mode='nearest')

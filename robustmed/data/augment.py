"""Augmentation on the device: new samples are neither stored nor loaded from the host."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import types
from robustmed.data.spine import shapes
from robustmed.ops import polygon, spline, warp

polygon_mask = jax.jit(polygon.fill, static_argnums=1)


def virtual_disk(
  model: shapes.ShapeModel,
  *,
  side: int,
  landmark_stride: int = 1,
  grid_stride: int = 1,
) -> Callable[[jax.Array, types.Batch], dict]:
  """Returns (keys [b], batch) -> batch of virtual disks (Chen et al. 2021, section 3.1).

  Each image of the batch is the texture of a new shape, drawn from the model with the example's own
  key: every pixel of the new image is sampled (zero outside) where the thin-plate spline (kernel r)
  maps it that takes the new contour to the image's own, and 16 points of the border to themselves.
  The targets 'contour' [b, 176, 2] and 'mask' [b, side, side, 1] are those of the new shape; all
  other fields stay.

  `landmark_stride` keeps every n-th contour point for the spline; with `grid_stride` n the spline
  is evaluated at every n-th pixel and interpolated between. With both 1 it is the paper's warp.
  Contour, mask and warp have the same coordinates, so a shape equal to the image's own leaves the
  image as it is; the authors' code shifts it by half a pixel.
  """

  def apply(keys, batch):
    target = batch['target']
    contour = jax.vmap(shapes.sample, in_axes=(0, None))(keys, model)
    image = warp_to(
      batch['image'],
      target['contour'],
      contour,
      landmark_stride=landmark_stride,
      grid_stride=grid_stride,
    )
    mask = jax.vmap(lambda points: polygon.fill(points, side))(contour)[..., None]
    target = {**target, 'contour': contour, 'mask': mask.astype(image.dtype)}
    return {**batch, 'image': image, 'target': target}

  return apply


def warp_to(
  image: jax.Array,
  contour: jax.Array,
  new_contour: jax.Array,
  *,
  landmark_stride: int = 1,
  grid_stride: int = 1,
) -> jax.Array:
  """Returns image [b, side, side, c] warped so that `contour` [b, n, 2] lies on `new_contour`."""
  side = image.shape[1]
  border = jnp.asarray(_border(side))
  knots = np.arange(0, side - 1 + grid_stride, grid_stride, dtype=np.float32)
  points = jnp.asarray(np.stack(np.meshgrid(knots, knots), axis=-1))

  def positions(old, new):
    source = jnp.concatenate([new[::landmark_stride], border])
    target = jnp.concatenate([old[::landmark_stride], border])
    return spline.evaluate(spline.fit(source, target, kernel='r'), points, kernel='r')

  where = jax.vmap(positions)(contour, new_contour)
  if grid_stride > 1:
    between = jnp.asarray(_interpolation(side, knots))
    where = jnp.einsum('ri,bijc,sj->brsc', between, where, between, precision='highest')
  return warp.sample(image, where[..., ::-1], padding='zero')


def _border(side):
  """Returns the 16 fixed points [16, 2] on the border, corners included."""
  ticks = np.array([0, side // 4 - 1, side // 2 - 1, 3 * side // 4 - 1, side - 1], np.float32)
  x, y = np.meshgrid(ticks, ticks)
  points = np.stack([x, y], axis=-1)
  edge = (x == 0) | (x == side - 1) | (y == 0) | (y == side - 1)
  return points[edge]


def _interpolation(side, knots):
  """Returns the matrix [side, len(knots)] of linear interpolation between equidistant knots."""
  at = np.arange(side, dtype=np.float32)[:, None]
  return np.maximum(0, 1 - np.abs(at - knots) / (knots[1] - knots[0]))

"""Rasterisation of polygons: masks of the pixel centres inside."""

import jax
import jax.numpy as jnp


def fill(contour: jax.Array, side: int) -> jax.Array:
  """Returns the mask [side, side] (row, column) of the pixel centres inside a closed contour.

  contour: [n, 2] as (x, y); pixel (row, column) has its centre at x = column, y = row, as in
  `skimage.draw.polygon2mask`, which it equals except for centres exactly on the contour. Inside
  means an odd number of crossings, so that a contour that crosses itself is well defined. Not
  differentiable.
  """
  contour = jax.lax.stop_gradient(contour)
  x, y = contour[:, 0], contour[:, 1]
  next_x, next_y = jnp.roll(x, -1), jnp.roll(y, -1)
  row = jnp.arange(side, dtype=contour.dtype)[:, None]
  crosses = (y[None] <= row) != (next_y[None] <= row)
  rise = jnp.where(next_y == y, 1, next_y - y)
  slope = (next_x - x) / rise
  crossing = x[None] + (row - y[None]) * slope[None]
  # every crossing toggles the pixels from its column on; an extra column takes those off the image
  column = jnp.clip(jnp.ceil(crossing), 0, side).astype(jnp.int32)
  column = jnp.where(crosses, column, side)
  rows = jnp.broadcast_to(jnp.arange(side)[:, None], column.shape)
  toggles = jnp.zeros((side, side + 1), jnp.int32).at[rows, column].add(1)
  return jnp.cumsum(toggles[:, :side], axis=1) % 2 == 1

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
  crosses, crossing, _ = _crossings(jax.lax.stop_gradient(contour), side)
  # every crossing toggles the pixels from its column on; an extra column takes those off the image
  column = jnp.clip(jnp.ceil(crossing), 0, side).astype(jnp.int32)
  column = jnp.where(crosses, column, side)
  rows = jnp.broadcast_to(jnp.arange(side)[:, None], column.shape)
  toggles = jnp.zeros((side, side + 1), jnp.int32).at[rows, column].add(1)
  return jnp.cumsum(toggles[:, :side], axis=1) % 2 == 1


def coverage(contour: jax.Array, side: int) -> jax.Array:
  """Returns the share [side, side] of each pixel's width that is inside a closed contour.

  The width is that of the line through the pixel's centre. Differentiable: where the contour of
  `fill` crosses a row, the share grows linearly with its place. Where a contour crosses itself,
  inside is what its winding number says, at most 1.
  """
  crosses, crossing, down = _crossings(contour, side)
  edge = jnp.clip(crossing, -0.5, side - 0.5)
  column = jnp.floor(jax.lax.stop_gradient(edge) + 0.5).astype(jnp.int32)
  first = column + 0.5 - edge  # of the pixel in which the crossing lies; the next ones are whole
  sign = jnp.where(crosses, jnp.where(down, 1.0, -1.0), 0.0).astype(contour.dtype)
  rows = jnp.broadcast_to(jnp.arange(side)[:, None], column.shape)
  steps = jnp.zeros((side, side + 2), contour.dtype)
  steps = steps.at[rows, column].add(sign * first)
  steps = steps.at[rows, column + 1].add(sign * (1 - first))
  return jnp.clip(jnp.abs(jnp.cumsum(steps[:, :side], axis=1)), 0.0, 1.0)


def _crossings(contour, side):
  """Returns whether edge j crosses the line of row i, where, and if y rises, [side, n]."""
  x, y = contour[:, 0], contour[:, 1]
  next_x, next_y = jnp.roll(x, -1), jnp.roll(y, -1)
  row = jnp.arange(side, dtype=contour.dtype)[:, None]
  crosses = (y[None] <= row) != (next_y[None] <= row)
  rise = jnp.where(next_y == y, 1, next_y - y)
  slope = (next_x - x) / rise
  crossing = x[None] + (row - y[None]) * slope[None]
  return crosses, crossing, jnp.broadcast_to(next_y > y, crosses.shape)

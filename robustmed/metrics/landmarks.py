"""Landmarks: decoding by votes, distances in millimetres, detection rates. Points are (x, y)."""

import functools

import jax
import jax.numpy as jnp

SDR_MM = (2.0, 2.5, 3.0, 4.0)  # thresholds of the ISBI 2015 challenge
RADIUS = 10  # pixels, at 200 x 160


def radial_errors(predicted: jax.Array, target: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns distances in mm, [b, n], of points [b, n, 2]; scale [b, 2]: mm per pixel (x, y)."""
  return jnp.linalg.norm((predicted - target) * scale[:, None], axis=-1)


def mean_radial_error(predicted: jax.Array, target: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns the MRE of each image, [b] mm; the data set's is the mean over images."""
  return radial_errors(predicted, target, scale).mean(axis=-1)


def detection_rate(
  predicted: jax.Array, target: jax.Array, scale: jax.Array, *, threshold: float
) -> jax.Array:
  """Returns the SDR of each image, [b]: the share of its landmarks closer than `threshold` mm."""
  return (radial_errors(predicted, target, scale) < threshold).mean(axis=-1)


@functools.partial(jax.jit, static_argnames='radius')
def vote(
  heatmap: jax.Array, offset_x: jax.Array, offset_y: jax.Array, *, radius: int = RADIUS
) -> jax.Array:
  """Returns landmarks [b, n, 2] from maps [b, h, w, n] by voting (Yao et al. 2020, section 2.1).

  Each of the int(3.14 radius^2) pixels with the largest heat votes for the pixel that its offset,
  in units of the radius and truncated towards zero, points at; votes outside the image are dropped.
  The landmark is the pixel with the most votes. Ties of heat and of votes go to the first pixel in
  row-major order.
  """
  _, height, width, _ = heatmap.shape
  voters = min(int(3.14 * radius**2), height * width)

  def one(heat, across, down):
    _, places = jax.lax.top_k(heat, voters)
    shift = lambda offset: jnp.trunc(offset[places] * radius).astype(jnp.int32)
    x, y = places % width + shift(across), places // width + shift(down)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    lost = height * width
    votes = jnp.zeros(lost + 1, jnp.int32).at[jnp.where(inside, y * width + x, lost)].add(1)
    best = jnp.argmax(votes[:lost])
    return jnp.stack([best % width, best // width]).astype(jnp.float32)

  flat = lambda maps: jnp.moveaxis(maps, -1, 1).reshape(*maps.shape[::3], height * width)
  return jax.vmap(jax.vmap(one))(flat(heatmap), flat(offset_x), flat(offset_y))

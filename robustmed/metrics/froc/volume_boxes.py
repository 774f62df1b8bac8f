"""Boxes given by centre and size in any number of axes: overlaps, and NMS on the host."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def iou(centre: jax.Array, size: jax.Array, other: jax.Array, other_size: jax.Array) -> jax.Array:
  """Returns the IoU of boxes [..., rank] that broadcast, [...]; 0 where neither has a volume."""
  low = jnp.maximum(centre - size / 2, other - other_size / 2)
  high = jnp.minimum(centre + size / 2, other + other_size / 2)
  common = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
  full = lambda size: jnp.prod(jnp.broadcast_to(size, low.shape), axis=-1)
  union = full(size) + full(other_size) - common
  return jnp.where(union > 0, common / jnp.where(union > 0, union, 1.0), 0.0)


def nms(
  score: np.ndarray, near: Callable[[int], np.ndarray], *, limit: int | None = None
) -> np.ndarray:
  """Returns the indices kept by greedy NMS, the highest score first, at most `limit`.

  Each kept index removes those that near(index) -> [n] bool marks. Of equal scores the earlier one
  comes first.
  """
  order = np.argsort(-score, kind='stable')
  left, kept = np.ones(len(score), bool), []
  for index in order:
    if not left[index]:
      continue
    kept.append(index)
    if len(kept) == limit:
      break
    left &= ~near(index)
  return np.array(kept, int)


def by_distance(centre: np.ndarray, distance: float) -> Callable[[int], np.ndarray]:
  """Returns `near` of `nms`: which points [n, rank] are closer than `distance` to one of them."""
  return lambda index: np.sum((centre - centre[index]) ** 2, axis=-1) < distance**2


def by_overlap(
  centre: np.ndarray, size: np.ndarray, threshold: float
) -> Callable[[int], np.ndarray]:
  """Returns `near` of `nms`: which boxes [n, rank] have an IoU above the threshold with one."""
  low, high, volume = centre - size / 2, centre + size / 2, size.prod(axis=-1)

  def near(index):
    sides = np.minimum(high, high[index]) - np.maximum(low, low[index])
    common = np.maximum(sides, 0).prod(axis=-1)
    return common > threshold * (volume + volume[index] - common)

  return near

"""Boxes by centre and size in any number of axes: overlaps, and suppression on the host."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def iou(centre: jax.Array, size: jax.Array, other: jax.Array, other_size: jax.Array) -> jax.Array:
  """Intersection over union of boxes [..., rank] that broadcast, [...]; 0 where none has a size."""
  low = jnp.maximum(centre - size / 2, other - other_size / 2)
  high = jnp.minimum(centre + size / 2, other + other_size / 2)
  common = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
  full = lambda size: jnp.prod(jnp.broadcast_to(size, low.shape), axis=-1)
  union = full(size) + full(other_size) - common
  return jnp.where(union > 0, common / jnp.where(union > 0, union, 1.0), 0.0)


def nms(
  score: np.ndarray, near: Callable[[int], np.ndarray], *, limit: int | None = None
) -> np.ndarray:
  """Indices that stay, the highest score first (of equal ones the earlier), at most `limit`.

  The best one left is taken and those that near(index) -> [n] bool marks leave, and so on.
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
  """For `nms`: points [n, rank] closer than `distance` are the same."""
  return lambda index: np.sum((centre - centre[index]) ** 2, axis=-1) < distance**2


def by_overlap(
  centre: np.ndarray, size: np.ndarray, threshold: float
) -> Callable[[int], np.ndarray]:
  """For `nms`: boxes [n, rank] with an IoU above the threshold are the same."""
  low, high, volume = centre - size / 2, centre + size / 2, size.prod(axis=-1)

  def near(index):
    sides = np.minimum(high, high[index]) - np.maximum(low, low[index])
    common = np.maximum(sides, 0).prod(axis=-1)
    return common > threshold * (volume + volume[index] - common)

  return near

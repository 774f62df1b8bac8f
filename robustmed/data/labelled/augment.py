"""Augmentation on the device for images and volumes of any rank: mirrors, contrast, noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustmed import types

Array = jax.Array
GAIN, SHIFT, NOISE = 0.2, 0.1, 0.05  # the largest changes, in deviations of the example


def make(*, mirror: float = 0.5) -> Callable[[Array, types.Batch], dict]:
  """Returns (keys [b], batch) -> batch with each axis mirrored with probability `mirror`.

  Then contrast is multiplied by 1 +- GAIN about the mean, SHIFT of a deviation is added or taken
  away, and noise of up to NOISE deviations is added. Labels become >= 0. Every example depends on
  its own key alone.
  """

  def one(key, image, on_grid):
    keys = jax.random.split(key, 3)
    rank = image.ndim - 1
    flips = jax.random.uniform(keys[0], (rank,)) < mirror
    flipped = lambda array: _flipped(array, flips, rank)
    image, on_grid = flipped(image), jax.tree.map(flipped, on_grid)
    gain, shift, size = jax.random.uniform(keys[1], (3,), minval=-1.0)
    mean, std = jnp.mean(image), jnp.std(image)
    noise = jnp.abs(size) * NOISE * std * jax.random.normal(keys[2], image.shape)
    return (image - mean) * (1 + GAIN * gain) + mean + SHIFT * shift * std + noise, on_grid

  def apply(keys, batch):
    target = batch['target']
    names = [name for name in ('labels', 'counted') if name in target]
    on_grid = {name: target[name] for name in names}
    image, on_grid = jax.vmap(one)(keys, batch['image'], on_grid)
    if 'labels' in on_grid:
      on_grid['labels'] = jnp.maximum(on_grid['labels'], 0)
    return {**batch, 'image': image, 'target': {**target, **on_grid}}

  return apply


def _flipped(array, flips, rank):
  for axis in range(rank):
    array = jnp.where(flips[axis], jnp.flip(array, axis), array)
  return array

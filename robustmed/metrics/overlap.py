"""Overlap of hard masks, per example."""

import jax
import jax.numpy as jnp


def dice(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Returns the Dice of two boolean masks [b, ...] -> [b].

  It is 1 for two empty masks and 0 for one empty mask.
  """
  axes = tuple(range(1, prediction.ndim))
  prediction, target = prediction.astype(bool), target.astype(bool)
  both = jnp.sum(prediction & target, axis=axes)
  size = jnp.sum(prediction, axis=axes) + jnp.sum(target, axis=axes)
  return jnp.where(size == 0, 1.0, 2.0 * both / jnp.maximum(size, 1))

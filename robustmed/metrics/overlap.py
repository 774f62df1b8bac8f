"""Overlap of hard masks, per example."""

import jax
import jax.numpy as jnp


def dice(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Dice of two boolean masks [b, ...] -> [b].

  Two empty masks agree, so they score 1; one empty mask against a filled one scores 0.
  """
  axes = tuple(range(1, prediction.ndim))
  prediction, target = prediction.astype(bool), target.astype(bool)
  both = jnp.sum(prediction & target, axis=axes)
  size = jnp.sum(prediction, axis=axes) + jnp.sum(target, axis=axes)
  return jnp.where(size == 0, 1.0, 2.0 * both / jnp.maximum(size, 1))

"""Distances between ordered contours, per example."""

import jax
import jax.numpy as jnp


def point_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Returns the mean distance of corresponding points, [b, n, 2] -> [b], in their unit."""
  return jnp.mean(jnp.sqrt(jnp.sum(jnp.square(prediction - target), axis=-1)), axis=-1)

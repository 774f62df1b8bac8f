"""Regularity of displacement fields."""

import jax.numpy as jnp


def jacobian(displacement):
  """Returns the Jacobian determinant of p -> p + D(p), [b, h, w, 2] -> [b, h, w]; 1 for D = 0.

  Central differences, one-sided at the borders. The map folds where it is 0 or less.
  """
  along = [jnp.gradient(displacement, axis=axis) for axis in (1, 2)]
  a, b = 1 + along[0][..., 0], along[1][..., 0]
  c, d = along[0][..., 1], 1 + along[1][..., 1]
  return a * d - b * c


def fold_share(displacement):
  """Returns the share of the pixels at which the map folds, [b]."""
  return jnp.mean((jacobian(displacement) <= 0).astype(jnp.float32), axis=(1, 2))

"""Displacement fields judged by themselves."""

import jax.numpy as jnp


def jacobian(displacement):
  """Determinant of the Jacobian of p -> p + D(p), [b, h, w, 2] -> [b, h, w]; 1 where nothing moves.

  Central differences, one-sided at the borders. At 0 and below the map folds over.
  """
  along = [jnp.gradient(displacement, axis=axis) for axis in (1, 2)]
  a, b = 1 + along[0][..., 0], along[1][..., 0]
  c, d = along[0][..., 1], 1 + along[1][..., 1]
  return a * d - b * c


def fold_share(displacement):
  """Share of the pixels at which the map folds over, [b]."""
  return jnp.mean((jacobian(displacement) <= 0).astype(jnp.float32), axis=(1, 2))

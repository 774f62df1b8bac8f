"""Statistical shape model: principal components of contours (Chen et al. 2021, section 3.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors

LIMIT = 2.0  # the paper draws coefficients uniformly from +-LIMIT standard deviations


class ShapeModel(NamedTuple):
  """A contour is mean + sum_k c_k scale_k components_k; p = 2 x number of points."""

  mean: jax.Array  # [p]
  components: jax.Array  # [k, p], orthonormal, by falling variance
  scale: jax.Array  # [k], standard deviations sqrt(lambda_k), n - 1 normalised
  explained: jax.Array  # [k], share of the total variance


def fit(contours: np.ndarray, num_components: int) -> ShapeModel:
  """Returns the model of contours [n, points, 2], fitted in float64 without aligning them.

  The largest entry of every component is positive, so that a fit does not depend on the linear
  algebra library.
  """
  flat = np.asarray(contours, np.float64).reshape(len(contours), -1)
  limit = min(len(flat) - 1, flat.shape[1])
  if not 1 <= num_components <= limit:
    raise errors.UserError(
      f'a shape model of {len(flat)} contours has 1 to {limit} components, not {num_components}'
    )
  mean = flat.mean(axis=0)
  _, singular, components = np.linalg.svd(flat - mean, full_matrices=False)
  variance = singular**2 / (len(flat) - 1)
  if not variance.sum() > 0:
    raise errors.UserError('a shape model needs contours that differ')
  components = components[:num_components]
  largest = np.abs(components).argmax(axis=1)
  components = components * np.sign(components[np.arange(num_components), largest])[:, None]
  kept = variance[:num_components]
  arrays = (mean, components, np.sqrt(kept), kept / variance.sum())
  return ShapeModel(*(jnp.asarray(array, jnp.float32) for array in arrays))


def sample(key: jax.Array, model: ShapeModel) -> jax.Array:
  """Returns one contour [points, 2] with independent coefficients from U(-LIMIT, LIMIT)."""
  coefficients = jax.random.uniform(key, model.scale.shape, minval=-LIMIT, maxval=LIMIT)
  return compose(coefficients, model)


def compose(coefficients: jax.Array, model: ShapeModel) -> jax.Array:
  """Returns the contour [points, 2] of coefficients [k], in standard deviations."""
  offset = jnp.sum((coefficients * model.scale)[:, None] * model.components, axis=0)
  return (model.mean + offset).reshape(-1, 2)

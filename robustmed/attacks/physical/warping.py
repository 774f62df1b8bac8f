"""Smooth deformations in millimetres, and labels that move along."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks.physical.transform import Transform
from robustmed.ops import warp
from robustmed.types import Array

_INJECTIVE = {2: 0.48, 3: 0.40}  # Choi and Lee 2000: largest displacement in control spacings


def deformation(
  image_shape: Sequence[int], *, spacing: Sequence[float] = (), grid: int = 8
) -> Transform:
  """Returns a warp by a cubic B-spline, whose control points are `grid` pixels apart.

  Parameters are displacements in millimetres along each axis; spacing () is one millimetre a pixel.
  No displacement along an axis exceeds eps. Below 0.48 (2D) or 0.40 (3D) of the distance of control
  points the map is one to one (Choi and Lee 2000), so that nothing folds: see `largest`.
  """
  spatial = tuple(image_shape[:-1])
  spacing = tuple(spacing) or (1.0,) * len(spatial)
  if len(spacing) != len(spatial):
    raise errors.UserError(f'the spacing {spacing} does not fit images of {spatial}')
  weights = [_splines(size, grid) for size in spatial]
  counts = tuple(len(one) for one in weights)

  def displacement(z):
    field = z
    for (
      one
    ) in weights:  # [b, n1, n2, .., axes] -> [b, n2, .., axes, s1] -> ... [b, axes, s1, s2 ..]
      field = jnp.tensordot(field, jnp.asarray(one, z.dtype), ((1,), (0,)))
    pixels = jnp.asarray(spacing, z.dtype).reshape((1,) * (field.ndim - 1) + (-1,))
    return jnp.moveaxis(field, 1, -1) / pixels

  def apply(z, image):
    return warp.displace(image, displacement(z), padding='edge')

  return Transform((*counts, len(spatial)), apply, 'mm along each axis', displacement)


def largest(image_shape: Sequence[int], *, spacing: Sequence[float] = (), grid: int = 8) -> float:
  """Returns the eps of `deformation` in millimetres below which no image folds."""
  rank = len(image_shape) - 1
  return _INJECTIVE[rank] * grid * min(tuple(spacing) or (1.0,))


def jacobian(transform: Transform, parameters: Array) -> Array:
  """Returns the determinants [b, *spatial] of p -> p + displacement(p), by central differences."""
  field = transform.displacement(parameters)
  rank = field.shape[-1]
  identity = jnp.eye(rank, dtype=field.dtype).reshape((1,) * (field.ndim - 1) + (rank, rank))
  slopes = [jnp.gradient(field, axis=axis + 1) for axis in range(rank)]
  return jnp.linalg.det(jnp.stack(slopes, axis=-1) + identity)


def follow(transform: Transform, parameters: Array, labels: Array) -> Array:
  """Returns labels [b, *spatial] moved along with the image; unmoved where nothing moves."""
  if transform.displacement is None:
    return labels
  return warp.nearest(labels, transform.displacement(parameters))


def _splines(size: int, grid: int) -> np.ndarray:
  """Returns the weights [points, size] of cubic B-splines whose centres are `grid` pixels apart.

  They are not negative and sum to 1 at every pixel.
  """
  if grid < 2:
    raise errors.UserError(f'control points must be at least 2 pixels apart, not {grid}')
  count = math.ceil((size - 1) / grid) + 3
  distance = np.abs(np.arange(size)[None] / grid - (np.arange(count)[:, None] - 1))
  near = (4 - 6 * distance**2 + 3 * distance**3) / 6
  far = np.maximum(2 - distance, 0) ** 3 / 6
  return np.where(distance < 1, near, far)

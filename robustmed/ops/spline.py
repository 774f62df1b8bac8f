"""Thin-plate splines: a smooth map through control points, fitted and evaluated on the device.

Bookstein 1989 (the system [[K, P], [P^T, 0]]), with kernel r as the disk-shape authors have it or
r^2 log r. Coordinates are moved to [-1, 1] before the solve, which keeps float32 stable; both
kernels give the same interpolant at any scale, since the affine part absorbs what scaling adds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustmed import errors

KERNELS = {
  # Functions of the squared distance: the root at zero distance must not give a NaN gradient.
  'r': lambda squared: jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0),
  'r2logr': lambda squared: 0.5 * squared * jnp.log(jnp.where(squared > 0, squared, 1)),
}


class Spline(NamedTuple):
  """A fitted map from points [..., d] to values [..., v]; a pytree of arrays, so vmap applies."""

  control: jax.Array  # scaled control points, [n, d]
  weights: jax.Array  # [n, v]
  affine: jax.Array  # [1 + d, v]
  centre: jax.Array  # [d]
  scale: jax.Array  # []


def _kernel_matrix(a, b, kernel):
  squared = jnp.square(a[:, None] - b[None]).sum(-1)
  return errors.lookup(KERNELS, kernel, kind='spline kernel')(squared)


def _affine_basis(points):
  return jnp.concatenate([jnp.ones_like(points[:, :1]), points], axis=-1)


def fit(points, values, *, kernel='r', smoothing=0.0):
  """Returns the spline through `values` [n, v] at `points` [n, d]; use vmap for a batch.

  The points must be distinct and not all on one line. In float32 a smooth map of 192 points over
  128 pixels is exact to 1e-4 pixels; close points with very different values cost digits.
  `smoothing` adds to the diagonal of K, in units of the scaled coordinates.
  """
  n, rank = points.shape
  low, high = points.min(0), points.max(0)
  centre, scale = (low + high) / 2, (high - low).max() / 2
  scaled = (points - centre[None]) / scale
  k = _kernel_matrix(scaled, scaled, kernel)
  # r is conditionally negative, r^2 log r conditionally positive definite: smooth accordingly.
  sign = -1 if kernel == 'r' else 1
  k = k + sign * smoothing * jnp.eye(n, dtype=k.dtype)
  p = _affine_basis(scaled)
  corner = jnp.zeros((rank + 1, rank + 1), k.dtype)
  system = jnp.block([[k, p], [p.T, corner]])
  right = jnp.concatenate([values, jnp.zeros((rank + 1, values.shape[1]), values.dtype)])
  factors = jax.scipy.linalg.lu_factor(system)
  solution = jax.scipy.linalg.lu_solve(factors, right)
  # One step of iterative refinement removes most of the float32 error of the factorisation.
  residual = right - jnp.matmul(system, solution, precision='highest')
  solution = solution + jax.scipy.linalg.lu_solve(factors, residual)
  return Spline(scaled, solution[:n], solution[n:], centre, scale)


def evaluate(spline, points, *, kernel='r'):
  """Returns the values [..., v] of the map at points [..., d]."""
  flat = points.reshape(-1, points.shape[-1])
  scaled = (flat - spline.centre[None]) / spline.scale
  values = jnp.matmul(
    _kernel_matrix(scaled, spline.control, kernel), spline.weights, precision='highest'
  )
  values = values + jnp.matmul(_affine_basis(scaled), spline.affine, precision='highest')
  return values.reshape(*points.shape[:-1], -1)

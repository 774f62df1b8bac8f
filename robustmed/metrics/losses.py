"""Differentiable per-example terms of losses, [b, ...] -> [b]."""

import jax
import jax.numpy as jnp

Array = jax.Array


def _axes(x: Array) -> tuple[int, ...]:
  return tuple(range(1, x.ndim))


def absolute_error(output: Array, target: Array) -> Array:
  """Returns mean |output - target| over everything but the batch axis (spine eqs. 1 and 12)."""
  return jnp.mean(jnp.abs(output - target), axis=_axes(output))


def squared_error(output: Array, target: Array) -> Array:
  """Returns the mean squared difference over everything but the batch axis."""
  return jnp.mean(jnp.square(output - target), axis=_axes(output))


def binary_cross_entropy(logits: Array, target: Array) -> Array:
  """Returns the mean binary cross-entropy of logits and targets in [0, 1], without overflow."""
  # max(z, 0) - z t + log(1 + exp(-|z|))
  terms = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
  return jnp.mean(terms, axis=_axes(terms))


def soft_dice(probability: Array, target: Array, *, smooth: float = 0.0) -> Array:
  """Returns 2 sum(p t) / (sum p + sum t) over all axes but the batch, in [0, 1] (spine eq. 3).

  `smooth` is added to numerator and denominator. It is 1 if target and prediction are both empty.
  """
  both = jnp.sum(probability * target, axis=_axes(target))
  size = jnp.sum(probability, axis=_axes(target)) + jnp.sum(target, axis=_axes(target))
  empty = size + smooth == 0
  return jnp.where(empty, 1.0, (2 * both + smooth) / jnp.where(empty, 1.0, size + smooth))


def smooth_absolute(error: Array) -> Array:
  """Returns 0.5 e^2 up to |e| = 1, |e| - 0.5 beyond (smooth L1), elementwise."""
  size = jnp.abs(error)
  return jnp.where(size < 1, 0.5 * error**2, size - 0.5)

"""Reductions of a monitor's values at all scored points to one value per example."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustmed.types import Array


class Fold(NamedTuple):
  """A reduction of one leaf over the points of a run, and over runs.

  init: (leaf's shape and dtype, num_points) -> memory; add: (memory, leaf, index) -> memory; merge:
  (memory, memory of a further run, better [b]) -> memory.
  """

  init: Callable[..., Array]
  add: Callable[..., Array]
  merge: Callable[..., Array]


def where_per_example(better, new, old, *, axis=0):
  """Returns `new` where `better` [b], else `old`; `axis` is their batch axis."""
  shape = [1] * old.ndim
  shape[axis] = -1
  return jnp.where(better.reshape(shape), new, old)


def above(rank, best_rank, *, value=None, best_value):
  """Returns whether a point is to be preferred to the best one so far, [b].

  By the larger rank. Of equal ranks, or of two that are NaN, by the larger value, or the new point
  if value is None. NaN is below every number.
  """
  known = lambda numbers: jnp.where(jnp.isnan(numbers), -jnp.inf, numbers)
  rank, best_rank = known(rank), known(best_rank)
  tied = True if value is None else known(value) > known(best_value)
  return (rank > best_rank) | ((rank == best_rank) & tied)


def _lowest(leaf):
  if leaf.dtype == jnp.bool_:
    return jnp.zeros(leaf.shape, leaf.dtype)
  lowest = -jnp.inf if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.iinfo(leaf.dtype).min
  return jnp.full(leaf.shape, lowest, leaf.dtype)


# `last` and `trace` are those of the run that is kept, `max` and `any` cover all runs.
FOLDS = {
  'last': Fold(
    init=lambda leaf, points: jnp.zeros(leaf.shape, leaf.dtype),
    add=lambda memory, leaf, index: leaf,
    merge=lambda memory, other, better: where_per_example(better, other, memory),
  ),
  'max': Fold(
    init=lambda leaf, points: _lowest(leaf),
    add=lambda memory, leaf, index: jnp.maximum(memory, leaf),
    merge=lambda memory, other, better: jnp.maximum(memory, other),
  ),
  'any': Fold(
    init=lambda leaf, points: jnp.zeros(leaf.shape, bool),
    add=lambda memory, leaf, index: memory | (leaf != 0),
    merge=lambda memory, other, better: memory | other,
  ),
  'trace': Fold(
    init=lambda leaf, points: jnp.zeros((points, *leaf.shape), leaf.dtype),
    add=lambda memory, leaf, index: memory.at[index].set(leaf),
    merge=lambda memory, other, better: where_per_example(better, other, memory, axis=1),
  ),
}


def init(fold, seen, num_points):
  """Returns an empty memory for a monitor whose values have the shapes `seen`, a pytree."""
  return jax.tree.map(lambda leaf: FOLDS[fold].init(leaf, num_points), seen)


def add(fold, memory, seen, index):
  """Returns the memory with the monitor's values `seen` at point `index` added."""
  return jax.tree.map(lambda old, leaf: FOLDS[fold].add(old, leaf, index), memory, seen)


def merge(fold, memory, other, better):
  """Returns the memory of two runs; the second one, `other`, is kept where `better` [b]."""
  return jax.tree.map(lambda old, new: FOLDS[fold].merge(old, new, better), memory, other)

"""How what a monitor saw at every scored point becomes one answer per example."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustmed.types import Array


class Fold(NamedTuple):
  """init: (leaf's shape and dtype, num_points) -> memory; add: (memory, leaf, index) -> memory.

  merge: (memory, memory of a further run, better [b]) -> memory.
  """

  init: Callable[..., Array]
  add: Callable[..., Array]
  merge: Callable[..., Array]


def pick(better, new, old, *, axis=0):
  """`new` where `better` [b], else `old`; `axis` is the one that counts examples."""
  shape = [1] * old.ndim
  shape[axis] = -1
  return jnp.where(better.reshape(shape), new, old)


def _lowest(leaf):
  if leaf.dtype == jnp.bool_:
    return jnp.zeros(leaf.shape, leaf.dtype)
  lowest = -jnp.inf if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.iinfo(leaf.dtype).min
  return jnp.full(leaf.shape, lowest, leaf.dtype)


# `last` and `trace` tell of the run that was kept, `max` and `any` of every point of every run.
FOLDS = {
  'last': Fold(
    init=lambda leaf, points: jnp.zeros(leaf.shape, leaf.dtype),
    add=lambda memory, leaf, index: leaf,
    merge=lambda memory, other, better: pick(better, other, memory),
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
    merge=lambda memory, other, better: pick(better, other, memory, axis=1),
  ),
}


def init(fold, seen, num_points):
  """An empty memory for a monitor that returns the pytree of shapes `seen`."""
  return jax.tree.map(lambda leaf: FOLDS[fold].init(leaf, num_points), seen)


def add(fold, memory, seen, index):
  return jax.tree.map(lambda old, leaf: FOLDS[fold].add(old, leaf, index), memory, seen)


def merge(fold, memory, other, better):
  return jax.tree.map(lambda old, new: FOLDS[fold].merge(old, new, better), memory, other)

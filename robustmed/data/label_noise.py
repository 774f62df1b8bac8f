"""Label noise, made on the device: training labels eroded, dilated, or with two classes swapped.

The noise of an example depends on the seed and its index alone, so it is the same in every epoch,
like an error in stored labels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from robustmed import errors, types


def _neighbourhood(labels, radius, reduce, start):
  """Returns the largest or smallest label in the cube of `radius` about each voxel [*spatial]."""
  window = (2 * radius + 1,) * labels.ndim
  return lax.reduce_window(labels, start, reduce, window, (1,) * labels.ndim, 'SAME')


def erode(labels: jax.Array, radius: int) -> jax.Array:
  """Returns the labels with foreground within `radius` voxels of background set to background.

  The border of the array does not count as background.
  """
  nearest = _neighbourhood(labels, radius, lax.min, jnp.iinfo(labels.dtype).max)
  return jnp.where(nearest == 0, 0, labels)


def dilate(labels: jax.Array, radius: int) -> jax.Array:
  """Returns the labels with background within `radius` voxels of foreground set to the largest
  label there."""
  return jnp.where(labels == 0, _neighbourhood(labels, radius, lax.max, 0), labels)


def swap(labels: jax.Array, first: int, second: int) -> jax.Array:
  """Returns the labels with `first` and `second` exchanged."""
  return jnp.where(labels == first, second, jnp.where(labels == second, first, labels))


KINDS = ('erode', 'dilate', 'swap')


def wrong_labels(
  *, kind: str, share: float, seed: int = 0, radius: int = 1, classes: tuple[int, int] = (1, 2)
) -> Callable[[jax.Array, types.Batch], dict]:
  """Returns (keys, batch) -> batch in which a random `share` of examples has wrong labels.

  Target 'labels' [b, *spatial], whole numbers with background 0. `radius` is that of the erosion or
  dilation in voxels, `classes` the two labels that are swapped. The keys are not used.
  """
  errors.lookup(dict.fromkeys(KINDS), kind, kind='kind of wrong labels')
  if not 0 <= share <= 1 or radius < 1:
    raise errors.UserError(
      f'wrong labels need a share in [0, 1] and a radius of at least 1, not {share}, {radius}'
    )

  def one(labels, index):
    chosen = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), index)) < share
    if kind == 'swap':
      return jnp.where(chosen, swap(labels, *classes), labels)
    change = erode if kind == 'erode' else dilate
    return jnp.where(chosen, change(labels, radius), labels)

  def apply(keys, batch):
    del keys
    labels = jax.vmap(one)(batch['target']['labels'], batch['index'])
    return {**batch, 'target': {**batch['target'], 'labels': labels}}

  return apply

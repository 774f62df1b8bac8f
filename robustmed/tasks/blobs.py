"""Heat maps of nodules, the first training stage of the candidate networks.

Liu et al. 2020, 'No Surprises', section 3.1: Gaussian blobs 'with the same sizes' as the nodules.
The paper gives neither the standard deviation (here a quarter of the diameter) nor the loss.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import types
from robustmed.tasks import networks

Array = jax.Array
FOCUS = 1.0  # power of a cell's error in its weight
AWAY = 0.01  # cells with a lower target count as background


def make(
  module: nn.Module,
  *,
  image_shape: tuple[int, ...],
  spacing: float = 1.0,
  focus: float = FOCUS,
  units: str = 'fraction of the window of Hounsfield units',
) -> types.Task:
  """Returns the task of heat maps on images [b, *spatial, c] with cells of `spacing` mm.

  Targets: 'centre' [b, n, rank], cells in the order of the axes, and 'diameter' [b, n] in mm, 0 or
  less for padding. The module's outputs are {'heat': [b, *spatial, 1] logits}. Loss 'heat': see
  `heat_loss`. Objectives: 'heat', and 'found', minus the mean log probability at the nodules'
  centres. Metrics: 'error', mean squared; 'found', the share of nodules whose cell is above 1/2 (1
  without nodules); 'false_peak', the highest probability of the background.
  """
  network = networks.bind(module, image_shape=image_shape)
  target_of = lambda outputs, batch: target(
    batch['target']['centre'],
    batch['target']['diameter'] / spacing,
    outputs['heat'].shape[1:-1],
  )

  def losses(outputs, batch):
    return {'heat': heat_loss(outputs['heat'][..., 0], target_of(outputs, batch), focus=focus)}

  def missed(outputs, batch):
    log = jax.nn.log_sigmoid(outputs['heat'][..., 0])
    at, there = at_centres(log, batch['target'])
    return -jnp.sum(jnp.where(there, at, 0.0), axis=1) / jnp.maximum(there.sum(1), 1)

  def metrics(outputs, batch):
    heat, wanted = jax.nn.sigmoid(outputs['heat'][..., 0]), target_of(outputs, batch)
    axes = tuple(range(1, heat.ndim))
    at, there = at_centres(heat, batch['target'])
    hits = jnp.sum((at > 0.5) & there, axis=1)
    count = there.sum(1)
    return {
      'error': jnp.mean((heat - wanted) ** 2, axis=axes),
      'found': jnp.where(count > 0, hits / jnp.maximum(count, 1), 1.0),
      'false_peak': jnp.max(jnp.where(wanted < AWAY, heat, 0.0), axis=axes),
    }

  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=losses,
    objectives={
      'heat': lambda outputs, batch: losses(outputs, batch)['heat'],
      'found': missed,
    },
    metrics=metrics,
    image_shape=tuple(image_shape),
    units=units,
  )


def target(centre: Array, diameter: Array, grid: tuple[int, ...]) -> Array:
  """Returns max_i exp(-|r - c_i|^2 / 2 s_i^2), s = diameter / 4, [b, *grid]; lengths in cells."""
  rank = len(grid)
  deviation = jnp.maximum(diameter, 1e-3) / 4

  def one(i):
    parts = []
    for axis, size in enumerate(grid):
      apart = jnp.arange(size, dtype=jnp.float32)[None] - centre[:, i, axis, None]
      bell = jnp.exp(-0.5 * (apart / deviation[:, i, None]) ** 2)
      parts.append(bell.reshape(-1, *(size if a == axis else 1 for a in range(rank))))
    there = (diameter[:, i] > 0).reshape(-1, *(1,) * rank)
    return jnp.where(there, functools.reduce(jnp.multiply, parts), 0.0)

  empty = jnp.zeros((len(centre), *grid), jnp.float32)
  return functools.reduce(jnp.maximum, map(one, range(centre.shape[1])), empty)


def heat_loss(logits: Array, wanted: Array, *, focus: float = FOCUS) -> Array:
  """Returns the sum over cells of |p - t|^focus (p - t)^2, divided by 1 + the sum of t, [b].

  As in the focal loss (Lin et al. 2017) cells with a small error have a small weight, here a power
  of the error (Li et al. 2020). The loss scales with the size of the nodules, not of the image.
  """
  error = jax.nn.sigmoid(logits) - wanted
  weight = jax.lax.stop_gradient(jnp.abs(error)) ** focus
  axes = tuple(range(1, logits.ndim))
  return jnp.sum(weight * error**2, axis=axes) / (1 + jnp.sum(wanted, axis=axes))


def at_centres(heat: Array, goal) -> tuple[Array, Array]:
  """Returns heat [b, *grid] at the nodules' centres, [b, n], and a mask of those in the image.

  The mask is False for padding and for centres outside.
  """
  cells = jnp.round(goal['centre']).astype(jnp.int32)
  pick = jax.vmap(lambda heat, cells: heat.at[tuple(cells.T)].get(mode='clip'))
  size = jnp.asarray(heat.shape[1:]).reshape(1, 1, -1)
  inside = jnp.all((cells >= 0) & (cells < size), axis=-1)
  return pick(heat, cells), inside & (goal['diameter'] > 0)

"""Movements under which a nodule stays a nodule, on the device: mirrors, turns, shifts, sizes.

Liu et al. 2020 name none for their networks; shifts and sizes are those of DeepLung, nearly.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustmed import errors, types

Array = jax.Array


def patches(
  *, shift: float, scale: float, exact_from: int
) -> Callable[[Array, types.Batch], types.Batch]:
  """Returns (keys [b], batch) -> batch, images [b, s, s, s, c] and target 'soft' moved alike.

  shift: the largest one in cells along each axis; scale: sizes lie in [1 - scale, 1 + scale];
  linear interpolation, the outermost cells repeated. Examples with an index of `exact_from` or more
  are mirrored and turned alone, as interpolation would take away what an attack has put into them.
  """
  if shift < 0 or not 0 <= scale < 1:
    raise errors.UserError(
      f'augment needs shift >= 0 and scale in [0, 1), not {shift:g} and {scale:g}'
    )

  def one(key, image, soft, exact):
    place, symmetry = jax.random.split(key)
    both = jnp.concatenate([image, soft], axis=-1)
    if shift or scale:
      both = _placed(place, both, shift, scale, exact)
    both, _ = _turned(symmetry, both, jnp.zeros((1, 3)))
    return both[..., : image.shape[-1]], both[..., image.shape[-1] :]

  def apply(keys, batch):
    exact = batch['index'] >= exact_from
    image, soft = jax.vmap(one)(keys, batch['image'], batch['target']['soft'], exact)
    return {**batch, 'image': image, 'target': {**batch['target'], 'soft': soft}}

  return apply


def tiles(keys: Array, batch: types.Batch) -> types.Batch:
  """Mirrors and turns images [b, s, s, s, c] with the targets 'centre' [b, n, 3], in cells."""
  image, centre = jax.vmap(_turned)(keys, batch['image'], batch['target']['centre'])
  return {**batch, 'image': image, 'target': {**batch['target'], 'centre': centre}}


def _placed(key, image, shift, scale, exact):
  move, size = jax.random.split(key)
  side = image.shape[0]
  middle, cells = (side - 1) / 2, jnp.arange(side, dtype=image.dtype)
  larger = jax.random.uniform(size, (), image.dtype, 1 - scale, 1 + scale)
  away = jax.random.uniform(move, (3,), image.dtype, -shift, shift)
  for axis in range(3):
    at = jnp.clip((cells - middle) / larger + middle + away[axis], 0, side - 1)
    weights = jnp.maximum(0.0, 1 - jnp.abs(at[:, None] - cells[None]))
    weights = jnp.where(exact, jnp.eye(side, dtype=image.dtype), weights)
    image = jnp.moveaxis(jnp.tensordot(weights, image, axes=(1, axis)), 0, axis)
  return image


def _turned(key, image, points):
  """One of the 48 ways to lay a cube on itself; points [n, 3] in cells go with it."""
  mirror, order = jax.random.split(key)
  flags = jax.random.bernoulli(mirror, shape=(3,))
  for axis in range(3):
    image = jnp.where(flags[axis], jnp.flip(image, axis), image)
  points = jnp.where(flags[None], image.shape[0] - 1 - points, points)
  orders = list(itertools.permutations(range(3)))
  chosen = jax.random.randint(order, (), 0, len(orders))
  image = jax.lax.select_n(chosen, *(jnp.transpose(image, (*axes, 3)) for axes in orders))
  return image, jnp.take(points, jnp.asarray(orders)[chosen], axis=1)

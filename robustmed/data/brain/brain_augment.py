"""Rotates, flips and transposes brains on the device, as cubes or axial slices.

The augmentations of Liu et al. 2021: rotation in the axial plane, flips, transposes of the axes.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.ops import warp

Array = jax.Array


def make(
  *, rotation: float = 15.0, flips: str = 'all', transposes: bool = True
) -> Callable[[Array, types.Batch], dict]:
  """Returns (keys [b], batch) -> batch with images [b, *spatial, c] and 'labels' augmented alike.

  All sides must be equal. rotation: the largest angle in degrees, about the middle of the last two
  axes; intensities are interpolated, labels taken from the nearest pixel, 0 outside. flips: of
  'all' axes, of the 'last' one (left and right), or 'none', each with probability one half.
  transposes: a random order of the spatial axes. What is switched off is not computed.
  """
  errors.lookup(dict.fromkeys(('all', 'last', 'none')), flips, kind='field flips of augment')
  if not 0 <= rotation <= 180:
    raise errors.UserError(f'augment.rotation must lie in [0, 180] degrees, not {rotation}')

  def one(key, image, labels):
    turn, mirror, order = jax.random.split(key, 3)
    both = jnp.concatenate([image, labels[..., None].astype(image.dtype)], axis=-1)
    rank = both.ndim - 1
    if rotation:
      angle = jnp.deg2rad(jax.random.uniform(turn, (), both.dtype, -rotation, rotation))
      both = rotate(both, angle)
    if flips != 'none':
      axes = range(rank) if flips == 'all' else (rank - 1,)
      for axis, flag in zip(axes, jax.random.bernoulli(mirror, shape=(rank,))):
        both = jnp.where(flag, jnp.flip(both, axis), both)
    if transposes:
      orders = list(itertools.permutations(range(rank)))
      chosen = jax.random.randint(order, (), 0, len(orders))
      turned = [jnp.transpose(both, (*axes, rank)) for axes in orders]
      both = jax.lax.select_n(chosen, *turned)
    return both[..., :-1], jnp.round(both[..., -1]).astype(labels.dtype)

  def apply(keys, batch):
    image, labels = jax.vmap(one)(keys, batch['image'], batch['target']['labels'])
    return {**batch, 'image': image, 'target': {**batch['target'], 'labels': labels}}

  return apply


def rotate(both: Array, angle: Array) -> Array:
  """Returns [*spatial, c + 1] rotated by `angle` in the plane of its last two spatial axes.

  The last channel holds labels.
  """
  height, width = both.shape[-3:-1]
  middle = jnp.asarray([[[(height - 1) / 2, (width - 1) / 2]]], both.dtype)
  at = warp.identity((height, width), both.dtype) - middle
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  back = jnp.stack(
    [cosine * at[..., 0] + sine * at[..., 1], cosine * at[..., 1] - sine * at[..., 0]], axis=-1
  )
  where = (back + middle)[None]
  # All slices are rotated alike, so they are sampled together, as channels.
  flat = jnp.moveaxis(both.reshape(-1, height, width, both.shape[-1]), 0, -2)
  read = lambda part, where: warp.sample(part.reshape(1, height, width, -1), where)[0].reshape(
    part.shape
  )
  smooth, nearest = read(flat[..., :-1], where), read(flat[..., -1:], jnp.round(where))
  turned = jnp.concatenate([smooth, nearest], axis=-1)
  return jnp.moveaxis(turned, -2, 0).reshape(both.shape)

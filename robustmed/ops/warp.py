"""Multilinear sampling of images at real-valued coordinates, over any number of spatial axes."""

import functools
import itertools

import jax
import jax.numpy as jnp

from robustmed import errors

EDGES = {'zero': False, 'edge': True}


def _sample_one(image, coordinates, clamp):
  """image [*spatial, c], coordinates [..., rank] -> [..., c]."""
  spatial = image.shape[:-1]
  top = jnp.asarray([n - 1 for n in spatial], coordinates.dtype)
  top = top.reshape((1,) * (coordinates.ndim - 1) + (-1,))
  if clamp:
    coordinates = jnp.clip(coordinates, 0, top)
  low = jnp.floor(coordinates)
  fraction = (coordinates - low).astype(image.dtype)
  # Far coordinates would overflow int32; from two cells outside on, all that is read is padding.
  low = jnp.clip(low, -2, top + 2).astype(jnp.int32)
  flat = image.reshape(-1, image.shape[-1])
  total = None
  for corner in itertools.product((0, 1), repeat=len(spatial)):
    index, weight, inside = 0, 1, True
    for axis, (n, step) in enumerate(zip(spatial, corner, strict=True)):
      at = low[..., axis] + step
      part = fraction[..., axis]
      weight = weight * (part if step else 1 - part)
      inside = inside & (at >= 0) & (at < n)
      index = index * n + jnp.clip(at, 0, n - 1)
    term = jnp.where(inside, weight, 0)[..., None] * jnp.take(flat, index, axis=0)
    total = term if total is None else total + term
  return total


def sample(image, coordinates, *, padding='zero'):
  """Samples image [b, *spatial, c] at coordinates [b, ..., rank] in pixels -> [b, ..., c].

  Coordinate 0 is the centre of the first cell; the last axis lists spatial axes in array order.
  Outside the grid the value is 0 for 'zero' (blended over one cell, as in scipy's grid-constant
  mode) or that of the 'edge'. Differentiable in both arguments.
  """
  rank = image.ndim - 2
  clamp = errors.lookup(EDGES, padding, kind='warp padding')
  if coordinates.shape[-1] != rank or coordinates.shape[0] != image.shape[0]:
    raise errors.UserError(
      f'coordinates {coordinates.shape} do not fit an image {image.shape}: need [b, ..., {rank}]'
    )
  return jax.vmap(functools.partial(_sample_one, clamp=clamp))(image, coordinates)


def identity(spatial, dtype=jnp.float32):
  """Returns the coordinates of every cell of a grid, [*spatial, rank]."""
  axes = [jnp.arange(n, dtype=dtype) for n in spatial]
  return jnp.stack(jnp.meshgrid(*axes, indexing='ij'), axis=-1)


def nearest(labels, displacement):
  """Warps labels [b, *spatial] backward: the label at p is that nearest to p + displacement[p].

  Outside the grid the value is that of the edge. Not differentiable.
  """
  spatial = labels.shape[1:]
  where = jnp.round(identity(spatial, displacement.dtype)[None] + displacement)
  top = jnp.asarray([n - 1 for n in spatial], displacement.dtype)
  top = top.reshape((1,) * (displacement.ndim - 1) + (-1,))
  where = jnp.clip(where, 0, top).astype(jnp.int32)

  def one(values, at):
    return values[tuple(at[..., axis] for axis in range(len(spatial)))]

  return jax.vmap(one)(labels, where)


def displace(image, displacement, *, padding='zero'):
  """Warps an image backward: result at p is its value at p + displacement[p], in pixels.

  displacement: [b, *spatial, rank].
  """
  grid = identity(image.shape[1:-1], displacement.dtype)
  return sample(image, grid[None] + displacement, padding=padding)

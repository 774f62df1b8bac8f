"""Attacks in other units than those of the images, such as shares of each image's range."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from robustmed import types


class Space(NamedTuple):
  """The units of an attack where they are not those of the images.

  decode(encode(batch), batch) is batch['image']; `decode` is differentiable. `finish` makes of the
  attacked image what is scored, such as one of whole numbers.
  """

  encode: Callable[[types.Batch], jax.Array]  # batch -> x
  decode: Callable[[jax.Array, types.Batch], jax.Array]  # (x, batch) -> images
  finish: Callable[[jax.Array, types.Batch], jax.Array] = lambda image, batch: image


def run(
  attack: types.Attack, objective: types.Objective, batch: types.Batch, *, space, eps, key
) -> tuple[jax.Array, jax.Array]:
  """Returns attacked images and their distances, which are in the units of `space`, as eps is.

  Without a space both are in those of the image.
  """
  if space is None:
    result = attack(objective, batch['image'], eps=eps, key=key)
    return result.x, result.distance
  inside = lambda x: objective(space.decode(x, batch))
  result = attack(inside, space.encode(batch), eps=eps, key=key)
  return space.finish(space.decode(result.x, batch), batch), result.distance

"""Attacks in other units than those of the images, such as shares of each image's range."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from robustmed import types
from robustmed.attacks import objectives


class Space(NamedTuple):
  """The units of an attack where they are not those of the images.

  decode(encode(batch), batch) is batch['image']; `decode` is differentiable. `finish` makes of the
  attacked image what is scored, such as one of whole numbers. `unit` says how many units of the
  images one of x is, where decoding scales each element alone.
  """

  encode: Callable[[types.Batch], jax.Array]  # batch -> x
  decode: Callable[[jax.Array, types.Batch], jax.Array]  # (x, batch) -> images
  finish: Callable[[jax.Array, types.Batch], jax.Array] = lambda image, batch: image
  unit: Callable[[types.Batch], jax.Array] | None = None  # batch -> [b, *1 or spatial, c]


def run(
  attack: types.Attack,
  objective: types.Objective,
  batch: types.Batch,
  *,
  space: Space | None,
  eps: jax.Array,
  key: jax.Array,
  monitor: types.Monitor | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns attacked images and their distances, which are in the units of `space`, as eps is.

  Without a space both are in those of the image, as objective and monitor always are.
  """
  monitored = {} if monitor is None else {'monitor': monitor}
  if space is None:
    result = attack(objective, batch['image'], eps=eps, key=key, **monitored)
    return result.x, result.distance
  result = attacked(attack, objective, batch, space=space, eps=eps, key=key, monitor=monitor)
  return space.finish(result.x, batch), result.distance


def attacked(
  attack: types.Attack,
  objective: types.Objective,
  batch: types.Batch,
  *,
  space: Space,
  monitor: types.Monitor | None = None,
  **kwargs,
) -> types.AttackResult:
  """Returns the result of an attack on batch['image'] in the units of `space`; its x is an image.

  `objective` and `monitor` are of images.
  """
  decode = objectives.Shared(lambda x: space.decode(x, batch))
  if monitor is not None:
    kwargs['monitor'] = lambda x: monitor(decode(x))
  result = attack(objectives.through(objective, decode), space.encode(batch), **kwargs)
  return result._replace(x=space.decode(result.x, batch))

"""Changes that a scanner or a body makes: few parameters in a unit box, and a decoder to images.

Each entry of `TRANSFORMS` is searched by the same loop as pixels are: `space_of(transform)` is a
`Space` whose x are the parameters, 0 for the untouched image, so that eps is the largest parameter
in the unit that the transform names, and linf is the norm. All are differentiable and work on
images [b, *spatial, c] with any number of spatial axes.

intensity    bias field, gamma, offset, scale, blur
acquisition  motion and ghosts of k-space
warping      smooth deformations, and labels that move along
occlusion    a patch before the image
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks import objectives
from robustmed.attacks.physical.acquisition import ghosting, motion
from robustmed.attacks.physical.intensity import bias_field, blur, gamma, offset, scale
from robustmed.attacks.physical.occlusion import occlusion
from robustmed.attacks.physical.transform import Transform
from robustmed.attacks.physical.warping import deformation, follow, jacobian, largest
from robustmed.attacks.space import Space
from robustmed.types import Array, Attack, AttackResult, Batch, PyTree, Task

__all__ = [
  'TRANSFORMS',
  'Transform',
  'bias_field',
  'blur',
  'compose',
  'deformation',
  'follow',
  'gamma',
  'ghosting',
  'jacobian',
  'largest',
  'make',
  'motion',
  'occlusion',
  'offset',
  'scale',
  'search',
  'space_from',
  'space_of',
]


def compose(parts: Sequence[tuple[Transform, float]]) -> Transform:
  """Returns several transforms, one after the other, searched together.

  parts: (transform, its largest parameter). The joint parameters are shares of these sizes, so that
  eps = 1 allows each its size.
  """
  if not parts:
    raise errors.UserError('a composition needs at least one transform')
  sizes = [math.prod(one.shape) for one, _ in parts]
  ends = np.cumsum(sizes)[:-1].tolist()
  moving = [one for one, _ in parts if one.displacement is not None]
  if len(moving) > 1:
    raise errors.UserError('a composition has at most one transform that moves structures')

  def split(z):
    pieces = jnp.split(z, ends, axis=1)
    return [size * piece.reshape(len(z), *one.shape) for piece, (one, size) in zip(pieces, parts)]

  def apply(z, image):
    for (one, _), piece in zip(parts, split(z)):
      image = one.apply(piece, image)
    return image

  def displacement(z):
    return next(
      one.displacement(piece)
      for (one, _), piece in zip(parts, split(z))
      if one.displacement is not None
    )

  units = '; '.join(f'{size:g} {one.unit}' for one, size in parts)
  return Transform((sum(sizes),), apply, f'share of: {units}', displacement if moving else None)


def space_of(transform: Transform) -> Space:
  """Returns the space of an attack that searches the parameters of a transform."""
  zeros = lambda batch: jnp.zeros((len(batch['image']), *transform.shape), batch['image'].dtype)
  return Space(zeros, lambda z, batch: transform.apply(z, batch['image']))


def search(
  attack: Attack,
  predict: Callable[[Array], PyTree],
  objective: Callable[..., Array],
  batch: Batch,
  *,
  transform: Transform,
  eps: float,
  key: Array,
  follows: bool,
  badness: Callable[..., Array] | None = None,
) -> tuple[AttackResult, Batch]:
  """Returns the result of an attack on the parameters, and the batch with what it makes of it.

  The batch has the attacked image and, with `follows`, target['labels'] moved along, and with them
  target['counted'], the pixels that count, where there is one: then the network is to label the
  moved anatomy, else that of the untouched image. objective and badness, the monitor:
  (outputs, batch) -> [b].
  """

  if follows and 'labels' not in batch['target']:
    raise errors.UserError("follows=True moves target['labels'], which the batch lacks")

  def moved(parameters):
    seen = {**batch, 'image': transform.apply(parameters, batch['image'])}
    if follows:
      target = batch['target']
      moving = {name: target[name] for name in ('labels', 'counted') if name in target}
      moving = {name: follow(transform, parameters, value) for name, value in moving.items()}
      seen['target'] = {**target, **moving}
    return seen

  def of(value):
    def climbed(parameters, **told):
      seen = moved(parameters)
      return value(predict(seen['image']), seen, **told)

    if objectives.takes_progress(value):
      return lambda parameters, progress: climbed(parameters, progress=progress)
    return lambda parameters: climbed(parameters)

  zeros = jnp.zeros((len(batch['image']), *transform.shape), batch['image'].dtype)
  monitor = None if badness is None else of(badness)
  result = attack(of(objective), zeros, eps=eps, key=key, monitor=monitor)
  return result, moved(result.x)


TRANSFORMS = {
  'bias_field': bias_field,
  'gamma': gamma,
  'offset': offset,
  'scale': scale,
  'blur': blur,
  'motion': motion,
  'ghosting': ghosting,
  'deformation': deformation,
  'occlusion': occlusion,
}


def make(name: str, image_shape: Sequence[int], **options) -> Transform:
  """Returns the transform `name` for images of a shape; an unknown one is a `UserError`."""
  return errors.lookup(TRANSFORMS, name, kind='transform')(image_shape, **options)


def space_from(settings: Mapping[str, Any] | None, task: Task) -> Space | None:
  """Returns the space of a configuration's {'name': transform, its options}, or None for None."""
  if settings is None:
    return None
  options = dict(settings)
  name = options.pop('name', None)
  known = inspect.signature(errors.lookup(TRANSFORMS, name, kind='transform')).parameters
  for option in options:
    errors.lookup(known, option, kind=f'option of the transform {name}')
  return space_of(make(name, task.image_shape, **options))

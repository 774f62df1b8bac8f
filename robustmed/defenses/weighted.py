"""The one loss behind most defenses: a weighted sum of the task's loss on several images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustmed import errors, types

Array = jax.Array


class Copy(NamedTuple):
  """One image the network is trained on, and its share of the loss.

  make: (variables, context) -> (image, aux); the variables come with their gradient stopped. aux,
  {name: [b]}, is handed to the defense's `update` and its means are logged; an entry 'state' are
  batch statistics that making the image has changed, from which training goes on.
  """

  name: str
  weight: float
  make: Callable[[Any, types.LossContext], tuple[Array, dict[str, Array]]]


CLEAN = Copy('clean', 1.0, lambda variables, context: (context.batch['image'], {}))


def losses_of(task: types.Task, *, coupled: bool) -> Callable[..., dict[str, Array]]:
  """The losses that a network trains on: the task's own or its coupled ones."""
  if not coupled:
    return task.losses
  if task.coupled is None:
    raise errors.UserError('this task has no coupled losses; set coupled to False')
  return task.coupled


def phase(
  task: types.Task,
  copies: Sequence[Copy],
  *,
  name: str = 'main',
  coupled: bool = False,
  objective: str = '',
  **kwargs,
) -> types.Phase:
  """A phase whose loss is sum_c weight_c * (sum of the task's terms on copy c), per example.

  The targets are the batch's for every copy; terms that look at the image (reconstruction) see
  the copy. A network without batch statistics runs once on all copies stacked; with them once per
  copy, so that every forward pass has statistics of its own, the last copy's being kept. With
  `coupled` the terms are the task's coupled ones, each copy being a batch of its own; `objective`
  puts one of the task's objectives in their place.
  aux: {'loss/<copy>': [b], '<term>': [b]} (terms of the first copy) and what the copies gave.
  """
  copies, losses = tuple(copies), losses_of(task, coupled=coupled)
  if objective:
    value = errors.lookup(task.objectives, objective, kind='objective')
    losses = lambda outputs, batch: {objective: value(outputs, batch)}

  def loss(params, context):
    frozen = {'params': jax.lax.stop_gradient(params), **context.state}
    made = [jax.lax.stop_gradient(copy.make(frozen, context)) for copy in copies]
    images, state = [image for image, _ in made], context.state
    for _, more in made:
      state = more.pop('state', state)
    variables = {'params': params, **state}
    outputs, state = _forward(task, variables, images, context)
    values, aux = 0.0, {}
    for copy, image, output in zip(copies, images, outputs):
      terms = losses(output, {**context.batch, 'image': image})
      total = sum(terms.values())
      values = values + copy.weight * total
      aux[f'loss/{copy.name}'] = total
      for term, value in terms.items():
        aux.setdefault(term, value)
    given = {name: value for _, more in made for name, value in more.items()}
    return values, {'scalars': {**aux, **given}, 'state': state, **given}

  return types.Phase(name=name, loss=loss, **kwargs)


def phases(
  task: types.Task, copies: Sequence[Copy], *, in_turn: bool, coupled: bool = False
) -> tuple[types.Phase, ...]:
  """One phase on all copies, or `in_turn` one update per copy, the first copy's coming last.

  In turn every copy is made with the weights that the updates before it have left.
  """
  if not in_turn:
    return (phase(task, copies, coupled=coupled),)
  first, *others = copies
  return (
    *(phase(task, [copy], name=copy.name, coupled=coupled) for copy in others),
    phase(task, [first], coupled=coupled),
  )


def _forward(task, variables, images, context):
  if len(variables) == 1 and len(images) > 1:
    outputs, state = task.forward(variables, jnp.concatenate(images), context.key)
    parts = [
      jax.tree.map(lambda leaf: jnp.split(leaf, len(images))[i], outputs)  # noqa: B023
      for i in range(len(images))
    ]
    return parts, state
  outputs, state = [], {name: value for name, value in variables.items() if name != 'params'}
  for i, image in enumerate(images):
    key = jax.random.fold_in(context.key, i)
    output, state = task.forward({**variables, **state}, image, key)
    outputs.append(output)
  return outputs, state

"""The loss of most defenses: a weighted sum of the task's loss on several views of an image."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustmed import errors, types

Array = jax.Array


class View(NamedTuple):
  """A form of the batch's image (clean, attacked, noisy) and its weight in the loss.

  make: (variables, context) -> (image, aux), without gradients to the variables. aux, {name: [b]},
  is passed to the defense's `update` and its means are logged; its entry 'state', if there is one,
  holds batch statistics that replace those of the training.
  """

  name: str
  weight: float
  make: Callable[[Any, types.LossContext], tuple[Array, dict[str, Array]]]


CLEAN = View('clean', 1.0, lambda variables, context: (context.batch['image'], {}))


def training_losses(task: types.Task, *, coupled: bool) -> Callable[..., dict[str, Array]]:
  """Returns the losses that a network trains on: the task's own or its coupled ones."""
  if not coupled:
    return task.losses
  if task.coupled is None:
    raise errors.UserError('this task has no coupled losses; set coupled to False')
  return task.coupled


def phase(
  task: types.Task,
  views: Sequence[View],
  *,
  name: str = 'main',
  coupled: bool = False,
  objective: str = '',
  **kwargs,
) -> types.Phase:
  """Returns a phase with the loss sum_v weight_v * (sum of the task's terms on view v), [b].

  All views have the batch's targets; in terms of the image (reconstruction) it is the view. A
  network without batch statistics runs once on all views stacked; with them once per view, so that
  every forward pass has statistics of its own, of which the last view's are kept. With `coupled`
  the terms are the task's coupled ones, each view being a batch of its own; `objective` names an
  objective of the task to use in their place.
  aux: {'loss/<view>': [b], '<term>': [b]} (terms of the first view) and the aux of the views.
  """
  views, losses = tuple(views), training_losses(task, coupled=coupled)
  if objective:
    value = errors.lookup(task.objectives, objective, kind='objective')
    losses = lambda outputs, batch: {objective: value(outputs, batch)}

  def prepare(params, context):
    frozen = {'params': jax.lax.stop_gradient(params), **context.state}
    return [jax.lax.stop_gradient(view.make(frozen, context)) for view in views]

  def loss(params, context):
    made = context.made or prepare(params, context)
    images, state = [image for image, _ in made], context.state
    for _, more in made:
      state = more.pop('state', state)
    variables = {'params': params, **state}
    outputs, state = _forward(task, variables, images, context)
    values, aux = 0.0, {}
    for view, image, output in zip(views, images, outputs):
      terms = losses(output, {**context.batch, 'image': image})
      total = sum(terms.values())
      values = values + view.weight * total
      aux[f'loss/{view.name}'] = total
      for term, value in terms.items():
        aux.setdefault(term, value)
    given = {name: value for _, more in made for name, value in more.items()}
    return values, {'scalars': {**aux, **given}, 'state': state, **given}

  return types.Phase(name=name, loss=loss, prepare=prepare, **kwargs)


def phases(
  task: types.Task, views: Sequence[View], *, in_turn: bool, coupled: bool = False
) -> tuple[types.Phase, ...]:
  """Returns one phase on all views, or with `in_turn` one phase per view, the first view last.

  In turn every view is made with the weights of the update before it.
  """
  if not in_turn:
    return (phase(task, views, coupled=coupled),)
  first, *others = views
  return (
    *(phase(task, [view], name=view.name, coupled=coupled) for view in others),
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

"""Training on generated examples, the future work of Chen et al. 2019."""

from typing import Any

import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.defenses import weighted
from robustmed.generators import synthesis
from robustmed.ops import warp

PyTree = Any


def make(
  model: synthesis.Model,
  task: types.Task,
  *,
  variables: tuple[PyTree, ...],
  share: float = 0.5,
  follow: bool = True,
  coupled: bool = False,
) -> types.Defense:
  """A defense with loss (1 - share) * L(I_0) + share * L(I_DV), a random generator per example.

  With `follow` the labels of I_DV are warped with D (nearest neighbour); otherwise they stay as
  they are, which teaches the network to undo D. With `coupled` L couples the examples of a batch;
  I_0 and I_DV are separate batches. Memory: {'generators': variables}. `variables=()` stands for
  generators that are not trained yet: the cost is known, `init` raises.
  """
  if not 0 <= share <= 1:
    raise errors.UserError(f'hardening: share must lie in [0, 1], not {share:g}')
  losses = weighted.training_losses(task, coupled=coupled)

  def generated_batch(context):
    batch, generators = context.batch, context.memory['generators']
    image = batch['image']
    chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(generators)))(context.keys)
    field, attacked = None, None
    for place, one in enumerate(generators):
      fields, _ = model.draw(one, image, context.keys, train=False)
      found = fields.displacement, synthesis.compose(image, fields)
      own = (chosen == place).reshape(-1, 1, 1, 1)
      pick = lambda new, old, own=own: new if old is None else jnp.where(own, new, old)
      field, attacked = pick(found[0], field), pick(found[1], attacked)
    labels = batch['target']['labels']
    if follow:
      labels = warp.nearest(labels, field)
    target = {**batch['target'], 'labels': labels}
    return jax.lax.stop_gradient({**batch, 'image': attacked, 'target': target})

  def loss(params, context):
    generated = generated_batch(context)
    variables = {'params': params, **context.state}
    images = jnp.concatenate([context.batch['image'], generated['image']])
    outputs, state = task.forward(variables, images, context.key)
    halves = [jax.tree.map(lambda leaf: jnp.split(leaf, 2)[i], outputs) for i in range(2)]  # noqa: B023
    clean, attacked = (
      sum(losses(out, batch).values())
      for out, batch in zip(halves, (context.batch, generated), strict=True)
    )
    scalars = {'loss/clean': clean, 'loss/generated': attacked}
    return (1 - share) * clean + share * attacked, {'scalars': scalars, 'state': state}

  def init(num_examples):
    del num_examples
    if not variables:
      raise ValueError('hardening without generators')
    return {'generators': jax.tree.map(jnp.asarray, tuple(variables))}

  drawn = types.Cost(forwards=max(1, len(variables)), passes=0)
  return types.Defense(
    phases=(types.Phase('main', loss),),
    init=init,
    cost=types.Cost(passes=2, others=((model.generator, drawn),)),
    coupled=coupled,
  )

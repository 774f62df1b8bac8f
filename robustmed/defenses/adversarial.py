"""Adversarial training at a fixed eps, on any number of attacked objectives with weights."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.defenses import batch_statistics, weighted


def make(
  task: types.Task,
  *,
  attack: types.Attack,
  objectives: Mapping[str, float],
  eps: float,
  clean_weight: float = 0.5,
  ramp_levels: int = 0,
  coupled: bool = False,
  in_turn: bool = False,
  attack_bn: str = batch_statistics.RUNNING,
) -> types.Defense:
  """Returns training on clean_weight * L(x) + sum_o weight_o * L(x_o), x_o attacked on objective o.

  The attack runs on the current weights in inference mode and is not differentiated through. Its
  random start depends on the draw of the example, not on its place in the batch. With
  `ramp_levels` n > 0 eps rises in n equal steps to `eps` over the run (authors of the disk-shape
  paper: 100); 0 keeps it constant. With `coupled` the network trains on `task.coupled`; attacks
  ascend per-example objectives all the same. With `in_turn` there are several updates per batch:
  one on each of the attacked images, the last one on the clean ones. `attack_bn`: the batch
  statistics during the attack, see `batch_statistics.AttackedNetwork`.
  """
  batch_statistics.check(attack_bn)
  for name in objectives:
    errors.lookup(task.objectives, name, kind='objective')
  total = clean_weight + sum(objectives.values())
  if abs(total - 1) > 1e-6:
    raise errors.UserError(f'the weights of clean and attacked losses must sum to 1, got {total:g}')

  # Held as memory, so that arms that differ only in eps share one compiled step.
  eps_of = lambda context: budget(context.memory['eps'], context.progress, ramp_levels)

  def attacked(position, name):
    def make_image(variables, context):
      network = batch_statistics.AttackedNetwork(task, variables, context, attack_bn)
      objective = lambda image: task.objectives[name](
        network.predict(image), {**context.batch, 'image': image}
      )
      keys = jax.vmap(lambda key: jax.random.fold_in(key, position))(context.keys)
      result, changed = network.run_attack(
        attack, objective, context.batch['image'], eps=eps_of(context), key=keys
      )
      return result.x, changed

    return make_image

  views = [weighted.CLEAN._replace(weight=clean_weight)]
  for i, (name, weight) in enumerate(objectives.items()):
    views.append(weighted.View(name, weight, attacked(i, name)))
  cost = types.Cost(
    gradients=len(objectives) * attack.num_gradients,
    forwards=len(objectives) * attack.num_forwards,
    passes=len(views),
  )
  phases = weighted.phases(task, views, in_turn=in_turn, coupled=coupled)
  init = lambda num_examples: {'eps': jnp.float32(eps)}
  return types.Defense(phases=phases, init=init, cost=cost, coupled=coupled)


def budget(eps: float | jax.Array, progress: jax.Array, ramp_levels: int) -> jax.Array:
  """Returns eps, or its level at `progress`: eps * (floor(progress * levels) + 1) / levels."""
  if not ramp_levels:
    return jnp.asarray(eps, jnp.float32)
  level = jnp.minimum(jnp.floor(progress * ramp_levels) + 1, ramp_levels)
  return eps * level / ramp_levels

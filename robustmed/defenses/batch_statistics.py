"""Batch statistics during the attacks of a training, and whether these attacks change them."""

import dataclasses

import jax
import jax.numpy as jnp

from robustmed import attacks, errors, types
from robustmed.attacks import space as spaces
from robustmed.process import shared_statistics

RUNNING, BATCH, UPDATE = 'running', 'batch', 'update'


def check(mode: str) -> None:
  """Raises `UserError` for a mode that `AttackedNetwork` does not have."""
  errors.lookup(dict.fromkeys((RUNNING, BATCH, UPDATE)), mode, kind='attack_bn')


class AttackedNetwork:
  """The network as one attack of a train step evaluates it, in a mode of batch normalisation.

  'running': inference mode, as everywhere else. The other modes are found in published code; with
  them the attack on an example depends on the rest of its device's batch. 'batch': every point is
  normalised by the statistics of that batch, which are then dropped. 'update': these also update
  the running statistics at every point; the result is averaged over the devices after the attack,
  whose `fold` must be 'last' or 'any'. Without batch statistics all modes are 'running'.
  """

  def __init__(self, task: types.Task, variables, context: types.LossContext, mode: str):
    self._task, self._key, self._batch = task, context.key, context.batch
    self._params = variables['params']
    self._state = {name: value for name, value in variables.items() if name != 'params'}
    self._mode = mode if jax.tree.leaves(self._state) else RUNNING
    self._forward_pass = attacks.Shared(self._run)

  def predict(self, image):
    """Returns the outputs for `image` in this mode."""
    return self._forward_pass(image)[0]

  def _run(self, image):
    if self._mode == RUNNING:
      return self._task.predict({'params': self._params, **self._state}, image), ()
    # With running statistics of zero the new ones are the batch's contribution alone.
    return self._forward(jax.tree.map(jnp.zeros_like, self._state), image)

  def _forward(self, state, image):
    with shared_statistics.local():
      return self._task.forward({'params': self._params, **state}, image, self._key)

  def run_attack(self, attack: types.Attack, objective, x, *, monitor=None, **kwargs):
    """Returns the attack's result, and {} or {'state': the updated batch statistics}.

    eps and distances are in the units of the task's `space`, if it has one.
    """
    space = self._task.space
    if space is not None:
      if self._mode != RUNNING:
        raise errors.UserError(f"attack_bn='{self._mode}' needs a task without a space")
      batch = {**self._batch, 'image': x}
      found = spaces.attacked(attack, objective, batch, space=space, monitor=monitor, **kwargs)
      return found, {}
    if self._mode != UPDATE:
      given = {} if monitor is None else {'monitor': monitor}
      return attack(objective, x, **given, **kwargs), {}
    if not dataclasses.is_dataclass(attack) or attack.fold not in ('last', 'any'):
      raise errors.UserError("attack_bn='update' needs an attack of the engine")
    repeat = lambda leaf: jnp.broadcast_to(leaf[None], (len(x), *leaf.shape))

    def monitor_with_statistics(image):
      seen = {} if monitor is None else monitor(image)
      return seen, jax.tree.map(repeat, self._forward_pass(image)[1])

    traced = dataclasses.replace(attack, fold='trace')
    result = traced(objective, x, monitor=monitor_with_statistics, **kwargs)
    seen, contributions = result.monitored
    fold = (lambda leaf: leaf[-1]) if attack.fold == 'last' else (lambda leaf: jnp.any(leaf, 0))
    result = result._replace(monitored=jax.tree.map(fold, seen))
    state = self._updated(jax.tree.map(lambda leaf: leaf[:, 0], contributions), x)
    return result, {'state': shared_statistics.mean(state)}

  def _updated(self, contributions, x):
    """Returns the running statistics after all points: kept * old + contribution at each point."""
    ones = jax.tree.map(jnp.ones_like, self._state)
    # The update is linear in the old statistics, so its derivative is the fraction that is kept.
    kept = jax.jvp(lambda state: self._forward(state, x)[1], (self._state,), (ones,))[1]
    add = lambda old, fraction, new: fraction * old + new
    step = lambda state, new: (jax.tree.map(add, state, kept, new), None)
    return jax.lax.scan(step, self._state, contributions)[0]

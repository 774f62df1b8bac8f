"""What batch statistics a training attack sees, and what it leaves of them."""

import dataclasses

import jax
import jax.numpy as jnp

from robustmed import attacks, errors, types
from robustmed.process import parallel

RUNNING, BATCH, UPDATE = 'running', 'batch', 'update'


def check(mode: str) -> None:
  """A `UserError` for a mode that `Attacked` does not know."""
  errors.lookup(dict.fromkeys((RUNNING, BATCH, UPDATE)), mode, kind='attack_bn')


class Attacked:
  """The network during one attack of one train step.

  'running': inference mode, as everywhere else. The others are habits of published code in which an
  example's attack depends on its neighbours on its device. 'batch': every point is judged by the
  statistics of the device's own batch, which are then forgotten. 'update': they enter the running
  statistics at every point, averaged over the devices when the attack has ended; the fold of the
  attack's monitor must be 'last' or 'any'. A network without batch statistics has only 'running'.
  """

  def __init__(self, task: types.Task, variables, context: types.LossContext, mode: str):
    self._task, self._key = task, context.key
    self._params = variables['params']
    self._state = {name: value for name, value in variables.items() if name != 'params'}
    self._mode = mode if jax.tree.leaves(self._state) else RUNNING
    self._pass = attacks.Shared(self._run)

  def predict(self, image):
    return self._pass(image)[0]

  def _run(self, image):
    if self._mode == RUNNING:
      return self._task.predict({'params': self._params, **self._state}, image), ()
    # From zero, what comes back is the share of the batch alone.
    return self._forward(jax.tree.map(jnp.zeros_like, self._state), image)

  def _forward(self, state, image):
    with parallel.local_statistics():
      return self._task.forward({'params': self._params, **state}, image, self._key)

  def meet(self, attack: types.Attack, objective, x, *, monitor=None, **kwargs):
    """(attack's result, {} or {'state': the batch statistics that it leaves})."""
    if self._mode != UPDATE:
      given = {} if monitor is None else {'monitor': monitor}
      return attack(objective, x, **given, **kwargs), {}
    if not dataclasses.is_dataclass(attack) or attack.fold not in ('last', 'any'):
      raise errors.UserError("attack_bn='update' needs an attack of the engine")
    spread = lambda leaf: jnp.broadcast_to(leaf[None], (len(x), *leaf.shape))

    def watch(image):
      seen = {} if monitor is None else monitor(image)
      return seen, jax.tree.map(spread, self._pass(image)[1])

    traced = dataclasses.replace(attack, fold='trace')
    result = traced(objective, x, monitor=watch, **kwargs)
    seen, shares = result.monitored
    fold = (lambda leaf: leaf[-1]) if attack.fold == 'last' else (lambda leaf: jnp.any(leaf, 0))
    result = result._replace(monitored=jax.tree.map(fold, seen))
    state = self._blend(jax.tree.map(lambda leaf: leaf[:, 0], shares), x)
    return result, {'state': parallel.batch_mean(state)}

  def _blend(self, shares, x):
    """The running statistics after all points: at each a part is kept and the share added."""
    ones = jax.tree.map(jnp.ones_like, self._state)
    # They are linear in the old ones, so the derivative is the part that is kept.
    kept = jax.jvp(lambda state: self._forward(state, x)[1], (self._state,), (ones,))[1]
    add = lambda old, part, share: part * old + share
    step = lambda state, share: (jax.tree.map(add, state, kept, share), None)
    return jax.lax.scan(step, self._state, shares)[0]

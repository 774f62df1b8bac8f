"""Step rules: optax transformations of the gradient's sign or of the normalised gradient."""

import jax
import jax.numpy as jnp
import optax

from robustmed import errors
from robustmed.attacks import engine, threat

# Each is scaled by +step_size afterwards. On signs, Adamax's infinity norm stays at 1, so its step
# is step_size times the bias-corrected mean sign; projections leave its state alone.
RULES = {
  'plain': optax.identity,
  'momentum': lambda: optax.ema(0.9, debias=True),
  'adamax': lambda: optax.scale_by_adamax(b1=0.9, b2=0.999, eps=1e-8),
}


def ascent(rule='plain'):
  """Returns a solver that moves x by step_size * rule(direction of the gradient).

  rule: a name of `RULES` or any `optax.GradientTransformation`. Its update must point
  uphill: use `optax.scale_by_adam()`, not `optax.adam(...)`, which descends.
  """
  if not isinstance(rule, optax.GradientTransformation):
    rule = errors.lookup(RULES, rule, kind='step rule')()
  _check_ascends(rule)

  def init(problem, x):
    # One state per example: a rule that clips by a global norm must not couple examples.
    return x, jax.vmap(rule.init)(x)

  def step(problem, index, x, value, grad, state):
    update, state = jax.vmap(rule.update)(problem.threat.direction(grad), state, x)
    return x + threat.expand_to_rank(problem.step_size, x) * update, state

  return engine.Solver(init, step)


def _check_ascends(rule):
  """Raises `UserError` for a rule whose update opposes the gradient: it would help the network."""
  with jax.ensure_compile_time_eval():
    x = jnp.zeros(1)
    update, _ = rule.update(jnp.ones(1), rule.init(x), x)
    down = bool((update < 0).all())
  if down:
    raise errors.UserError(
      'the step rule goes against the gradient; give the transformation without its learning rate, '
      'e.g. optax.scale_by_adam() for optax.adam(...)'
    )

"""The smallest eps that breaks each example."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from robustmed import errors
from robustmed.attacks import engine
from robustmed.attacks.monitor_reductions import where_per_example
from robustmed.attacks.threat import expand_to_rank
from robustmed.ops import contracts

WARM = 0.5  # of a search: the gradients of all trials of a warm start together


def minimal_eps(attack, objective, x, *, broken, upper, key, num_bisections=10, warm_start=False):
  """Returns the smallest eps that breaks each example, [b], by bisection; inf if `upper` does not.

  broken: image -> [b] bool, evaluated at the attack's `x`. upper: scalar or [b]. At every finite
  eps returned the attack did break the example (0: broken without attack). If every larger eps also
  breaks it, the result is at most upper / 2**num_bisections too large. Every trial uses the same
  key. Compiles the attack once; costs num_bisections + 1 attacks.

  warm_start: one attack at `upper`, then trials of one gradient, each from where the last one
  ended, scaled to its eps. A trial that fails is no proof here: the next one is half as far below
  the smallest eps found. Last, num_bisections without a gradient between 0 and the image that was
  found. All trials together take half of the gradients of an attack, so the share that withstands
  each of any number of levels (the mean of result > level) costs 1.5 attacks.
  """
  x = jnp.asarray(x)
  upper = contracts.broadcast_per_example(upper, jnp.zeros(x.shape[:1], jnp.float32), what='upper')

  def is_broken(image):
    return contracts.per_example(broken(image), x.shape[0], what='broken', dtype=bool)

  if warm_start:
    high = _warm(attack, objective, x, is_broken, upper, key, num_bisections)
    return jnp.where(is_broken(x), 0.0, high)

  def halve(_, ends):
    low, high = ends
    eps = jnp.where(jnp.isinf(high), upper, (low + jnp.where(jnp.isinf(high), upper, high)) / 2)
    hit = is_broken(attack(objective, x, eps=eps, key=key).x)
    return jnp.where(hit, low, eps), jnp.where(hit, eps, high)

  ends = jnp.zeros_like(upper), jnp.full_like(upper, jnp.inf)
  _, high = lax.fori_loop(0, num_bisections + 1, halve, ends)
  return jnp.where(is_broken(x), 0.0, high)


def _warm(attack, objective, x, is_broken, upper, key, num_bisections):
  if not isinstance(attack, engine.LoopAttack) or not attack.num_gradients:
    raise errors.UserError('warm_start needs an attack that takes gradients, such as pgd or apgd')
  short = dataclasses.replace(
    attack, num_steps=1, restarts=1, stages=((1.0, 1.0),), score_last=True
  )

  def one_step(start, eps):
    ready = short.prepare(objective, x, eps=eps, key=key)
    there = short.begin(ready)._replace(x=start)
    if there.best_x is not None:
      there = there._replace(best_x=start)
    state = short.step(ready, 0, 0, short.begin(ready, there))
    return short.result(ready, short.end(ready, 0, state)).x

  def scaled(image, size, eps):
    share = expand_to_rank(eps / jnp.maximum(size, 1e-30), x)
    return attack.threat.project(x + share * (image - x), x, eps)

  def trial(_, found):
    """found: smallest eps that broke, its image, how far below to go on, last (image, eps)."""
    high, kept, gap, last = found
    unknown = jnp.isinf(high)
    eps = jnp.where(unknown, upper, high - gap)
    near = scaled(*last, eps)
    hit = is_broken(near)
    near = where_per_example(hit, near, one_step(near, eps))
    hit |= is_broken(near)
    gap = jnp.where(hit, jnp.minimum(gap, eps / 2), jnp.where(unknown, gap, gap / 2))
    return jnp.where(hit, eps, high), where_per_example(hit, near, kept), gap, (near, eps)

  def halve(_, ends):
    low, high, eps = *ends, sum(ends) / 2
    hit = is_broken(scaled(kept, size, eps))
    return jnp.where(hit, low, eps), jnp.where(hit, eps, high)

  first = attack(objective, x, eps=upper, key=key).x
  high = jnp.where(is_broken(first), upper, jnp.inf)
  trials = int(WARM * attack.num_gradients)
  size, kept, *_ = lax.fori_loop(0, trials, trial, (high, first, upper / 2, (first, upper)))
  unknown = jnp.isinf(size)
  ends = jnp.zeros_like(upper), jnp.where(unknown, 0, size)
  return jnp.where(unknown, size, lax.fori_loop(0, num_bisections, halve, ends)[1])

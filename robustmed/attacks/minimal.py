"""The smallest eps that breaks each example."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from robustmed import errors
from robustmed.attacks import engine
from robustmed.attacks.monitor_reductions import where_per_example
from robustmed.attacks.threat import expand_to_rank
from robustmed.ops import contracts

WARM = 0.5  # of a search: what a warm start costs beside it
_GRADIENT = 3  # forward passes that a gradient costs
_STEP, _BELOW = 0.5, 0.3  # of eps: a trial's step, how far below the smallest eps found it goes on


def minimal_eps(attack, objective, x, *, broken, upper, key, num_bisections=10, warm_start=False):
  """Returns the smallest eps that breaks each example, [b], by bisection; inf if `upper` does not.

  broken: image -> [b] bool, evaluated at the attack's `x`. upper: scalar or [b]. At every finite
  eps returned the attack did break the example (0: broken without attack). If every larger eps also
  breaks it, the result is at most upper / 2**num_bisections too large. Every trial uses the same
  key. Compiles the attack once; costs num_bisections + 1 attacks.

  warm_start: one attack at `upper`, whose change is scaled down by half of num_bisections without a
  gradient. Then trials of one gradient, each a step from the image of the last one, scaled to an
  eps below the smallest one found. A trial that fails is no proof here: the next one is half as far
  below. Last, the other bisections, from the image that was found. There are as many trials as make
  all this cost half of an attack, a gradient being worth three forward passes, if objective and
  `broken` share their network by `attacks.Shared`; without any trial it costs num_bisections + 2
  forward passes. So the share that withstands each of any number of levels, the mean of
  result > level, costs 1.5 attacks.
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
    attack,
    num_steps=1,
    step_size=None,
    relative_step=_STEP,
    restarts=1,
    stages=((1.0, 1.0),),
    select='last',
    keep=None,
    fold='last',
    score_last=False,
  )

  def one_step(start, eps):
    """Returns the image after a step, and whether the one before it was broken, by one pass."""
    ready = short.prepare(objective, x, eps=eps, key=key, monitor=is_broken)
    state = short.begin(ready)
    state = short.step(ready, 0, 0, short.begin(ready, state._replace(x=start)))
    return state.x, state.memory

  def scaled(image, size, eps):
    share = expand_to_rank(eps / jnp.maximum(size, 1e-30), x)
    return attack.threat.project(x + share * (image - x), x, eps)

  def bisect(count, low, high, image, size):
    def halve(_, ends):
      low, high = ends
      eps = (low + high) / 2
      hit = is_broken(scaled(image, size, eps))
      return jnp.where(hit, low, eps), jnp.where(hit, eps, high)

    return lax.fori_loop(0, count, halve, (low, high))

  def settle(found, hit, image, eps):
    """The smallest eps that broke, its image, and how far below it to go on."""
    high, kept, low, gap = found
    unknown = jnp.isinf(high)
    high, kept = jnp.where(hit, eps, high), where_per_example(hit, image, kept)
    gap = jnp.where(hit | unknown, gap, gap / 2)
    return high, kept, jnp.where(hit, 0.0, low), gap

  def trial(index, carry):
    found, image, eps = carry
    # from the image that was tried last: a step at its own size, then the next size
    stepped, hit = one_step(image, eps)
    found = settle(found, hit & (index > 0), image, eps)
    high, _, _, gap = found
    after = jnp.where(jnp.isinf(high), upper, high * (1 - gap))
    return found, scaled(stepped, eps, after), after

  first = attack(objective, x, eps=upper, key=key).x
  known = is_broken(first)
  left = WARM * (_GRADIENT * attack.num_gradients + attack.num_forwards)
  trials = max(0, int((left - num_bisections - 3) / _GRADIENT))
  coarse = num_bisections // 2 if trials else num_bisections
  low, size = bisect(coarse, jnp.zeros_like(upper), upper, first, upper)
  kept = where_per_example(known, scaled(first, upper, size), first)
  size = jnp.where(known, size, upper)
  high = jnp.where(known, size, jnp.inf)
  if trials:
    found = high, kept, low, jnp.full_like(upper, _BELOW)
    found, image, eps = lax.fori_loop(0, trials, trial, (found, kept, size))
    high, kept, low, _ = settle(found, is_broken(image), image, eps)
    top = jnp.where(jnp.isinf(high), upper, high)
    low = jnp.where(low > 0, low, top * (1 - _BELOW))
    high = jnp.where(jnp.isinf(high), high, bisect(num_bisections - coarse, low, top, kept, top)[1])
  return high

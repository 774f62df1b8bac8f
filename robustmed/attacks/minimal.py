"""The smallest eps that breaks each example, and an attack that keeps to the border of a class."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from robustmed import errors
from robustmed.attacks import engine
from robustmed.attacks.monitor_reductions import where_per_example
from robustmed.attacks.threat import Threat, expand_to_rank
from robustmed.ops import contracts
from robustmed.types import Array

WARM = 0.5  # of a search: what a warm start costs beside it
_GRADIENT = 3  # forward passes that a gradient costs
_GAMMA, _LAST = 0.05, 0.001  # of `fmn`: the first and the last share of its radius and step
_STEP, _BELOW = 0.5, 0.3  # of eps: a trial's step, how far below the smallest eps found it goes on


def minimal_eps(attack, objective, x, *, broken, upper, key, num_bisections=10, warm_start=False):
  """Returns the smallest eps that breaks each example, [b], by bisection; inf if `upper` does not.

  broken: image -> [b] bool, evaluated at the attack's `x`. upper: scalar or [b]. At every finite
  eps returned the attack did break the example (0: broken without attack). If every larger eps also
  breaks it, the result is at most upper / 2**num_bisections too large. Every trial uses the same
  key. Compiles the attack once; costs num_bisections + 1 attacks.

  An attack of `fmn` is run once, at `upper`; the result is the smallest change of its points that
  broke the example. It finds smaller ones than bisection with as many gradients.

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

  if isinstance(attack, engine.LoopAttack) and attack.solver.step is _toward_border:
    return _at_border(attack, objective, x, is_broken, upper, key)

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


def _at_border(attack, objective, x, is_broken, upper, key):
  watched = dataclasses.replace(attack, fold='max', select='last', keep=None)

  def smallness(image):
    return jnp.where(is_broken(image), -attack.threat.distance(image, x), -jnp.inf)

  found = watched(objective, x, eps=upper, key=key, monitor=smallness).monitored
  return jnp.where(is_broken(x), 0.0, -found)


class _Border(NamedTuple):
  """What a search for the smallest change knows, [b]."""

  radius: Array  # of the ball that the next point lies in
  smallest: Array  # change that broke the example, inf: none did


def _toward_border(problem, index, x, value, grad, state):
  threat, centre, eps = problem.threat, problem.centre, problem.eps
  axes = tuple(range(1, x.ndim))
  slope = threat.masked(jnp.where(jnp.isfinite(grad), grad, 0))
  steep = jnp.sqrt(jnp.sum(slope * slope, axes))
  dual = steep if threat.norm == 'l2' else jnp.sum(jnp.abs(slope), axes)
  size, broken = threat.distance(x, centre), value > 0
  smallest = jnp.where(broken, jnp.minimum(state.smallest, size), state.smallest)
  left = (1 + jnp.cos(jnp.pi * index / problem.num_steps)) / 2
  change = _LAST + (_GAMMA - _LAST) * left
  reach = jnp.abs(value) / jnp.maximum(dual, 1e-12)
  # not just to where the slope says that the border is: such points come near it, never across
  near = (size + reach) * (1 + change)
  outer = jnp.where(jnp.isinf(smallest), near, state.radius * (1 + change))
  inner = jnp.minimum(state.radius * (1 - change), smallest)
  radius = jnp.minimum(jnp.where(broken, inner, outer), eps)
  # in L2, as published; in linf a change of r in all elements is sqrt(n) r
  length = radius * (_LAST + (1 - _LAST) * left)
  if threat.norm == 'l2':  # late steps as well must be able to break an example
    length = jnp.where(jnp.isinf(smallest), jnp.maximum(length, jnp.minimum(reach, eps)), length)
  step = length / jnp.maximum(steep, 1e-12)
  if threat.norm == 'linf':
    step *= jnp.sqrt(float(centre[0].size))
  moved = x + expand_to_rank(step, x) * slope
  return threat.project(moved, centre, radius), _Border(radius, smallest)


def fmn(
  *,
  norm='linf',
  num_steps=50,
  bounds=None,
  region=None,
  max_change=None,
  random_start=False,
  restarts=1,
  select='best',
  keep=None,
  fold='last',
  score_last=True,
  minimise=False,
):
  """Returns a search for the smallest change that makes the objective positive, within eps.

  Pintor et al. 2021, 'Fast minimum-norm adversarial attacks', algorithm 1: the ball of the next
  point grows until the example is broken and shrinks while it is, by a share that falls from 5 % to
  0.1 %, with steps along the gradient that fall as a cosine. The step's length is a share of that
  ball, where the paper's is one of images in [0, 1], which in L2 stays far from small changes.
  Until the example is broken, the ball is larger than the slope says by the share of the step. The
  objective is a margin, above 0 where the network is wrong. Handed over is the worst point, as of
  other attacks; `minimal_eps` returns the smallest eps. The settings are those of
  `engine.LoopAttack` and `threat.Threat`.
  """
  if restarts > 1 and not random_start:
    raise errors.UserError('restarts without random_start=True would repeat one and the same run')
  begin = lambda problem, x: (
    x,
    _Border(problem.eps, jnp.full_like(problem.eps, jnp.inf)),
  )
  return engine.LoopAttack(
    threat=Threat(norm, bounds, region, max_change),
    solver=engine.Solver(begin, _toward_border),
    num_steps=num_steps,
    random_start=random_start,
    restarts=restarts,
    select=select,
    keep=keep,
    fold=fold,
    score_last=score_last,
    minimise=minimise,
  )

"""The loop of all attacks; a `Solver` and a `Threat` hold what differs between them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustmed import errors
from robustmed.attacks import inputs, monitor_reductions, objectives
from robustmed.attacks.threat import Threat
from robustmed.ops import contracts
from robustmed.types import Array, AttackResult, Flags, PyTree

SELECT = ('last', 'best', 'monitor')


class Problem(NamedTuple):
  """What a solver knows of a run of b examples."""

  threat: Threat
  centre: Array  # [b, ...]
  eps: Array  # [b]
  step_size: Array | None  # [b]
  keys: Array  # [b]
  num_steps: int


class Solver(NamedTuple):
  """The update rule of an attack.

  init: (problem, x) -> (x, state), x being the start. step: (problem, index, x, value, grad, state)
  -> (x, state); larger values are better, the loop projects the returned x onto the threat, and
  grad is None if not `needs_gradient`.
  """

  init: Callable[..., tuple[Array, PyTree]]
  step: Callable[..., tuple[Array, PyTree]]
  needs_gradient: bool = True


class Ready(NamedTuple):
  """A run before it begins."""

  problem: Problem
  evaluate: Callable[..., objectives.Scored]  # (x, step, gradient=...)
  monitor: Callable[[Array], PyTree] | None
  start_radius: Array | None  # [b]
  wrong_eps: Array  # [b] bool
  dtype: Any  # of the image
  comparable: bool  # whether the objective's values at two steps are


class _LoopState(NamedTuple):
  x: Array
  state: PyTree
  value: Array  # at the last scored point
  best_x: Array | None
  best_value: Array  # at the best scored point ...
  best_rank: Array  # ... and what it is the best by
  memory: PyTree
  seen: tuple[Array, Array]  # [b] a gradient other than 0, an objective that is not finite


@dataclasses.dataclass(frozen=True, eq=False)
class LoopAttack:
  """An `Attack` that takes `num_steps` steps of `solver` within `threat`, `restarts` times.

  step_size | relative_step: the step's length in units of x, or as a share of eps; numbers or
    (traced) arrays, scalar or [b].
  random_start: start at a random point of radius `start_radius` (at call; default eps).
  restarts: independent runs, the later ones with keys fold_in(key of the example, run); per
    example the run with the best value is kept, so more restarts never make a result worse.
  select: 'last' or 'best' scored iterate becomes `x`, or that with the largest value of the
    'monitor', which is then [b], such as -Dice: what the attack climbs and what it is judged by can
    differ. Of iterates that the monitor does not tell apart, the objective chooses, the later one
    where it takes `progress`. keep='both' returns the last and the best one.
  fold: how the monitor's values are reduced, see `monitor_reductions.FOLDS`. The monitor is traced
    together with the gradient: a host callback in it needs `lax.stop_gradient` on its input.
  score_last: a run of N steps scores N + 1 points, the last by a forward pass alone. Without it
    only x_0 ... x_(N-1) are scored: 'last' still returns x_N but its `value` is that of x_(N-1),
    and 'best' chooses among the scored points.
  minimise: decrease the objective; 'best' is then the smallest value. The monitor's is the largest.
  stages: (share of the steps, multiple of eps) of searches one after the other, each from what the
    one before found, projected; the last one's is eps itself, and only its points are results.

  An objective with a parameter `progress` gets the share of the steps that are done, a traced
  scalar. Its values at two steps are not comparable, so select='best' is refused.

  Guarantees: x is in the ball and the box; examples do not depend on each other; no gradient flows
  through the result. Arithmetic is float32 (float64 where x is), x keeps its dtype. In a narrower
  dtype x is rounded, which may put it just outside the ball; `distance` is that of the rounded x.
  """

  threat: Threat
  solver: Solver
  num_steps: int
  step_size: Any = None
  relative_step: Any = None
  random_start: bool = False
  restarts: int = 1
  select: str = 'last'
  keep: str | None = None
  fold: str = 'last'
  score_last: bool = True
  minimise: bool = False
  stages: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

  def __post_init__(self):
    errors.lookup(monitor_reductions.FOLDS, self.fold, kind='fold')
    errors.lookup(dict.fromkeys(SELECT), self.select, kind='select')
    errors.lookup(dict.fromkeys((None, 'both')), self.keep, kind='keep')
    for name in ('num_steps', 'restarts'):
      if not isinstance(getattr(self, name), int):
        raise errors.UserError(f'{name} must be a whole number, not {getattr(self, name)!r}')
    for name in ('step_size', 'relative_step'):
      value = getattr(self, name)
      if isinstance(value, int | float) and not 0 <= value < float('inf'):
        raise errors.UserError(f'{name} must be a number of 0 or more, not {value!r}')
    if self.num_steps < 0 or self.restarts < 1:
      raise errors.UserError(
        f'an attack needs num_steps >= 0 and restarts >= 1, not {self.num_steps}, {self.restarts}'
      )
    if self.num_steps == 0 and not self.score_last:
      raise errors.UserError(
        'an attack with num_steps=0 needs score_last=True, or no point is scored'
      )
    if self.step_size is not None and self.relative_step is not None:
      raise errors.UserError('give step_size or relative_step (of eps), not both')

  judged = property(lambda self: self.select == 'monitor')  # see `types.Attack`

  @property
  def num_gradients(self):
    """Input gradients per example."""
    return self.restarts * self.num_steps if self.solver.needs_gradient else 0

  @property
  def num_forwards(self):
    """Forward passes without a gradient, per example."""
    points = self.num_steps + self.score_last
    return self.restarts * points - self.num_gradients

  def __call__(self, objective, x, *, eps, key, monitor=None, start_radius=None):
    """See `types.Attack`."""
    ready = self.prepare(objective, x, eps=eps, key=key, monitor=monitor, start_radius=start_radius)
    keys = ready.problem.keys

    def run(restart):
      # The first run uses the attack's keys, so that it equals the attack without restarts.
      fresh = keys
      if self.restarts > 1:
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
        fresh = jnp.where(restart == 0, keys, folded)
      return self._run(ready._replace(problem=ready.problem._replace(keys=fresh)))

    if self.restarts == 1:
      return self.result(ready, run(0))
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run, 0))
    # `_merge` replaces NaN by the values of the first run.
    unknown = jnp.full_like(ready.problem.eps, jnp.nan)
    memory = self._memory(ready, self._plan()[-1].stop - self._plan()[-1].start)
    kept = blank._replace(value=unknown, best_value=unknown, best_rank=unknown, memory=memory)
    next_run = lambda restart, kept: self._merge(ready, kept, run(restart))
    return self.result(ready, lax.fori_loop(0, self.restarts, next_run, kept))

  def prepare(self, objective, x, *, eps, key, monitor=None, start_radius=None):
    """Returns what a run needs, checked; the arguments are those of a call."""
    given = inputs.image(x)
    centre = given.astype(jnp.promote_types(given.dtype, jnp.float32))
    self.threat.check(centre)
    eps = contracts.broadcast_per_example(eps, centre, what='eps')
    inputs.check_at_least_0(eps, what='eps')
    wrong_eps, eps = ~(eps >= 0), jnp.where(eps >= 0, eps, 0)
    step_size = self.step_size
    if self.relative_step is not None:
      step_size = (
        contracts.broadcast_per_example(self.relative_step, centre, what='relative_step') * eps
      )
    elif step_size is not None:
      step_size = contracts.broadcast_per_example(step_size, centre, what='step_size')
    if start_radius is None and self.random_start:
      start_radius = eps
    if start_radius is not None:
      start_radius = contracts.broadcast_per_example(start_radius, centre, what='start_radius')
      inputs.check_at_least_0(start_radius, what='start_radius')
    keys = inputs.example_keys(key, centre.shape[0])
    monitor = self._checked_monitor(monitor)
    sense = -1.0 if self.minimise else 1.0
    evaluate = objectives.evaluator(self._with_progress(objective), monitor, sense)
    problem = Problem(self.threat, centre, eps, step_size, keys, self.num_steps)
    comparable = not objectives.takes_progress(objective)
    return Ready(problem, evaluate, monitor, start_radius, wrong_eps, given.dtype, comparable)

  def _checked_monitor(self, monitor):
    if self.judged:
      if monitor is None:
        raise errors.UserError("select='monitor' needs a monitor, image -> [b]")
      return lambda x: contracts.per_example(monitor(x), len(x), what='the judging monitor')
    if monitor is None:
      return None
    return lambda x: contracts.batched(monitor(x), x.shape[0], what='the monitor')

  def _with_progress(self, objective):
    """The objective as a function of x and the step."""
    if not objectives.takes_progress(objective):
      return lambda x, index: objective(x)
    if self.select == 'best':
      raise errors.UserError(
        "the objective changes with the steps, so its values do not tell which is best; take \
select='monitor' or 'last'"
      )
    steps = max(self.num_steps, 1)
    return lambda x, index: objective(x, progress=jnp.asarray(index, x.dtype) / steps)

  def _plan(self):
    """The steps of each stage."""
    shares = np.cumsum([share for share, _ in self.stages[:-1]])
    # the last stage has a step at least, if there are any: its points alone are results
    ends = [min(round(n * self.num_steps), max(self.num_steps - 1, 0)) for n in shares]
    ends.append(self.num_steps)
    return [range(first, end) for first, end in zip([0, *ends[:-1]], ends)]

  def _run(self, ready):
    state = None
    for steps, (_, radius) in zip(self._plan(), self.stages, strict=True):
      whole = ready.problem
      step_size = None if whole.step_size is None else radius * whole.step_size
      eps, size = radius * whole.eps, len(steps)
      stage = ready._replace(problem=whole._replace(eps=eps, step_size=step_size, num_steps=size))
      before, state = state, self.begin(stage, state)
      if size:
        state = lax.fori_loop(0, size, functools.partial(self.step, stage, steps.start), state)
      if before is not None:
        state = state._replace(seen=jax.tree.map(jnp.logical_or, before.seen, state.seen))
    return self.end(stage, steps.start, state)

  def begin(self, ready, before=None):
    """Returns the state before the first step, at a random start or at what a stage found."""
    threat, centre, eps = self.threat, ready.problem.centre, ready.problem.eps
    project = lambda x: threat.project(x, centre, eps)
    start = centre
    if before is not None:
      start = before.best_x if self._tracks else before.x
    elif ready.start_radius is not None:
      start = threat.start(ready.problem.keys, centre, ready.start_radius)
    x, state = self.solver.init(ready.problem, project(start))
    x = project(x)
    low, never = jnp.full_like(eps, -jnp.inf), jnp.zeros(eps.shape, bool)
    memory = self._memory(ready, ready.problem.num_steps)
    best = x if self._tracks else None
    return _LoopState(x, state, low, best, low, low, memory, (never, never))

  def step(self, ready, done, index, carry):
    """Returns the state after a point is scored and left; `done` steps were those of stages."""
    problem = ready.problem
    point = ready.evaluate(carry.x, done + index, gradient=self.solver.needs_gradient)
    carry = self._record(ready, carry, point, index)
    x, state = self.solver.step(problem, index, carry.x, point.value, point.grad, carry.state)
    return carry._replace(x=self.threat.project(x, problem.centre, problem.eps), state=state)

  def end(self, ready, done, carry):
    """Returns the state after the last point is scored, its value that of the chosen one."""
    if self.score_last:
      size = ready.problem.num_steps
      point = ready.evaluate(carry.x, done + size, gradient=False)
      carry = self._record(ready, carry, point, size)
    if self.select != 'last':
      carry = carry._replace(value=carry.best_value)
    return carry._replace(state=None)

  @property
  def _tracks(self):
    return self.select != 'last' or self.keep == 'both'

  def _preferred(self, ready, rank, value, carry):
    if not self.judged:
      return rank > carry.best_rank
    value = value if ready.comparable else None
    return monitor_reductions.above(rank, carry.best_rank, value=value, best_value=carry.best_value)

  def _record(self, ready, carry, point, index):
    best_x = carry.best_x
    rank = point.monitored.astype(carry.value.dtype) if self.judged else point.value
    better = self._preferred(ready, rank, point.value, carry)
    if self._tracks:
      best_x = monitor_reductions.where_per_example(better, carry.x, best_x)
    return carry._replace(
      value=point.value,
      best_x=best_x,
      best_value=jnp.where(better, point.value, carry.best_value),
      best_rank=jnp.fmax(carry.best_rank, rank),
      seen=(
        carry.seen[0] | point.moves,
        carry.seen[1] | ~jnp.isfinite(point.value),
      ),
      memory=monitor_reductions.add(self.fold, carry.memory, point.monitored, index),
    )

  def _memory(self, ready, num_steps):
    if ready.monitor is None:
      return None
    shapes = jax.eval_shape(ready.monitor, ready.problem.centre)
    return monitor_reductions.init(self.fold, shapes, num_steps + self.score_last)

  def _merge(self, ready, kept, new):
    better_point = self._preferred(ready, new.best_rank, new.best_value, kept)
    better_point |= jnp.isnan(kept.best_rank)
    better = better_point if self.judged else (new.value > kept.value) | jnp.isnan(kept.value)
    best_x = kept.best_x
    if best_x is not None:
      best_x = monitor_reductions.where_per_example(better_point, new.best_x, best_x)
    return _LoopState(
      x=monitor_reductions.where_per_example(better, new.x, kept.x),
      state=None,
      value=jnp.where(better, new.value, kept.value),
      best_x=best_x,
      best_value=jnp.where(better_point, new.best_value, kept.best_value),
      best_rank=jnp.fmax(kept.best_rank, new.best_rank),
      seen=(kept.seen[0] | new.seen[0], kept.seen[1] | new.seen[1]),
      memory=monitor_reductions.merge(self.fold, kept.memory, new.memory, better),
    )

  def result(self, ready, carry):
    """Returns the `types.AttackResult` of an ended run."""
    dtype, eps = ready.dtype, ready.problem.eps
    x = inputs.rounded(carry.x if self.select == 'last' else carry.best_x, dtype)
    both = self.keep == 'both'
    distance, (gradient, unknown) = self.threat.distance(x, ready.problem.centre), carry.seen
    # Where no point had a value, the best of none is not -inf but unknown.
    value = jnp.where(unknown & jnp.isneginf(carry.value), jnp.nan, carry.value)
    result = AttackResult(
      x=x.astype(dtype),
      value=-value if self.minimise else value,
      distance=distance,
      flags=Flags(
        no_gradient=~gradient & (self.num_gradients > 0),
        not_finite=unknown,
        not_moved=(distance == 0) & (eps > 0),
        wrong_eps=ready.wrong_eps,
      ),
      monitored=carry.memory,
      last_x=carry.x.astype(dtype) if both else None,
      best_x=carry.best_x.astype(dtype) if both else None,
    )
    return inputs.told(lax.stop_gradient(result))

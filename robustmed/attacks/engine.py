"""The loop of all attacks; a `Solver` and a `Threat` hold what differs between them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


class _Scored(NamedTuple):
  value: Array  # [b], larger is better
  grad: Array | None
  monitored: PyTree


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
    differ. keep='both' returns the last and the best one.
  fold: how the monitor's values are reduced, see `monitor_reductions.FOLDS`. The monitor is traced
    together with the gradient: a host callback in it needs `lax.stop_gradient` on its input.
  score_last: a run of N steps scores N + 1 points, the last by a forward pass alone. Without it
    only x_0 ... x_(N-1) are scored: 'last' still returns x_N but its `value` is that of x_(N-1),
    and 'best' chooses among the scored points.
  minimise: decrease the objective; 'best' is then the smallest value. The monitor's is the largest.

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
    objective = self._with_progress(objective)
    evaluate = _evaluator(objective, monitor, -1.0 if self.minimise else 1.0)
    problem = Problem(self.threat, centre, eps, step_size, keys, self.num_steps)

    def run(restart):
      # The first run uses the attack's keys, so that it equals the attack without restarts.
      fresh = keys
      if self.restarts > 1:
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
        fresh = jnp.where(restart == 0, keys, folded)
      return self._run(problem._replace(keys=fresh), evaluate, monitor, start_radius)

    if self.restarts == 1:
      return self._result(run(0), centre, given.dtype, eps, wrong_eps)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run, 0))
    # `_merge` replaces NaN by the values of the first run.
    unknown = jnp.full_like(eps, jnp.nan)
    memory = self._memory(monitor, centre)
    kept = blank._replace(value=unknown, best_value=unknown, best_rank=unknown, memory=memory)
    next_run = lambda restart, kept: self._merge(kept, run(restart))
    kept = lax.fori_loop(0, self.restarts, next_run, kept)
    return self._result(kept, centre, given.dtype, eps, wrong_eps)

  def _checked_monitor(self, monitor):
    what = f'the monitor of select={self.select!r}'
    if self.select == 'monitor':
      if monitor is None:
        raise errors.UserError("select='monitor' needs a monitor, image -> [b]")
      return lambda x: contracts.per_example(monitor(x), x.shape[0], what=what)
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

  def _run(self, problem, evaluate, monitor, start_radius):
    threat, centre, eps = problem.threat, problem.centre, problem.eps
    project = lambda x: threat.project(x, centre, eps)
    start = centre
    if start_radius is not None:
      start = threat.start(problem.keys, centre, start_radius)
    x, state = self.solver.init(problem, project(start))
    x = project(x)
    low = jnp.full_like(eps, -jnp.inf)
    track = self.select != 'last' or self.keep == 'both'

    def record(carry, point, index):
      best_x = carry.best_x
      rank = point.monitored.astype(eps.dtype) if self.select == 'monitor' else point.value
      better = rank > carry.best_rank
      if track:
        best_x = monitor_reductions.where_per_example(better, carry.x, best_x)
      return carry._replace(
        value=point.value,
        best_x=best_x,
        best_value=jnp.where(better, point.value, carry.best_value),
        best_rank=jnp.fmax(carry.best_rank, rank),
        seen=(carry.seen[0] | _moves(point.grad, eps), carry.seen[1] | ~jnp.isfinite(point.value)),
        memory=monitor_reductions.add(self.fold, carry.memory, point.monitored, index),
      )

    def body(index, carry):
      point = evaluate(carry.x, index, gradient=self.solver.needs_gradient)
      carry = record(carry, point, index)
      x, state = self.solver.step(problem, index, carry.x, point.value, point.grad, carry.state)
      return carry._replace(x=project(x), state=state)

    memory, never = self._memory(monitor, x), jnp.zeros(eps.shape, bool)
    carry = _LoopState(x, state, low, x if track else None, low, low, memory, (never, never))
    carry = lax.fori_loop(0, self.num_steps, body, carry)
    if self.score_last:
      carry = record(carry, evaluate(carry.x, self.num_steps, gradient=False), self.num_steps)
    if self.select != 'last':
      carry = carry._replace(value=carry.best_value)
    return carry._replace(state=None)

  def _memory(self, monitor, x):
    if monitor is None:
      return None
    return monitor_reductions.init(
      self.fold, jax.eval_shape(monitor, x), self.num_steps + self.score_last
    )

  def _merge(self, kept, new):
    above = lambda value, other: (value > other) | jnp.isnan(other)
    better_point = above(new.best_rank, kept.best_rank)
    better = better_point if self.select == 'monitor' else above(new.value, kept.value)
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

  def _result(self, carry, centre, dtype, eps, wrong_eps):
    x = _rounded(carry.x if self.select == 'last' else carry.best_x, dtype)
    both = self.keep == 'both'
    distance, (gradient, unknown) = self.threat.distance(x, centre), carry.seen
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
        wrong_eps=wrong_eps,
      ),
      monitored=carry.memory,
      last_x=carry.x.astype(dtype) if both else None,
      best_x=carry.best_x.astype(dtype) if both else None,
    )
    return lax.stop_gradient(result)


def _rounded(x, dtype):
  """Returns x rounded to the precision of `dtype`, so that its distance also holds after the cast.

  The compiler may drop a cast there and back.
  """
  target = jnp.finfo(dtype)
  if target.bits >= jnp.finfo(x.dtype).bits:
    return x
  return lax.reduce_precision(x, exponent_bits=target.nexp, mantissa_bits=target.nmant)


def _moves(grad, like):
  """Whether a gradient has an entry that is finite and not 0, [b]."""
  if grad is None:
    return jnp.zeros(like.shape, bool)
  return jnp.any(jnp.isfinite(grad) & (grad != 0), axis=tuple(range(1, grad.ndim)))


def _evaluator(objective, monitor, sense):
  """Returns (x, index, gradient=...) -> `_Scored`; objective and monitor share a forward pass."""

  def values(x, index):
    value = contracts.per_example(objective(x, index), x.shape[0], what='the objective')
    return sense * value.astype(x.dtype)

  def monitored(x):
    return None if monitor is None else monitor(x)

  def total(x, index):
    value = values(x, index)
    # A sum, not a mean: an example's gradient must not depend on the batch size.
    return jnp.sum(value), (value, monitored(x))

  def evaluate(x, index, *, gradient):
    if not gradient:
      return _Scored(values(x, index), None, monitored(x))
    (_, (value, found)), grad = jax.value_and_grad(total, has_aux=True)(x, index)
    return _Scored(value, grad, found)

  return evaluate

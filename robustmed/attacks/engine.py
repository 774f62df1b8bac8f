"""The one loop of every attack; what differs between attacks is data (`Solver`, `Threat`)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustmed import errors
from robustmed.attacks import monitor_reductions
from robustmed.attacks.threat import Threat
from robustmed.ops import contracts
from robustmed.types import Array, AttackResult, PyTree


class Problem(NamedTuple):
  """What a solver may know of the run; [b] arrays, b examples."""

  threat: Threat
  centre: Array  # [b, ...]
  eps: Array  # [b]
  step_size: Array | None  # [b]
  keys: Array  # [b]
  num_steps: int


class Solver(NamedTuple):
  """init: (problem, x) -> (x, state), where x is the start that was drawn.

  step: (problem, index, x, value, grad, state) -> (x, state). It climbs: larger values are better.
  The loop projects what it returns. grad is None for a solver that `needs_gradient=False`.
  """

  init: Callable[..., tuple[Array, PyTree]]
  step: Callable[..., tuple[Array, PyTree]]
  needs_gradient: bool = True


class _Point(NamedTuple):
  value: Array  # [b], larger is better
  grad: Array | None
  seen: PyTree


class _Walk(NamedTuple):
  x: Array
  state: PyTree
  value: Array  # at the last scored point
  best_x: Array | None
  best_value: Array
  memory: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class LoopAttack:
  """An `Attack`: `num_steps` steps of `solver` inside `threat`, `restarts` times.

  step_size | relative_step: the step's length in units of x, or as a share of eps; numbers or
    (traced) arrays, scalar or [b].
  random_start: start at a random point of radius `start_radius` (at call; default eps).
  restarts: independent runs, the later ones with keys fold_in(key of the example, run); per
    example the run with the best value is kept, so more restarts never make a result worse.
  select: 'last' or 'best' scored iterate becomes `x`; keep='both' returns both.
  fold: how the monitor's values become one answer, see `folds`. The monitor is traced together with
    the gradient: a host callback in it needs `lax.stop_gradient` on what it is given.
  score_last: a run of N steps scores N + 1 points, the last by a forward pass alone. Without it
    only x_0 ... x_(N-1) are scored: 'last' still returns x_N but its `value` is that of x_(N-1),
    and 'best' chooses among the scored points.
  minimise: go down instead of up; then 'best' is the smallest value.

  Guarantees: x is in the ball and the box; nothing of one example depends on another one; the
  result is constant to differentiation. Work is float32 (float64 where x is), x keeps its dtype: in
  a shorter one the result is rounded, may leave the ball by that, and `distance` says so.
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
    errors.lookup(dict.fromkeys(('last', 'best')), self.select, kind='select')
    errors.lookup(dict.fromkeys((None, 'both')), self.keep, kind='keep')
    if self.num_steps < 0 or self.restarts < 1:
      raise errors.UserError(
        f'an attack needs num_steps >= 0 and restarts >= 1, not {self.num_steps}, {self.restarts}'
      )
    if self.num_steps == 0 and not self.score_last:
      raise errors.UserError('an attack of 0 steps scores nothing without score_last=True')
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
    given = jnp.asarray(x)
    if not jnp.issubdtype(given.dtype, jnp.floating) or given.ndim < 1:
      raise errors.UserError(
        f'an attack needs x of a floating dtype and shape [b, ...], got {given.dtype} '
        f'{given.shape}; convert the image first, for example x.astype(float32) / 255'
      )
    centre = given.astype(jnp.promote_types(given.dtype, jnp.float32))
    self.threat.check(centre)
    eps = contracts.broadcast_per_example(eps, centre, what='eps')
    _check_eps(eps)
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
    keys = example_keys(key, centre.shape[0])
    monitor = _checked(monitor)
    evaluate = _evaluator(objective, monitor, -1.0 if self.minimise else 1.0)
    problem = Problem(self.threat, centre, eps, step_size, keys, self.num_steps)

    def run(restart):
      # The first run is that of the attack without restarts, and needs no key of its own.
      fresh = keys
      if self.restarts > 1:
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, restart)
        fresh = jnp.where(restart == 0, keys, folded)
      return self._run(problem._replace(keys=fresh), evaluate, monitor, start_radius)

    if self.restarts == 1:
      return self._result(run(0), centre, given.dtype)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run, 0))
    # NaN loses against whatever the first run brings, see `_merge`.
    unknown = jnp.full_like(eps, jnp.nan)
    kept = blank._replace(value=unknown, best_value=unknown, memory=self._memory(monitor, centre))
    again = lambda restart, kept: self._merge(kept, run(restart))
    kept = lax.fori_loop(0, self.restarts, again, kept)
    return self._result(kept, centre, given.dtype)

  def _run(self, problem, evaluate, monitor, start_radius):
    threat, centre, eps = problem.threat, problem.centre, problem.eps
    place = lambda x: threat.project(x, centre, eps)
    start = centre
    if start_radius is not None:
      start = threat.start(problem.keys, centre, start_radius)
    x, state = self.solver.init(problem, place(start))
    x = place(x)
    low = jnp.full_like(eps, -jnp.inf)
    track = self.select == 'best' or self.keep == 'both'

    def note(walk, point, index):
      best_x = walk.best_x
      if track:
        best_x = monitor_reductions.pick(point.value > walk.best_value, walk.x, best_x)
      return walk._replace(
        value=point.value,
        best_x=best_x,
        best_value=jnp.fmax(walk.best_value, point.value),
        memory=monitor_reductions.add(self.fold, walk.memory, point.seen, index),
      )

    def body(index, walk):
      point = evaluate(walk.x, gradient=self.solver.needs_gradient)
      walk = note(walk, point, index)
      x, state = self.solver.step(problem, index, walk.x, point.value, point.grad, walk.state)
      return walk._replace(x=place(x), state=state)

    walk = _Walk(x, state, low, x if track else None, low, self._memory(monitor, x))
    walk = lax.fori_loop(0, self.num_steps, body, walk)
    if self.score_last:
      walk = note(walk, evaluate(walk.x, gradient=False), self.num_steps)
    if self.select == 'best':
      walk = walk._replace(value=walk.best_value)
    return walk._replace(state=None)

  def _memory(self, monitor, x):
    if monitor is None:
      return None
    return monitor_reductions.init(
      self.fold, jax.eval_shape(monitor, x), self.num_steps + self.score_last
    )

  def _merge(self, kept, new):
    above = lambda value, other: (value > other) | jnp.isnan(other)
    better = above(new.value, kept.value)
    best_x = kept.best_x
    if best_x is not None:
      best_x = monitor_reductions.pick(above(new.best_value, kept.best_value), new.best_x, best_x)
    return _Walk(
      x=monitor_reductions.pick(better, new.x, kept.x),
      state=None,
      value=jnp.where(better, new.value, kept.value),
      best_x=best_x,
      best_value=jnp.fmax(kept.best_value, new.best_value),
      memory=monitor_reductions.merge(self.fold, kept.memory, new.memory, better),
    )

  def _result(self, walk, centre, dtype):
    x = _rounded(walk.best_x if self.select == 'best' else walk.x, dtype)
    both = self.keep == 'both'
    result = AttackResult(
      x=x.astype(dtype),
      value=-walk.value if self.minimise else walk.value,
      distance=self.threat.distance(x, centre),
      monitored=walk.memory,
      last_x=walk.x.astype(dtype) if both else None,
      best_x=walk.best_x.astype(dtype) if both else None,
    )
    return lax.stop_gradient(result)


def _rounded(x, dtype):
  """x with the precision of `dtype`, so that what is said of it is true once it is cast.

  A mere cast there and back may be dropped by the compiler.
  """
  facts = jnp.finfo(dtype)
  if facts.bits >= jnp.finfo(x.dtype).bits:
    return x
  return lax.reduce_precision(x, exponent_bits=facts.nexp, mantissa_bits=facts.nmant)


def example_keys(key, batch):
  """[b] keys: `fold_in(key, i)` of one key, or the [b] keys that were given."""
  key = jnp.asarray(key)
  if key.dtype == jnp.uint32 and key.ndim in (1, 2):
    key = jax.random.wrap_key_data(key)
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    raise errors.UserError(f'key must come from jax.random.key(seed), not be {key.dtype}')
  if key.ndim == 0:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
  if key.shape != (batch,):
    raise errors.UserError(f'key must be one key or {batch} keys, one per example; got {key.shape}')
  return key


def _check_eps(eps):
  """A radius below 0, or none at all, is a mistake; one that is traced cannot be looked at."""
  if isinstance(eps, jax.core.Tracer):
    return
  wrong = [value for value in np.asarray(eps).tolist() if not value >= 0]
  if wrong:
    raise errors.UserError(f'eps must be 0 or more, got {wrong[0]:.6g}')


def _checked(monitor):
  if monitor is None:
    return None
  return lambda x: contracts.batched(monitor(x), x.shape[0], what='the monitor')


def _evaluator(objective, monitor, sense):
  """(x, gradient=...) -> _Point, with objective and monitor in one forward pass."""

  def values(x):
    value = contracts.per_example(objective(x), x.shape[0], what='the objective')
    return sense * value.astype(x.dtype)

  def look(x):
    return None if monitor is None else monitor(x)

  def total(x):
    value = values(x)
    # A sum, never a mean: no example's gradient may depend on how many neighbours it has.
    return jnp.sum(value), (value, look(x))

  def evaluate(x, *, gradient):
    if not gradient:
      return _Point(values(x), None, look(x))
    (_, (value, seen)), grad = jax.value_and_grad(total, has_aux=True)(x)
    return _Point(value, grad, seen)

  return evaluate

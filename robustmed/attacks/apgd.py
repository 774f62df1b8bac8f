"""APGD (Croce & Hein 2020, algorithm 1): PGD that finds its own step sizes, one per example."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from robustmed.attacks import engine, monitor_reductions
from robustmed.attacks.threat import Threat, column
from robustmed.types import Array

_INERTIA = 0.75  # alpha: weight of the new step against the previous move
_PROGRESS = 0.75  # rho: share of steps that must improve between two checkpoints


class _State(NamedTuple):
  previous: Array  # the iterate before this one, [b, ...]
  value: Array  # its objective, [b]
  best_x: Array
  best_grad: Array
  best_value: Array
  step_size: Array  # [b]
  rises: Array  # improving steps since the last checkpoint, [b]
  mark_value: Array  # best value at the last checkpoint, [b]
  halved: Array  # was the step halved there, [b] bool


def checkpoints(num_steps):
  """The iterations at which steps may be halved: ceil(p_j * num_steps), p = 0.22, 0.41, ..."""
  shares, gap = [0.0, 0.22], 0.22
  while shares[-1] <= 1.0:
    gap = max(gap - 0.03, 0.06)
    shares.append(shares[-1] + gap)
  marks = {int(np.ceil(round(share * num_steps, 9))) for share in shares[1:]}
  return sorted(mark for mark in marks if 0 < mark < num_steps)


def _init(problem, x):
  low = jnp.full_like(problem.eps, -jnp.inf)
  zero = jnp.zeros_like(problem.eps)
  state = _State(
    previous=x,
    value=low,
    best_x=x,
    best_grad=jnp.zeros_like(x),
    best_value=low,
    step_size=2.0 * problem.eps,
    rises=zero,
    mark_value=low,
    halved=zero > 1,
  )
  return x, state


def _step(problem, index, x, value, grad, state):
  threat, centre, eps = problem.threat, problem.centre, problem.eps
  place = lambda x: threat.project(x, centre, eps)
  better = value > state.best_value
  best_x = monitor_reductions.pick(better, x, state.best_x)
  best_grad = monitor_reductions.pick(better, grad, state.best_grad)
  best_value = jnp.where(better, value, state.best_value)
  # The start is no step, so it cannot have risen.
  rises = state.rises + ((value > state.value) & (index > 0))

  marks = [0, *checkpoints(problem.num_steps)]
  gaps = np.zeros(problem.num_steps, np.float32)
  gaps[marks[1:]] = np.diff(marks)
  gap = jnp.asarray(gaps)[index]
  at_mark = gap > 0
  stalled = rises < _PROGRESS * gap
  stuck = ~state.halved & (best_value <= state.mark_value)
  halve = at_mark & (stalled | stuck)
  step_size = jnp.where(halve, state.step_size / 2, state.step_size)
  here = monitor_reductions.pick(halve, best_x, x)
  slope = monitor_reductions.pick(halve, best_grad, grad)

  ahead = place(here + column(step_size, x) * threat.direction(slope))
  drift = here + _INERTIA * (ahead - here) + (1 - _INERTIA) * (here - state.previous)
  new = jnp.where(index == 0, ahead, drift)
  return new, _State(
    previous=here,
    value=value,
    best_x=best_x,
    best_grad=best_grad,
    best_value=best_value,
    step_size=step_size,
    rises=jnp.where(at_mark, 0.0, rises),
    mark_value=jnp.where(at_mark, best_value, state.mark_value),
    halved=jnp.where(at_mark, halve, state.halved),
  )


def apgd(
  *,
  norm='linf',
  num_steps=50,
  bounds=None,
  region=None,
  random_start=True,
  restarts=1,
  select='best',
  keep=None,
  fold='last',
  score_last=True,
  minimise=False,
):
  """Ascent with inertia whose step starts at 2 * eps and is halved, per example, when it stalls.

  Then the search goes on from the best point so far. Needs no step size; `select='best'` is the
  published choice. The other arguments are those of `engine.LoopAttack` and `threat.Threat`.
  """
  return engine.LoopAttack(
    threat=Threat(norm, bounds, region),
    solver=engine.Solver(_init, _step),
    num_steps=num_steps,
    random_start=random_start,
    restarts=restarts,
    select=select,
    keep=keep,
    fold=fold,
    score_last=score_last,
    minimise=minimise,
  )

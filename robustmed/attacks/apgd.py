"""APGD (Croce & Hein 2020, algorithm 1): PGD with a step size adapted per example."""

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from robustmed.attacks import engine, monitor_reductions
from robustmed.attacks.threat import Threat, expand_to_rank
from robustmed.types import Array

_MOMENTUM = 0.75  # alpha: weight of the new step against the previous one
_PROGRESS = 0.75  # rho: share of steps that must improve between two checkpoints


class _State(NamedTuple):
  previous: Array  # the iterate before this one, [b, ...]
  value: Array  # its objective, [b]
  best_x: Array
  best_grad: Array
  best_value: Array
  step_size: Array  # [b]
  improved: Array  # improving steps since the last checkpoint, [b]
  checkpoint_value: Array  # best value at the last checkpoint, [b]
  halved: Array  # whether the step was halved there, [b] bool


def checkpoints(num_steps):
  """Returns the iterations that may halve the step: ceil(p_j * num_steps), p = 0.22, 0.41, ..."""
  shares, gap = [0.0, 0.22], 0.22
  while shares[-1] <= 1.0:
    gap = max(gap - 0.03, 0.06)
    shares.append(shares[-1] + gap)
  marks = {int(np.ceil(round(share * num_steps, 9))) for share in shares[1:]}
  return sorted(mark for mark in marks if 0 < mark < num_steps)


def first_step(num_steps):
  """Returns the first step in units of eps: 2 as published, less where few steps can halve it.

  It falls to 1 from 20 steps to 10. A single step has to cross the ball.
  """
  return 2.0 if num_steps == 1 else float(np.clip(num_steps / 10, 1.0, 2.0))


def _init(problem, x, first=None):
  low = jnp.full_like(problem.eps, -jnp.inf)
  zero = jnp.zeros_like(problem.eps)
  state = _State(
    previous=x,
    value=low,
    best_x=x,
    best_grad=jnp.zeros_like(x),
    best_value=low,
    step_size=(first or first_step(problem.num_steps)) * problem.eps,
    improved=zero,
    checkpoint_value=low,
    halved=zero > 1,
  )
  return x, state


def _step(problem, index, x, value, grad, state):
  threat, centre, eps = problem.threat, problem.centre, problem.eps
  project = lambda x: threat.project(x, centre, eps)
  better = value > state.best_value
  best_x = monitor_reductions.where_per_example(better, x, state.best_x)
  best_grad = monitor_reductions.where_per_example(better, grad, state.best_grad)
  best_value = jnp.where(better, value, state.best_value)
  # No step has led to the start, so it does not count.
  improved = state.improved + ((value > state.value) & (index > 0))

  marks = [0, *checkpoints(problem.num_steps)]
  gaps = np.zeros(problem.num_steps, np.float32)
  gaps[marks[1:]] = np.diff(marks)
  gap = jnp.asarray(gaps)[index]
  at_checkpoint = gap > 0
  stalled = improved < _PROGRESS * gap
  stuck = ~state.halved & (best_value <= state.checkpoint_value)
  halve = at_checkpoint & (stalled | stuck)
  step_size = jnp.where(halve, state.step_size / 2, state.step_size)
  base = monitor_reductions.where_per_example(halve, best_x, x)
  base_grad = monitor_reductions.where_per_example(halve, best_grad, grad)

  plain = project(base + expand_to_rank(step_size, x) * threat.direction(base_grad))
  moved = base + _MOMENTUM * (plain - base) + (1 - _MOMENTUM) * (base - state.previous)
  new = jnp.where(index == 0, plain, moved)
  return new, _State(
    previous=base,
    value=value,
    best_x=best_x,
    best_grad=best_grad,
    best_value=best_value,
    step_size=step_size,
    improved=jnp.where(at_checkpoint, 0.0, improved),
    checkpoint_value=jnp.where(at_checkpoint, best_value, state.checkpoint_value),
    halved=jnp.where(at_checkpoint, halve, state.halved),
  )


def apgd(
  *,
  norm='linf',
  num_steps=50,
  bounds=None,
  region=None,
  max_change=None,
  random_start=True,
  restarts=1,
  select='best',
  keep=None,
  fold='last',
  score_last=True,
  minimise=False,
):
  """Returns ascent with momentum whose step, first 2 * eps, is halved per example when it stalls.

  2 to 19 steps begin with less, see `first_step`. A halved step starts from the best point so
  far. No step size is given; `select='best'` is the published choice. The other arguments are those
  of `engine.LoopAttack` and `threat.Threat`.
  """
  return engine.LoopAttack(
    threat=Threat(norm, bounds, region, max_change),
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


def sea(**settings):
  """Returns APGD at 2 eps, then 1.5 eps, then eps, each from what the one before found.

  Croce et al. 2024, 'Towards reliable evaluation and fast training of robust semantic segmentation
  models', SEA: 30, 30 and 40 % of the steps. With the objectives masked_ce, balanced_ce and js, the
  worst per image of which is their ensemble. Takes the settings of `apgd`.
  """
  solver = engine.Solver(functools.partial(_init, first=2.0), _step)  # in every stage, as published
  stages = ((0.3, 2.0), (0.3, 1.5), (0.4, 1.0))
  return dataclasses.replace(apgd(**settings), solver=solver, stages=stages)

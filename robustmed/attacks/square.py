"""Square attack (Andriushchenko et al. 2020): random windows, no gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks import engine, monitor_reductions
from robustmed.attacks.threat import Threat
from robustmed.types import Array

STARTS = ('uniform', 'stripes')
# Shares of the run after which the window's share of the image is halved.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


class _State(NamedTuple):
  x: Array  # the accepted point, [b, ...]
  value: Array  # its objective, [b]


def _spatial(shape):
  """Returns the spatial axes of one example; a code [d] counts as one spatial axis."""
  return shape[:-1] if len(shape) > 1 else shape


def sides(spatial, num_steps, share):
  """Returns the window's sides at every step, [num_steps, number of spatial axes]."""
  progress = np.arange(num_steps) / max(num_steps, 1)
  part = share * 0.5 ** np.sum(progress[:, None] >= np.asarray(_HALVINGS), axis=1)
  side = np.round((part * np.prod(spatial)) ** (1 / len(spatial)))
  return np.clip(side[:, None], 1, np.asarray(spatial)).astype(np.int32)


def _window(key, side, shape):
  """Returns the mask of a random box of the given sides in one example."""
  spatial = _spatial(shape)
  keys = jax.random.split(key, len(spatial))
  inside = jnp.ones(shape, bool)
  for axis, (one, size) in enumerate(zip(keys, spatial)):
    first = jax.random.randint(one, (), 0, size - side[axis] + 1)
    place = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    inside &= (place >= first) & (place < first + side[axis])
  return inside


def _signs(key, shape, dtype):
  """Returns one random sign per channel, the same at every position."""
  width = (1,) * len(_spatial(shape)) + shape[len(_spatial(shape)) :]
  return jnp.broadcast_to(jax.random.rademacher(key, width, dtype), shape)


def _propose_linf(key, side, delta, eps):
  """Sets the change within a random window to +-eps."""
  where, sign = jax.random.split(key)
  window = _window(where, side, delta.shape)
  return jnp.where(window, eps * _signs(sign, delta.shape, delta.dtype), delta)


def _propose_l2(key, side, delta, eps):
  """Zeroes the change in one window; a second one gets its norm and what was unused of eps."""
  take, give, sign = jax.random.split(key, 3)
  window = _window(take, side, delta.shape)
  rest = jnp.where(window | _window(give, side, delta.shape), 0.0, delta)
  old = jnp.where(window, delta, 0.0)
  length = lambda values: jnp.sqrt(jnp.sum(values * values))
  unit = lambda values: values / jnp.maximum(length(values), 1e-12)
  fresh = jnp.where(window, _signs(sign, delta.shape, delta.dtype), 0.0)
  budget = jnp.sqrt(jnp.maximum(eps * eps - length(rest) ** 2, 0.0))
  return rest + budget * unit(unit(fresh) + unit(old))


_PROPOSALS = {'linf': _propose_linf, 'l2': _propose_l2}


def _stripes(key, like, eps):
  """Returns a change of +-eps, the same along the first axis of one example."""
  shape = (1, *like.shape[1:]) if like.ndim > 1 else like.shape
  return jnp.broadcast_to(eps * jax.random.rademacher(key, shape, like.dtype), like.shape)


def _init(problem, x, striped):
  if striped:
    keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, problem.num_steps)
    x = problem.centre + jax.vmap(_stripes)(keys, problem.centre, problem.eps)
  return x, _State(x, jnp.full_like(problem.eps, -jnp.inf))


def _solver(share, striped):
  def step(problem, index, x, value, grad, state):
    shape = x.shape[1:]
    accepted = value > state.value
    state = _State(
      monitor_reductions.where_per_example(accepted, x, state.x), jnp.fmax(value, state.value)
    )
    table = sides(_spatial(shape), problem.num_steps, share)
    keys = jax.vmap(jax.random.fold_in, (0, None))(problem.keys, index)
    propose = jax.vmap(_PROPOSALS[problem.threat.norm], (0, None, 0, 0))
    delta = propose(keys, jnp.asarray(table)[index], state.x - problem.centre, problem.eps)
    return problem.centre + delta, state

  begin = lambda problem, x: _init(problem, x, striped)
  return engine.Solver(begin, step, needs_gradient=False)


def square(
  *,
  norm='linf',
  num_steps=200,
  share=0.8,
  start='uniform',
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
  """Returns random search over windows of constant change; only better proposals are kept.

  share: the first window's share of the image, halved at `_HALVINGS`. start: 'uniform', a random
  point, or in 'linf' 'stripes', the published +-eps that is the same along the first axis; it needs
  fewer queries on some networks. 'linf' is the published proposal; 'l2' moves norm between two flat
  windows in place of the published pyramids. Works in any number of spatial axes, and on codes
  [b, d].
  """
  errors.lookup(dict.fromkeys(STARTS), start, kind='start')
  striped = start == 'stripes'
  if striped and norm != 'linf':
    raise errors.UserError("start='stripes' is a change of +-eps and needs norm='linf'")
  return engine.LoopAttack(
    threat=Threat(norm, bounds, region, max_change),
    solver=_solver(share, striped),
    num_steps=num_steps,
    random_start=random_start,
    restarts=restarts,
    select=select,
    keep=keep,
    fold=fold,
    score_last=score_last,
    minimise=minimise,
  )

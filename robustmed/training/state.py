"""The state of a training, which a checkpoint holds and a resumed run needs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustmed import types

PyTree = Any


class TrainState(NamedTuple):
  step: jax.Array  # [] int32, steps done
  params: PyTree
  state: PyTree  # other collections, e.g. {'batch_stats': ...}
  optimisers: dict[str, PyTree]  # one state per optimiser name; phases may share one
  memory: PyTree  # the defense's
  # Exponential moving average of all variables, statistics of norm layers included; () if off.
  average: PyTree
  bad_step: jax.Array  # [] int32, the first step with a non-finite loss, -1 if none


def create(
  task: types.Task, defense: types.Defense, optimisers, *, key, num_examples: int, average: bool
) -> TrainState:
  """Returns the initial state; equal keys give equal states on any number of devices."""
  variables = task.init(key)
  params = variables['params']
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    state={name: value for name, value in variables.items() if name != 'params'},
    optimisers={name: optimiser.init(params) for name, optimiser in optimisers.items()},
    memory=defense.init(num_examples),
    average=jax.tree.map(jnp.copy, variables) if average else (),
    bad_step=jnp.full((), -1, jnp.int32),
  )


def variables(state: TrainState) -> PyTree:
  """Returns the variables for evaluation: the moving average where there is one."""
  return state.average or {'params': state.params, **state.state}

"""The cost of a run, from shapes alone: nothing is computed and no data is needed."""

import inspect
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from robustmed import types
from robustmed.evaluation import grid
from robustmed.ops import conv

PyTree = Any


def parameter_count(task: types.Task) -> int:
  """Number of trainable parameters of a task's network."""
  variables = jax.eval_shape(task.init, jax.random.key(0))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))


def multiply_adds(task: types.Task) -> int:
  """Multiply-adds of one example's forward pass in convolutions and dense layers, no bias.

  Zeros inserted by strides or transposed convolutions, and products with constant matrices (sums
  over a norm's groups, interpolation), are not counted.
  """
  return _count(_forward_jaxpr(task), _multiply_adds_of)


def activation_bytes(task: types.Task) -> int:
  """Bytes of all intermediate values of one example's forward pass.

  An upper bound of what a gradient stores. Blocks under `jax.checkpoint` count with their results,
  and the largest one in full, for its recomputation.
  """
  blocks = [0]

  def of(eqn, _):
    if _is_checkpoint(eqn):
      blocks.append(_count(eqn.params['jaxpr'], of))
    return sum(_nbytes(out.aval) for out in eqn.outvars)

  return _count(_forward_jaxpr(task), of, whole=_is_checkpoint) + max(blocks)


def device_bytes(
  task: types.Task, *, batch_per_device: int, optimiser_slots: int, copies: float
) -> int:
  """Estimated peak of one train step on one device: weights, gradient, optimiser, activations."""
  weights = 4 * parameter_count(task) * (2 + optimiser_slots)
  return int(weights + copies * batch_per_device * activation_bytes(task))


def training_gradients(cost: types.Cost, *, steps: int, batch_size: int) -> int:
  """Gradient evaluations of a training: attack gradients plus training passes."""
  return round(steps * batch_size * (cost.gradients + cost.passes))


def evaluation_cells(
  probes: Mapping[str, Any], *, num_examples: int
) -> dict[tuple[str, float], int]:
  """(attack, eps) -> gradient evaluations, for one network's row of the grid.

  The clean cell costs one gradient per example, which its diagnostics need.
  """
  attacked = {
    (name, eps): num_examples * probe.attack.num_gradients
    for name, probe in probes.items()
    for eps in probe.levels
    if eps > 0
  }
  return {(grid.CLEAN, 0.0): num_examples, **attacked}


def _forward_jaxpr(task: types.Task):
  variables = jax.eval_shape(task.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *task.image_shape), jnp.float32)
  # The fast forms of convolutions multiply zeros that the papers do not count. The function under
  # the jit is traced through a lambda, so that no cache is read or written.
  predict = inspect.unwrap(task.predict)
  with conv.using('native'):
    return jax.make_jaxpr(lambda variables, image: predict(variables, image))(
      variables, image
    ).jaxpr


def _is_checkpoint(eqn) -> bool:
  return eqn.primitive.name.startswith(('remat', 'checkpoint'))


def _count(jaxpr, of, fixed=(), whole=lambda eqn: False) -> int:
  """Sum of of(equation, fixed variables); `fixed` are the arguments that are constants.

  Nested programs count in place of the equation that holds them, unless `whole(equation)`.
  """
  fixed, total = {*fixed, *jaxpr.constvars}, 0
  for eqn in jaxpr.eqns:
    constant = [isinstance(var, core.Literal) or var in fixed for var in eqn.invars]
    if all(constant):
      fixed.update(eqn.outvars)
    inner = [
      getattr(value, 'jaxpr', value)
      for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda v: hasattr(v, 'eqns') or hasattr(v, 'jaxpr')
      )
      if hasattr(value, 'eqns') or hasattr(value, 'jaxpr')
    ]
    inner = [] if whole(eqn) else inner
    for sub in inner:
      same = len(sub.invars) == len(eqn.invars)  # not so for branches and loop conditions
      total += _count(sub, of, itertools.compress(sub.invars, constant) if same else (), whole)
    if not inner:
      total += of(eqn, fixed)
  return total


def _nbytes(aval) -> int:
  return (
    math.prod(getattr(aval, 'shape', ())) * np.dtype(getattr(aval, 'dtype', np.float32)).itemsize
  )


def _multiply_adds_of(eqn, fixed) -> int:
  name = eqn.primitive.name
  if name == 'dot_general' and fixed.isdisjoint(eqn.invars):
    ((contract, _), _) = eqn.params['dimension_numbers']
    shape = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contract)
  if name == 'conv_general_dilated':
    numbers = eqn.params['dimension_numbers']
    kernel = eqn.invars[1].aval.shape
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    # Papers do not count the zeros that dilation inserts into the input.
    dilation = math.prod(eqn.params['lhs_dilation'])
    return math.prod(eqn.outvars[0].aval.shape) * per_output // dilation
  return 0

"""The cost of a run, from shapes alone: nothing is computed and no data is needed."""

import inspect
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

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


def device_bytes(task: types.Task, *, batch_per_device: int, slots: int, copies: float) -> int:
  """Estimated peak of one train step on one device: weights, gradient, optimiser, activations.

  slots: copies of the weights beside them and their gradient.
  """
  weights = 4 * parameter_count(task) * (2 + slots)
  return int(weights + copies * batch_per_device * activation_bytes(task))


NOTHING = types.Cost(passes=0)


class Part(NamedTuple):
  """The passes of one network."""

  task: types.Task
  cost: types.Cost
  batch_size: int  # about that of its passes

  @property
  def multiply_adds(self) -> float:
    return forwards(self.cost) * multiply_adds(self.task)


class Work:
  """Passes through the networks of a run, counted by network and kind."""

  def __init__(self):
    self.parts: dict[int, Part] = {}

  def add(
    self, task: types.Task, cost: types.Cost, times: float = 1.0, *, batch_size: int = 1
  ) -> 'Work':
    """Counts `cost` so many times, in batches of that size; returns itself."""
    if times and any(cost[:3]):
      had = self.parts.get(id(task.predict), Part(task, NOTHING, batch_size))
      total = (old + times * new for old, new in zip(had.cost[:3], cost[:3]))
      self.parts[id(task.predict)] = had._replace(cost=types.Cost(*total))
    for other, its in cost.others:
      self.add(other, its, times, batch_size=batch_size)
    return self

  def join(self, other: 'Work', times: float = 1.0) -> 'Work':
    """Counts all of `other` so many times; returns itself."""
    for part in other.parts.values():
      self.add(part.task, part.cost, times, batch_size=part.batch_size)
    return self

  @property
  def passes(self) -> int:
    """All passes of all networks, whatever their kind."""
    return sum(self.by_kind().values())

  def by_kind(self) -> dict[str, int]:
    """{kind: passes of all networks}."""
    each = [part.cost._asdict() for part in self.parts.values()]
    return {kind: round(sum(cost[kind] for cost in each)) for kind in types.Cost._fields[:3]}

  def multiply_adds(self) -> float:
    """Multiply-adds of all passes."""
    return sum(part.multiply_adds for part in self.parts.values())


def forwards(cost: types.Cost) -> float:
  """How many forward passes are as much work: 2 an input gradient, 3 a training pass."""
  return 2 * cost.gradients + cost.forwards + 3 * cost.passes


def padded(count: int, batch_size: int) -> int:
  """The examples of a split in batches of at most `batch_size`, with the padding of the last."""
  size = max(1, min(count, batch_size))
  return -(-count // size) * size


def scored(count: int) -> types.Cost:
  """Scoring so many images in the grid: a gradient each, of which the diagnostics are made."""
  return types.Cost(gradients=count, passes=0)


def attacked(attack: types.Attack, count: int, *, scores: int = 1) -> types.Cost:
  """An attack on so many images, each of which is scored `scores` times."""
  gradients = count * (attack.num_gradients + scores)
  return types.Cost(gradients, forwards=count * attack.num_forwards, passes=0)


def training(arm: Any, task: types.Task, *, examples: int) -> Work:
  """The training of an `experiment.Arm`, and what it takes from finished arms before that.

  examples: those of the training split.
  """
  steps, size = arm.train['steps'], arm.train['batch_size']
  work = Work().add(task, arm.defense.cost, steps * size, batch_size=size)
  return work.add(task, arm.prepared.cost(examples), batch_size=size)


def evaluation_cells(
  probes: Mapping[str, Any], *, num_examples: int
) -> dict[tuple[str, float], types.Cost]:
  """(attack, eps) -> its cost, for one network's row of the grid."""
  cells = {(grid.CLEAN, 0.0): scored(num_examples)}
  for name, probe in probes.items():
    own = attacked(probe.attack, num_examples)
    cells |= {(name, eps): own for eps in probe.levels if eps > 0}
  return cells


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

"""An ONNX graph as a pure function of its weights and inputs."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from robustmed import errors
from robustmed.onnx import elementwise, layout, reading, table
from robustmed.onnx import node as nodes


class Input(NamedTuple):
  """What a graph says of one input: axes are a size, a name where any size fits, or unknown."""

  name: str
  shape: tuple[int | str | None, ...] | None
  dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
  """A network `graph(variables, *inputs)`: one array, or a tuple where the graph has more outputs.

  variables: the floating initialisers by name. inputs: in the order and channels-first layout of
  the file. Pure, traceable, differentiable by both in reverse mode. Inputs whose values decide
  shapes (`static_inputs`) must be known: numpy arrays under `jit`. A graph that was exported for a
  fixed batch takes multiples of it, mapped over.
  """

  path: str
  variables: Mapping[str, np.ndarray]
  inputs: tuple[Input, ...]
  outputs: tuple[str, ...]
  nodes: tuple[nodes.Node, ...]
  constants: Mapping[str, np.ndarray]
  static_inputs: frozenset[str]

  def __call__(self, variables, *inputs):
    values = self._checked(inputs)
    times = self._times(values)
    if times == 1:
      found = self._run(variables, values)
    else:
      found = self._mapped(variables, values, times)
    return found[0] if len(found) == 1 else found

  def _checked(self, inputs):
    if len(inputs) != len(self.inputs):
      names = ', '.join(known.name for known in self.inputs)
      raise errors.UserError(
        f'{self.path} takes {len(self.inputs)} inputs ({names}), not {len(inputs)}'
      )
    values = {}
    for known, value in zip(self.inputs, inputs, strict=True):
      if known.name in self.static_inputs or known.dtype == np.dtype(object):
        value = nodes.concrete(value, f'the input {known.name!r} of {self.path}')
      else:
        value = jnp.asarray(value)
      if known.dtype == np.dtype(object):
        values[known.name] = value.astype(object)
        continue
      wanted = jax.dtypes.canonicalize_dtype(known.dtype)
      if jax.dtypes.canonicalize_dtype(value.dtype) != wanted:
        # Weights and image may be widened together, to compare gradients in float64.
        both_float = all(jnp.issubdtype(kind, jnp.floating) for kind in (value.dtype, wanted))
        if not both_float:
          raise errors.UserError(
            f'the input {known.name!r} of {self.path} must be {wanted}, not {value.dtype}'
          )
      self._check_shape(known, value.shape)
      values[known.name] = value
    return values

  def _check_shape(self, known, shape):
    if known.shape is None:
      return
    fits = len(shape) == len(known.shape) and all(
      not isinstance(wanted, int) or wanted == size
      for wanted, size in zip(known.shape[1:], shape[1:])
    )
    if not fits:
      wanted = ['any' if size is None else size for size in known.shape]
      raise errors.UserError(
        f'the input {known.name!r} of {self.path} must have shape {wanted}, not {list(shape)}; '
        'export the network with dynamic axes to change it'
      )

  def _times(self, values):
    """Returns how often the batch that the graph is made for fits into the given one."""
    times = set()
    for known in self.inputs:
      if known.shape and isinstance(known.shape[0], int):
        size = values[known.name].shape[0]
        if known.name in self.static_inputs or size == known.shape[0]:
          times.add(1)
        elif known.shape[0] and size and size % known.shape[0] == 0:
          times.add(size // known.shape[0])
        else:
          raise errors.UserError(
            f'{self.path} is made for batches of {known.shape[0]}, which {size} is no multiple of'
          )
    if len(times - {1}) > 1 or (len(times) > 1 and not self.static_inputs):
      raise errors.UserError(f'the inputs of {self.path} have batches of different sizes')
    return max(times, default=1)

  def _mapped(self, variables, values, times):
    fixed = {name: value for name, value in values.items() if name in self.static_inputs}
    split = {
      name: value.reshape(times, value.shape[0] // times, *value.shape[1:])
      for name, value in values.items()
      if name not in fixed
    }
    found = jax.vmap(lambda part: self._run(variables, {**fixed, **part}))(split)
    return tuple(value.reshape(-1, *value.shape[2:]) for value in found)

  def _run(self, variables, values):
    missing = sorted(set(self.variables) - set(variables))
    if missing:
      raise errors.UserError(f'the variables of {self.path} lack {", ".join(missing[:4])}')
    weights = {name: jnp.asarray(variables[name]) for name in self.variables}
    values = {**self.constants, **weights, **values}
    for node in self.nodes:
      values.update(zip(node.outputs, run(node, values)))
    # A type that JAX has no name for stays as numpy has it.
    plain = [layout.plain(values[name]) for name in self.outputs]
    return tuple(jnp.asarray(value) if value.dtype.kind not in 'OUS' else value for value in plain)


def run(node, values):
  """Returns the outputs of a node, given the values of its inputs by name."""
  operator = table.OPERATORS[node.op_type]
  given = [values[name] if name else None for name in node.inputs]
  known = all(isinstance(value, np.ndarray) for value in given if value is not None)
  try:
    with np.errstate(all='ignore'):
      if operator.layout == table.ELEMENTWISE and not elementwise.is_old(node):
        present = [value for value in given if value is not None]
        arrays, wrap = layout.aligned(present) if present else ([], lambda array: array)
        arrays = iter(arrays)
        given = [None if value is None else next(arrays) for value in given]
      elif operator.layout != table.OWN:
        given, wrap = [layout.plain(value) for value in given], lambda array: array
      else:
        wrap = lambda array: array
      if known and not operator.numpy:
        with jax.ensure_compile_time_eval():
          given = [None if value is None else jnp.asarray(value) for value in given]
          found = operator.function(node, *given)
          found = found if type(found) is tuple else (found,)
          return [np.asarray(layout.plain(value)) for value in found]
      found = operator.function(node, *given)
  except (TypeError, ValueError, IndexError, KeyError, ArithmeticError) as error:
    shapes = [None if value is None else list(value.shape) for value in given]
    raise errors.UserError(f'{node} cannot take inputs of shapes {shapes}: {error}') from error
  found = found if type(found) is tuple else (found,)
  return [np.asarray(value) if isinstance(value, np.generic) else wrap(value) for value in found]


def load(path) -> Graph:
  """Returns the graph in an ONNX file; constants and what follows from them are computed here."""
  return build(reading.read(path), path)


def build(model: onnx.ModelProto, path='the model') -> Graph:
  """Returns the graph of a model that has been read; `path` is what errors call it."""
  path = pathlib.Path(path)
  opset = reading.opset(model, path)
  reading.refuse_unknown(model, table.OPERATORS, path)
  arrays = {tensor.name: reading.array(tensor, path) for tensor in model.graph.initializer}
  inputs = tuple(_input(value, path) for value in model.graph.input if value.name not in arrays)
  every = [
    nodes.Node(
      node.op_type,
      reading.label(node, index),
      tuple(node.input),
      tuple(node.output),
      reading.attributes(node, path),
      opset,
    )
    for index, node in enumerate(model.graph.node)
  ]
  _check_order(every, {*arrays, *(known.name for known in inputs)}, path)
  outputs = tuple(value.name for value in model.graph.output)
  _check_outputs(outputs, every, {*arrays, *(known.name for known in inputs)}, path)
  static = _static(every)
  variables = {
    name: array
    for name, array in arrays.items()
    if jnp.issubdtype(array.dtype, jnp.floating) and name not in static
  }
  constants = {name: array for name, array in arrays.items() if name not in variables}
  kept = _fold(every, constants)
  used = {name for node in kept for name in node.inputs} | set(outputs)
  return Graph(
    path=str(path),
    variables={name: array for name, array in variables.items() if name in used},
    inputs=inputs,
    outputs=outputs,
    nodes=tuple(kept),
    constants={name: array for name, array in constants.items() if name in used},
    static_inputs=frozenset(
      known.name
      for known in inputs
      if known.name in static
      and (known.dtype.kind not in 'fV' or (known.shape is not None and len(known.shape) <= 1))
    ),
  )


def _input(value, path):
  if not value.type.HasField('tensor_type'):
    raise errors.UserError(f'{path}: the input {value.name!r} is no tensor')
  kind = value.type.tensor_type
  try:
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
  except KeyError as error:
    raise errors.UserError(f'{path}: the input {value.name!r} has no known type') from error
  shape = None
  if kind.HasField('shape'):
    shape = tuple(
      (axis.dim_value if axis.dim_value > 0 else None)  # some exporters write -1 for any size
      if axis.HasField('dim_value')
      else axis.dim_param or None
      for axis in kind.shape.dim
    )
  return Input(value.name, shape, dtype)


def _check_order(every, known, path):
  """Raises where a node reads what no earlier one gives, or gives a name for the second time."""
  known = set(known)
  for node in every:
    for name in node.inputs:
      if name and name not in known:
        raise errors.UserError(
          f'{path}: {node} reads {name!r}, which nothing before it gives; the graph is cyclic, '
          'unsorted or cut off'
        )
    for name in node.outputs:
      if name and name in known:
        raise errors.UserError(f'{path}: {node} gives {name!r}, which already exists')
      known.add(name)
  return known


def _check_outputs(outputs, every, known, path):
  known = {name for node in every for name in node.outputs} | known
  missing = [name for name in outputs if name not in known]
  if missing or not outputs:
    raise errors.UserError(f'{path}: no node gives the output {", ".join(missing) or "at all"}')


def _static(every):
  """Returns the names of all values that shapes follow from, other than shapes themselves."""
  static = set()
  for node in reversed(every):
    operator = table.OPERATORS[node.op_type]
    static.update(node.inputs[i] for i in operator.concrete if i < len(node.inputs))
    follows = operator.numpy and node.op_type not in ('Shape', 'Size')
    if follows and not static.isdisjoint(node.outputs):
      static.update(node.inputs)
  return static - {''}


def _fold(every, constants):
  """Computes the nodes of constants alone; adds their outputs to `constants`, returns the rest."""
  kept = []
  for node in every:
    if all(name in constants for name in node.inputs if name):
      constants.update(zip(node.outputs, run(node, constants)))
    else:
      kept.append(node)
  return kept

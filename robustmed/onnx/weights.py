"""Which initialisers of a graph are trained, and the file with new ones in their place."""

import collections
from collections.abc import Mapping

import numpy as np
import onnx

from robustmed import errors
from robustmed.onnx import graph as graphs
from robustmed.onnx import reading

# operator -> operands that are weights where they are initialisers
_WEIGHTS = {
  'Add': (0, 1),
  'BatchNormalization': (1, 2),
  'Conv': (1, 2),
  'ConvTranspose': (1, 2),
  'Einsum': (0, 1),
  'Gather': (0,),
  'Gemm': (0, 1, 2),
  'GroupNormalization': (1, 2),
  'InstanceNormalization': (1, 2),
  'LayerNormalization': (1, 2),
  'MatMul': (0, 1),
  'Mul': (0, 1),
  'PRelu': (1,),
  'RMSNormalization': (1,),
}
_SCALARS = ('Add', 'Mul')  # where a single number is a constant, such as an epsilon
_PASSED = ('Cast', 'Concat', 'Expand', 'Identity', 'Reshape', 'Slice', 'Squeeze', 'Transpose')
_PASSED += ('Unsqueeze',)
_STATISTICS = ('BatchNormalization', (3, 4))


def frozen(graph: graphs.Graph) -> dict[str, str]:
  """Returns {name: why} of the graph's variables that are not trained.

  These are running statistics of batch normalisation, which an inference graph leaves as stored,
  numbers that operators take as constants, and what is not of 32 bits.
  """
  uses = collections.defaultdict(list)
  for node in graph.nodes:
    for place, name in enumerate(node.inputs):
      uses[name].append((node, place))
  return {
    name: why
    for name, array in graph.variables.items()
    if (why := _why_frozen(np.asarray(array), _followed(name, uses)))
  }


def _followed(name, uses):
  """Returns (operator, operand) of every use, behind operators that only move values."""
  found, names = [], [name]
  while names:
    for node, place in uses[names.pop()]:
      if node.op_type in _PASSED:
        names += node.outputs
      else:
        found.append((node.op_type, place))
  return found


def _why_frozen(array, uses) -> str:
  if any(kind == _STATISTICS[0] and place in _STATISTICS[1] for kind, place in uses):
    return 'running statistic of BatchNormalization'
  others = sorted({kind for kind, place in uses if place not in _WEIGHTS.get(kind, ())})
  if array.size == 1:
    others += sorted({kind for kind, _ in uses if kind in _SCALARS})
  if others or not uses:
    return f'constant of {", ".join(others) or "no operator"}'
  return '' if array.dtype == np.float32 else f'stored as {array.dtype}'


def replaced(path, arrays: Mapping[str, np.ndarray]) -> bytes:
  """Returns the file at `path` with `arrays` in place of the initialisers of these names.

  All else is as it was, but that weights of other files lie inside.

  Raises:
    UserError: the file has no such initialiser, one of another shape, or is too large with them.
  """
  model = reading.read(path, inline=False)
  left = dict(arrays)
  for tensor in model.graph.initializer:
    if tensor.name not in left:
      continue
    array, dtype = left.pop(tensor.name), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if tuple(tensor.dims) != np.shape(array):
      raise errors.UserError(
        f'{path}: {tensor.name!r} has shape {list(tensor.dims)}, its new weights '
        f'{list(np.shape(array))}'
      )
    for field in ('float_data', 'int32_data', 'double_data', 'uint64_data'):
      tensor.ClearField(field)
    little = np.asarray(array).astype(dtype).astype(np.dtype(dtype).newbyteorder('<'))
    tensor.raw_data = little.tobytes()
  if left:
    raise errors.UserError(f'{path}: has no initialiser {sorted(left)[0]!r}')
  try:
    return model.SerializeToString(deterministic=True)
  except (ValueError, RuntimeError) as error:  # protobuf holds at most 2 GiB
    raise errors.UserError(f'{path}: cannot be written in one file ({error})') from error

"""Networks in ONNX files."""

import functools
import hashlib
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from robustmed import errors, onnx
from robustmed.networks import network
from robustmed.process import files

_LAST = {'Softmax': 'softmax', 'LogSoftmax': 'none', 'Sigmoid': 'sigmoid'}
_LOADING = """import onnxruntime
session = onnxruntime.InferenceSession('FILE')
outputs = session.run(None, {session.get_inputs()[0].name: image})"""
_LARGEST = 2**31  # numbers of an image
_PASSED = ('Identity', 'Cast', 'Reshape', 'Transpose', 'Squeeze', 'Unsqueeze')


def load(path: pathlib.Path) -> network.Network:
  """Returns the network of a file; of several outputs the first."""
  graph = onnx.load(path)
  free = [known for known in graph.inputs if known.name not in graph.static_inputs]
  if len(free) != 1 or len(graph.inputs) != 1:
    names = ', '.join(known.name for known in graph.inputs)
    raise errors.UserError(f'{path} takes the inputs {names}; a network takes one image')
  image = graph.inputs[0]
  if not image.shape or len(image.shape) not in (4, 5) or not isinstance(image.shape[1], int):
    raise errors.UserError(
      f'{path}: the input {image.name!r} has the shape {image.shape}; images in 2D or 3D are '
      '[batch, channels, *sides] with a known number of channels'
    )
  if math.prod(size for size in image.shape[1:] if isinstance(size, int)) > _LARGEST:
    raise errors.UserError(f'{path}: takes images of {list(image.shape)}, more than memory holds')
  if image.dtype.kind != 'f':
    raise errors.UserError(f'{path}: the input {image.name!r} is {image.dtype}, no float image')
  kind = jnp.dtype(image.dtype)

  def predict(variables, pixels):
    outputs = graph(variables, jnp.moveaxis(pixels, -1, 1).astype(kind))
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    return (jnp.moveaxis(first, 1, -1) if first.ndim > 1 else first).astype(jnp.float32)

  return network.Network(
    name=path.name,
    variables={name: np.asarray(array) for name, array in graph.variables.items()},
    predict=predict,
    channels=image.shape[1],
    shape=tuple(size if isinstance(size, int) else None for size in image.shape[2:]),
    digest=hashlib.sha256(path.read_bytes()).hexdigest(),
    format='ONNX',
    activation=_activation(graph),
    frozen=onnx.frozen(graph),
    export=network.Export('.onnx', functools.partial(_write, path), _LOADING),
  )


def _write(source: pathlib.Path, variables: Mapping[str, Any], path: pathlib.Path) -> None:
  """Writes the graph of `source` with these variables as its initialisers."""
  arrays = {name: np.asarray(array) for name, array in variables.items()}
  with files.replacing(path) as temporary:
    temporary.write_bytes(onnx.replaced(source, arrays))


def _activation(graph) -> str:
  """What the last operator before the first output says."""
  maker = {name: node for node in graph.nodes for name in node.outputs}
  node = maker.get(graph.outputs[0])
  while node is not None and node.op_type in _PASSED:
    node = maker.get(node.inputs[0])
  return _LAST.get(node.op_type, 'none') if node is not None else 'none'

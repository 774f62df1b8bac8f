"""The cases that the onnx package brings, run by our interpreter."""

import pathlib
import warnings

import jax
import numpy as np
import onnx
from onnx import numpy_helper

from robustmed import onnx as ours

DATA = pathlib.Path(onnx.__file__).parent / 'backend' / 'test' / 'data'


def node_cases():
  """Returns every node case of the package: model, inputs and wanted outputs."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # their own arithmetic overflows
    from onnx.backend.test.case import node

    return node.collect_testcases(None)


def operators(model):
  """Returns the operators of a model as (domain, name) pairs."""
  return {(node.domain.replace('ai.onnx', ''), node.op_type) for node in model.graph.node}


def arrays(values):
  """Returns values with protobuf tensors read as numpy arrays."""
  return [
    numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    for value in values
  ]


def stored_cases(kind):
  """Yields (name, model, inputs, wanted outputs) of the models in files of one kind."""
  for folder in sorted((DATA / kind).iterdir()):
    model = onnx.load(folder / 'model.onnx')
    for data in sorted(folder.glob('test_data_set_*')):
      read = lambda what, data=data: [
        numpy_helper.to_array(onnx.load_tensor(data / f'{what}_{i}.pb'))
        for i in range(len(list(data.glob(f'{what}_*.pb'))))
      ]
      yield folder.name, model, read('input'), read('output')


def run(model, inputs, name):
  """Returns the outputs of our interpreter as numpy arrays, as wide as the file says."""
  graph = ours.build(model, name)
  with jax.enable_x64(True):
    found = graph(graph.variables, *inputs)
  return [np.asarray(value) for value in (found if isinstance(found, tuple) else (found,))]


def check(found, wanted, *, rtol, atol):
  """Raises AssertionError where outputs differ in type, shape or value from the wanted ones."""
  assert len(found) == len(wanted)
  for ours_, theirs in zip(found, wanted, strict=True):
    theirs = np.asarray(theirs)
    assert ours_.dtype == theirs.dtype, (ours_.dtype, theirs.dtype)
    assert ours_.shape == theirs.shape, (ours_.shape, theirs.shape)
    if theirs.dtype.kind in 'biuOUS':
      np.testing.assert_array_equal(ours_, theirs)
    else:
      wide = lambda value: value.astype(np.float64)
      np.testing.assert_allclose(wide(ours_), wide(theirs), rtol=rtol, atol=atol)

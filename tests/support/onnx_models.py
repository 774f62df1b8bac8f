"""Small ONNX models for tests."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT = onnx.TensorProto.FLOAT


def model(nodes, *, inputs, outputs, weights=None, opset=18, **more):
  """Returns a model; inputs and outputs map names to shapes or (type, shape) pairs."""
  values = lambda table: [
    helper.make_tensor_value_info(name, *(shape if isinstance(shape, tuple) else (FLOAT, shape)))
    for name, shape in table.items()
  ]
  initializer = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
  graph = helper.make_graph(nodes, 'graph', values(inputs), values(outputs), initializer)
  return helper.make_model(
    graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=8, **more
  )


def draw(seed, *shape):
  """Returns normal numbers."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unet(batch='n', height='h', width='w'):
  """Returns a tiny U-Net: strided and transposed convolutions, norms, a skip, a softmax."""
  node = helper.make_node
  nodes = [
    node('Conv', ['x', 'k0', 'b0'], ['c0'], 'conv0', pads=[1, 1, 1, 1]),
    node('InstanceNormalization', ['c0', 's0', 't0'], ['n0'], 'norm0'),
    node('LeakyRelu', ['n0'], ['a0'], 'act0', alpha=0.1),
    node('Conv', ['a0', 'k1'], ['c1'], 'conv1', pads=[1, 1, 1, 1], strides=[2, 2]),
    node('PRelu', ['c1', 'slope'], ['a1'], 'act1'),
    node('ConvTranspose', ['a1', 'k2'], ['u0'], 'up', strides=[2, 2]),
    node('Concat', ['u0', 'a0'], ['j0'], 'join', axis=1),
    node('Conv', ['j0', 'k3'], ['y0'], 'head'),
    node('Softmax', ['y0'], ['y'], 'probabilities', axis=1),
  ]
  weights = {
    'k0': draw(0, 4, 2, 3, 3) / 4,
    'b0': draw(1, 4),
    's0': draw(2, 4),
    't0': draw(3, 4),
    'k1': draw(4, 6, 4, 3, 3) / 6,
    'slope': np.full((6, 1, 1), 0.2, np.float32),
    'k2': draw(5, 6, 4, 2, 2) / 4,
    'k3': draw(6, 3, 8, 1, 1) / 3,
  }
  inputs = {'x': [batch, 2, height, width]}
  return model(nodes, inputs=inputs, outputs={'y': [batch, 3, height, width]}, weights=weights)

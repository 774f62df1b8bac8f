"""Networks with random weights as PyTorch exports them to ONNX: U-Nets and a SegResNet."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper

from robustmed import onnx as graphs

OPSET = 17


class _Writer:
  """Collects nodes and weights; every method returns the name of a value."""

  def __init__(self, rank):
    self.rank, self.nodes, self.weights = rank, [], {}
    self._names = (f'v{i}' for i in itertools.count())
    self._random = np.random.default_rng(0)

  def add(self, op_type, *inputs, **attributes):
    name = next(self._names)
    self.nodes.append(helper.make_node(op_type, inputs, [name], f'{op_type} {name}', **attributes))
    return name

  def weight(self, value):
    name = f'w{len(self.weights)}'
    self.weights[name] = np.asarray(value)
    return name

  def _filled(self, *shape):
    scale = np.sqrt(2 / np.prod(shape[1:]))
    return self.weight((scale * self._random.normal(size=shape)).astype(np.float32))

  def conv(self, x, inputs, features, *, taps=3, stride=1):
    kernel = self._filled(features, inputs, *(taps,) * self.rank)
    options = {'strides': [stride] * self.rank, 'pads': [taps // 2] * (2 * self.rank)}
    return self.add('Conv', x, kernel, self.weight(np.zeros(features, np.float32)), **options)

  def up(self, x, inputs, features):
    """Doubles the grid by a transposed convolution of three taps."""
    kernel, rank = self._filled(inputs, features, *(3,) * self.rank), self.rank
    options = {'strides': [2] * rank, 'pads': [1] * (2 * rank), 'output_padding': [1] * rank}
    return self.add('ConvTranspose', x, kernel, **options)

  def _affine(self, channels):
    return self.weight(np.ones(channels, np.float32)), self.weight(np.zeros(channels, np.float32))

  def instance_norm(self, x, channels):
    """Instance norm and PReLU."""
    slope = self.weight(np.full((1,) * (self.rank + 1), 0.25, np.float32))
    return self.add('PRelu', self.add('InstanceNormalization', x, *self._affine(channels)), slope)

  def group_norm(self, x, channels, groups):
    """Group norm and ReLU; the norm as reshapes around an instance norm, as exporters write it."""
    merged = self.add('Reshape', x, self.weight([0, groups, -1]))
    merged = self.add('InstanceNormalization', merged, *self._affine(groups))
    y = self.add('Reshape', merged, self.add('Shape', x))
    shape = (channels, *(1,) * self.rank)
    y = self.add('Mul', y, self.weight(np.ones(shape, np.float32)))
    return self.add('Relu', self.add('Add', y, self.weight(np.zeros(shape, np.float32))))

  def double(self, x):
    """Doubles the grid by linear interpolation."""
    scales = self.weight(np.asarray([1, 1, *(2,) * self.rank], np.float32))
    mode = {'mode': 'linear', 'coordinate_transformation_mode': 'half_pixel'}
    return self.add('Resize', x, '', scales, **mode)

  def graph(self, y, classes):
    value = lambda name, channels: helper.make_tensor_value_info(
      name, onnx.TensorProto.FLOAT, ['n', channels, *'dhw'[-self.rank :]]
    )
    weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
    graph = helper.make_graph(self.nodes, 'network', [value('x', 1)], [value(y, classes)], weights)
    opset = [helper.make_opsetid('', OPSET)]
    return graphs.build(helper.make_model(graph, opset_imports=opset, ir_version=8))


def unet(rank, *, channels, classes=2):
  """Returns a U-Net with strided and transposed convolutions, two convolutions a level."""
  net, skips, x, width = _Writer(rank), [], 'x', 1
  for level, features in enumerate(channels):
    x = net.instance_norm(net.conv(x, width, features, stride=min(level, 1) + 1), features)
    x = net.instance_norm(net.conv(x, features, features), features)
    skips.append((x, features))
    width = features
  for skip, features in reversed(skips[:-1]):
    x = net.instance_norm(net.up(x, width, features), features)
    x = net.add('Concat', x, skip, axis=1)
    x = net.instance_norm(net.conv(x, 2 * features, features), features)
    width = features
  return net.graph(net.conv(x, width, classes, taps=1), classes)


def segresnet(rank, *, width, blocks=(1, 2, 2, 4), groups=8, classes=2):
  """Returns a SegResNet (Myronenko 2018): residual blocks of group norms, linear upsampling."""
  net, skips = _Writer(rank), []

  def block(x, features):
    y = net.conv(net.group_norm(x, features, groups), features, features)
    y = net.conv(net.group_norm(y, features, groups), features, features)
    return net.add('Add', x, y)

  x, features = net.conv('x', 1, width), width
  for level, count in enumerate(blocks):
    if level:
      x, features = net.conv(x, features, 2 * features, stride=2), 2 * features
    for _ in range(count):
      x = block(x, features)
    skips.append(x)
  for skip in reversed(skips[:-1]):
    x = net.double(net.conv(x, features, features // 2, taps=1))
    features //= 2
    x = block(net.add('Add', x, skip), features)
  x = net.group_norm(x, features, groups)
  return net.graph(net.conv(x, features, classes, taps=1), classes)


# label: (its graph, given a function of its full widths; the side of its image per `size` = 48)
NETWORKS = {
  'UNet 2D': (lambda share: unet(2, channels=[share(16 * 2**i) for i in range(5)]), 256),
  'UNet 3D': (lambda share: unet(3, channels=[share(16 * 2**i) for i in range(4)]), 48),
  'SegResNet': (lambda share: segresnet(3, width=share(8)), 48),
}


def make(label, *, size, batch, width):
  """Returns (graph, image [b, 1, *spatial], labels) of a network at a share of its width.

  size: the side of the cubes; planes have 16 / 3 of it. Sides are multiples of 16.
  """
  network, side = NETWORKS[label]
  graph = network(lambda features: max(8, round(features * width)))
  grid = (side * size // 48 // 16 * 16,) * (len(graph.inputs[0].shape) - 2)
  image = jax.random.normal(jax.random.key(0), (batch, 1, *grid))
  return graph, image, jax.random.randint(jax.random.key(1), (batch, *grid), 0, 2)


def cross_entropy(graph, variables, image, labels):
  """Returns the cross-entropy [b] of a graph's channels, summed over the pixels."""
  logs = jax.nn.log_softmax(graph(variables, image), 1)
  # The gradient of a choice by index would be a scatter.
  wanted = jnp.moveaxis(jax.nn.one_hot(labels, logs.shape[1], dtype=logs.dtype), -1, 1)
  return -(wanted * logs).reshape(image.shape[0], -1).sum(1)

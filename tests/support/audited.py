"""Tiny networks of brightness in ONNX files, for audits."""

import numpy as np
import onnx
from onnx import helper

from support import onnx_models


def brightness(path, *, axes=2, centres=(0.0, 1.0, 2.0), last='', shape=None, channels=1):
  """Writes a network whose channel k is the larger the closer the smoothed image is to centres[k].

  A mean over 3 pixels a side, one strided and one transposed convolution that give 0, a skip: so
  sides must be even. `last`: 'Softmax' or 'Sigmoid'. shape: a fixed one, of the sides.
  """
  node, count = helper.make_node, len(centres)
  kernel = (3,) * axes
  pads = [1] * (2 * axes)
  nodes = [
    node('Conv', ['x', 'mean'], ['smooth'], 'smooth', pads=pads),
    node('Conv', ['smooth', 'down'], ['low'], 'low', pads=pads, strides=[2] * axes),
    node('Relu', ['low'], ['positive'], 'relu'),
    node('ConvTranspose', ['positive', 'up'], ['high'], 'high', strides=[2] * axes),
    node('Concat', ['smooth', 'high'], ['both'], 'join', axis=1),
    node('Conv', ['both', 'slopes', 'offsets'], ['linear'], 'head'),
  ]
  output = 'linear'
  if last:
    nodes.append(node(last, ['linear'], ['y'], last, **({'axis': 1} if last == 'Softmax' else {})))
    output = 'y'
  one = (1,) * axes
  centre = np.array(centres, np.float32)
  slopes = np.zeros((count, 2, *one), np.float32)
  slopes[:, 0] = (8 * centre).reshape(-1, *one)
  weights = {
    'mean': np.full((1, channels, *kernel), 1 / (channels * 3**axes), np.float32),
    'down': onnx_models.draw(0, 2, 1, *kernel) / 9,
    'up': np.full((2, 1, *((2,) * axes)), 1e-3, np.float32),
    'slopes': slopes,
    'offsets': -4 * centre**2,
  }
  sides = shape or ['h', 'w', 'd'][:axes]
  model = onnx_models.model(
    nodes,
    inputs={'x': ['n', channels, *sides]},
    outputs={output: ['n', count, *sides]},
    weights=weights,
  )
  onnx.save(model, path)
  return path


def classifier(path, *, outputs=2, last='', side=None, channels=1):
  """Writes a network that gives the second of two classes to bright images."""
  node = helper.make_node
  nodes = [
    node('Conv', ['x', 'mean'], ['smooth'], 'smooth', pads=[1, 1, 1, 1]),
    node('Relu', ['smooth'], ['positive'], 'relu'),
    node('GlobalAveragePool', ['positive'], ['pooled'], 'pool'),
    node('Flatten', ['pooled'], ['flat'], 'flat'),
    node('Gemm', ['flat', 'slope', 'offset'], ['linear'], 'head'),
  ]
  output = 'linear'
  if last:
    nodes.append(node(last, ['linear'], ['y'], last, **({'axis': 1} if last == 'Softmax' else {})))
    output = 'y'
  slope = np.zeros((1, outputs), np.float32)
  slope[0, -1] = 20
  weights = {
    'mean': np.full((1, channels, 3, 3), 1 / (9 * channels), np.float32),
    'slope': slope,
    'offset': np.array([0.0] * (outputs - 1) + [-10.0], np.float32),
  }
  model = onnx_models.model(
    nodes,
    inputs={'x': ['n', channels, side or 'h', side or 'w']},
    outputs={output: ['n', outputs]},
    weights=weights,
  )
  onnx.save(model, path)
  return path


def heat_maps(path, *, channels=3, stride=1):
  """Writes a network whose two heat maps are the brightness and the darkness of its image."""
  node, sides = helper.make_node, [stride, stride]
  nodes = [
    node('AveragePool', ['x'], ['low'], 'pool', kernel_shape=sides, strides=sides),
    node('Conv', ['low', 'mean'], ['y'], 'head'),
  ]
  kernel = np.full((2, channels, 1, 1), 1 / channels, np.float32)
  kernel[1] *= -1
  model = onnx_models.model(
    nodes,
    inputs={'x': ['n', channels, 'h', 'w']},
    outputs={'y': ['n', 2, 'hh', 'ww']},
    weights={'mean': kernel},
  )
  onnx.save(model, path)
  return path

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

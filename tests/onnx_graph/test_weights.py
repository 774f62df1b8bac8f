"""Trained weights go back into the file of the graph: which ones, and bit for bit."""

import jax
import numpy as np
import onnx
import pytest
from onnx import helper, reference

from robustmed import errors
from robustmed import onnx as ours
from support import onnx_models


def _everything():
  """A model with a weight of every kind and all that stays as stored."""
  node = helper.make_node
  nodes = [
    node('Mul', ['x', 'scalar'], ['m'], 'scale'),
    node('Conv', ['m', 'kernel', 'bias'], ['c'], 'conv', pads=[1, 1, 1, 1]),
    node('BatchNormalization', ['c', 'gain', 'shift', 'mean', 'var'], ['b'], 'norm'),
    node('PRelu', ['b', 'slope'], ['p'], 'act'),
    node('Transpose', ['head'], ['turned'], 'turn', perm=[1, 0, 2, 3]),
    node('Conv', ['p', 'turned'], ['h'], 'head'),
    node('Div', ['h', 'spread'], ['y'], 'divide'),
  ]
  draw = onnx_models.draw
  weights = {
    'scalar': np.array([2.0], np.float32),
    'kernel': draw(0, 4, 1, 3, 3),
    'bias': draw(1, 4),
    'gain': draw(2, 4),
    'shift': draw(3, 4),
    'mean': draw(4, 4),
    'var': np.abs(draw(5, 4)) + 0.5,
    'slope': np.full((4, 1, 1), 0.2, np.float32),
    'head': draw(6, 4, 2, 1, 1),
    'spread': np.array([[[3.0]], [[4.0]]], np.float32),
  }
  return onnx_models.model(
    nodes,
    inputs={'x': ['n', 1, 'h', 'w']},
    outputs={'y': ['n', 2, 'h', 'w']},
    weights=weights,
  )


def test_what_is_trained_and_what_is_not(tmp_path):
  graph = ours.build(_everything())
  assert ours.frozen(graph) == {
    'scalar': 'constant of Mul',
    'mean': 'running statistic of BatchNormalization',
    'var': 'running statistic of BatchNormalization',
    'spread': 'constant of Div',
  }


def test_new_weights_give_the_same_bits_from_the_file(tmp_path):
  old, new = tmp_path / 'old.onnx', tmp_path / 'new.onnx'
  model = _everything()
  onnx.save(model, old)
  graph = ours.load(old)
  trained = {
    name: array if name in ours.frozen(graph) else np.asarray(array) * 1.25 - 0.125
    for name, array in graph.variables.items()
  }
  new.write_bytes(ours.replaced(old, trained))
  image = onnx_models.draw(9, 2, 1, 6, 5)
  again = ours.load(new)
  np.testing.assert_array_equal(
    jax.jit(again)(dict(again.variables), image), jax.jit(graph)(trained, image)
  )
  stored = onnx.load(new)
  assert stored.graph.node == model.graph.node and stored.opset_import == model.opset_import
  assert [t.name for t in stored.graph.initializer] == [t.name for t in model.graph.initializer]
  # The format's own evaluator reads the same numbers.
  told = reference.ReferenceEvaluator(stored).run(None, {'x': image})[0]
  np.testing.assert_allclose(again(again.variables, image), told, rtol=1e-4, atol=1e-5)


def test_weights_in_a_file_of_their_own_and_of_16_bits(tmp_path):
  model = onnx_models.unet()
  model.graph.initializer[0].CopyFrom(
    onnx.numpy_helper.from_array(onnx_models.draw(0, 4, 2, 3, 3).astype(np.float16), 'k0')
  )
  place = tmp_path / 'net.onnx'
  onnx.save(model, place, save_as_external_data=True, size_threshold=0, location='net.data')
  half = onnx_models.draw(1, 4, 2, 3, 3).astype(np.float32)
  out = tmp_path / 'far' / 'out.onnx'
  out.parent.mkdir()
  out.write_bytes(ours.replaced(place, {'k0': half, 'b0': np.zeros(4)}))
  found = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
  assert found['k0'].dtype == np.float16 and found['b0'].dtype == np.float32
  np.testing.assert_array_equal(found['k0'], half.astype(np.float16))
  np.testing.assert_array_equal(found['k1'], onnx_models.draw(4, 6, 4, 3, 3) / 6)


@pytest.mark.parametrize(
  ('arrays', 'said'),
  [
    ({'nothing': np.zeros(1)}, "has no initialiser 'nothing'"),
    ({'bias': np.zeros(5)}, r"'bias' has shape \[4\], its new weights \[5\]"),
  ],
)
def test_weights_that_have_no_place(arrays, said, tmp_path):
  onnx.save(_everything(), tmp_path / 'net.onnx')
  with pytest.raises(errors.UserError, match=said):
    ours.replaced(tmp_path / 'net.onnx', arrays)

"""Graphs as functions: weights and inputs, batches, shapes as inputs, layouts, mistakes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from robustmed import errors
from robustmed import onnx as ours
from support import onnx_models

node = helper.make_node
INT = onnx.TensorProto.INT64


def _reference(model, *inputs):
  names = [value.name for value in model.graph.input]
  return ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))


@pytest.fixture(scope='module')
def unet(tmp_path_factory):
  path = tmp_path_factory.mktemp('unet') / 'unet.onnx'
  onnx.save(onnx_models.unet(), path)
  return ours.load(path)


def test_a_network_is_what_the_reference_computes(unet):
  x = onnx_models.draw(9, 2, 2, 8, 12)
  (wanted,) = _reference(onnx_models.unet(), x)
  np.testing.assert_allclose(jax.jit(unet)(unet.variables, x), wanted, atol=2e-6)
  assert set(unet.variables) == {'k0', 'b0', 's0', 't0', 'k1', 'slope', 'k2', 'k3'}
  assert unet.inputs[0].shape == ('n', 2, 'h', 'w') and unet.outputs == ('y',)


def test_gradients_by_weights_and_input_are_those_of_finite_differences(unet):
  with jax.enable_x64(True):
    wide = {name: jnp.asarray(value, jnp.float64) for name, value in unet.variables.items()}
    x = jnp.asarray(onnx_models.draw(9, 1, 2, 4, 4), jnp.float64)
    weights = jnp.asarray(onnx_models.draw(10, 1, 3, 4, 4), jnp.float64)
    loss = jax.jit(lambda variables, x: jnp.sum(weights * unet(variables, x)))
    gradients = jax.jit(jax.grad(loss, (0, 1)))(wide, x)
    random = np.random.default_rng(0)
    step = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), (wide, x))
    moved = lambda size: loss(*jax.tree.map(lambda a, b: a + size * b, (wide, x), step))
    expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
    found = sum(map(jnp.vdot, jax.tree.leaves(gradients), jax.tree.leaves(step)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_channels_stay_last_from_one_convolution_to_the_next(unet):
  x = jnp.zeros((1, 2, 8, 12))
  text = str(jax.make_jaxpr(lambda x: unet(unet.variables, x))(x))
  # The image once, the result once; nothing but kernels and slopes beside them.
  moved = re.findall(r'\[(1,[^\]]*)\] = transpose\[permutation=\((?:0, 2, 3, 1|0, 3, 1, 2)\)', text)
  assert [shape for shape in moved if not shape.startswith('1,1,1')] == ['1,8,12,2', '1,3,8,12']


@pytest.mark.slow
def test_a_fixed_batch_is_mapped_over():
  fixed = ours.build(onnx_models.unet(1, 8, 8))
  free = ours.build(onnx_models.unet())
  x = onnx_models.draw(9, 3, 2, 8, 8)
  np.testing.assert_allclose(fixed(fixed.variables, x), free(free.variables, x), atol=2e-6)
  pairs = ours.build(onnx_models.unet(2, 8, 8))
  with pytest.raises(errors.UserError, match='batches of 2, which 3 is no multiple of'):
    pairs(pairs.variables, x)


def test_shapes_that_are_inputs_are_static():
  model = onnx_models.model(
    [node('Reshape', ['x', 'shape'], ['r']), node('Mul', ['r', 'w'], ['y'])],
    inputs={'x': ['n', 6], 'shape': (INT, [2])},
    outputs={'y': [None, None]},
    weights={'w': np.full((1,), 2, np.float32)},
  )
  graph = ours.build(model)
  assert graph.static_inputs == {'shape'}
  x = np.arange(12, dtype=np.float32).reshape(2, 6)
  run = jax.jit(lambda variables, x: graph(variables, x, np.asarray([3, 4])))
  np.testing.assert_array_equal(run(graph.variables, x), 2 * x.reshape(3, 4))
  with pytest.raises(errors.UserError, match=r"input 'shape'.*known before the call"):
    jax.jit(graph)(graph.variables, x, np.asarray([3, 4]))


def test_what_follows_from_shapes_is_folded():
  """x reshaped by its own shape, through arithmetic on int64, under jit and without 64 bits."""
  model = onnx_models.model(
    [
      node('Shape', ['x'], ['s']),
      node('Slice', ['s', 'zero', 'end'], ['head']),
      node('Constant', [], ['rest'], value_ints=[-1]),
      node('Concat', ['head', 'rest'], ['target'], axis=0),
      node('Reshape', ['x', 'target'], ['y']),
      node('Add', ['two', 'two'], ['four']),
      node('Mul', ['y', 'four'], ['z']),
    ],
    inputs={'x': ['n', 'c', 'h']},
    outputs={'z': [None, None]},
    weights={
      'zero': np.asarray([0]),
      'end': np.asarray([1]),
      'two': np.asarray(2, np.float32),
    },
  )
  graph = ours.build(model)
  x = onnx_models.draw(0, 2, 3, 4)
  found = jax.jit(graph)(graph.variables, x)
  np.testing.assert_allclose(found, 4 * x.reshape(2, 12), rtol=1e-6)
  assert set(graph.variables) == {'two'} and 'rest' in graph.constants
  folded = ours.build(
    onnx_models.model(
      [
        node('Constant', [], ['one'], value_float=1.0),
        node('Exp', ['one'], ['e']),
        node('Mul', ['x', 'e'], ['y']),
      ],
      inputs={'x': [2]},
      outputs={'y': [2]},
    )
  )
  assert [kept.op_type for kept in folded.nodes] == ['Mul']


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_an_exported_group_norm_keeps_its_channels_last(groups):
  """Reshape to [n, groups, -1], InstanceNormalization, Reshape back, affine, as PyTorch writes."""
  model = onnx_models.model(
    [
      node('Conv', ['x', 'k'], ['c']),
      node('Reshape', ['c', 'merged'], ['r']),
      node('InstanceNormalization', ['r', 'ones', 'zeros'], ['m']),
      node('Shape', ['c'], ['s']),
      node('Reshape', ['m', 's'], ['b']),
      node('Mul', ['b', 'scale'], ['f']),
      node('Add', ['f', 'shift'], ['y']),
    ],
    inputs={'x': ['n', 2, 'h', 'w']},
    outputs={'y': [None] * 4},
    weights={
      'k': onnx_models.draw(0, 4, 2, 1, 1),
      'merged': np.asarray([0, groups, -1]),
      'ones': np.ones(groups, np.float32),
      'zeros': np.zeros(groups, np.float32),
      'scale': onnx_models.draw(1, 4, 1, 1),
      'shift': onnx_models.draw(2, 4, 1, 1),
    },
  )
  graph, x = ours.build(model), onnx_models.draw(9, 2, 2, 5, 3)
  (wanted,) = _reference(model, x)
  np.testing.assert_allclose(graph(graph.variables, x), wanted, atol=5e-6)
  text = str(jax.make_jaxpr(lambda x: graph(graph.variables, x))(jnp.asarray(x)))
  moved = [line for line in text.splitlines() if 'transpose[' in line and '[2,' in line[:20]]
  assert len(moved) <= 2


LAID_OUT = {
  'transpose': [node('Transpose', ['c'], ['y'], perm=[0, 2, 3, 1])],
  'transpose to first': [
    node('Transpose', ['c'], ['t'], perm=[0, 2, 3, 1]),
    node('Transpose', ['t'], ['y'], perm=[0, 3, 1, 2]),
  ],
  'swap': [node('Transpose', ['c'], ['y'], perm=[1, 0, 3, 2])],
  'slice': [node('Slice', ['c', 'one', 'two', 'one'], ['y'])],
  'split': [
    node('Split', ['c'], ['a', 'b'], axis=1, num_outputs=2),
    node('Sub', ['a', 'b'], ['y']),
  ],
  'mean of space': [node('ReduceMean', ['c', 'space'], ['y'], keepdims=0)],
  'mean of channels': [node('ReduceMean', ['c', 'one'], ['y'], keepdims=0)],
  'place of the largest': [node('ArgMax', ['c'], ['y'], axis=1, keepdims=0)],
  'softmax': [node('Softmax', ['c'], ['y'], axis=2)],
  'pad': [node('Pad', ['c', 'pads'], ['y'], mode='edge')],
  'flatten': [node('GlobalAveragePool', ['c'], ['g']), node('Flatten', ['g'], ['y'])],
  'channel': [node('Gather', ['c', 'one'], ['y'], axis=1)],
  'vector': [node('Add', ['c', 'row'], ['y'])],
  'higher rank': [node('Unsqueeze', ['row', 'zero'], ['r']), node('Mul', ['c', 'r'], ['y'])],
  'concat with weights': [node('Concat', ['c', 'plane'], ['y'], axis=1)],
  'resize': [node('Resize', ['c', '', 'scales'], ['y'], mode='linear')],
  'matrix product': [node('MatMul', ['c', 'matrix'], ['y'])],
}


@pytest.mark.parametrize('nodes', LAID_OUT.values(), ids=LAID_OUT)
def test_every_use_of_channels_last_sees_the_graph_s_axes(nodes):
  model = onnx_models.model(
    [node('Conv', ['x', 'k'], ['c']), *nodes],
    inputs={'x': [1, 2, 4, 5]},
    outputs={'y': (INT if nodes[0].op_type == 'ArgMax' else onnx_models.FLOAT, None)},
    weights={
      'k': onnx_models.draw(0, 4, 2, 1, 1),
      'zero': np.asarray([0]),
      'one': np.asarray([1]),
      'two': np.asarray([3]),
      'space': np.asarray([2, 3]),
      'pads': np.asarray([0, 0, 1, 2, 0, 0, 0, 1]),
      'row': onnx_models.draw(1, 5),
      'plane': onnx_models.draw(2, 1, 1, 4, 5),
      'scales': np.asarray([1, 1, 2, 1.5], np.float32),
      'matrix': onnx_models.draw(3, 5, 2),
    },
  )
  graph, x = ours.build(model), onnx_models.draw(9, 1, 2, 4, 5)
  (wanted,) = _reference(model, x)
  found = jax.jit(graph)(graph.variables, x)
  assert found.shape == wanted.shape
  np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_negative_pads_crop():
  model = onnx_models.model(
    [node('Conv', ['x', 'k'], ['c']), node('Pad', ['c', 'crops'], ['y'])],
    inputs={'x': [1, 2, 4, 5]},
    outputs={'y': None},
    weights={
      'k': np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
      'crops': np.asarray([0, -1, -1, 0, 0, 0, 0, -2]),
    },
  )
  graph, x = ours.build(model), onnx_models.draw(9, 1, 2, 4, 5)
  np.testing.assert_array_equal(graph(graph.variables, x), x[:, 1:, 1:, :-2])


def test_mistakes_of_a_call_are_named(unet):
  x = onnx_models.draw(0, 1, 2, 8, 8)
  with pytest.raises(errors.UserError, match=r'takes 1 inputs \(x\), not 2'):
    unet(unet.variables, x, x)
  with pytest.raises(
    errors.UserError, match=r"'x'.*shape \['n', 2, 'h', 'w'\], not \[1, 3, 8, 8\]"
  ):
    unet(unet.variables, np.zeros((1, 3, 8, 8), np.float32))
  with pytest.raises(errors.UserError, match=r"'x'.*must be float32, not int32"):
    unet(unet.variables, np.zeros((1, 2, 8, 8), np.int32))
  with pytest.raises(errors.UserError, match='lack b0, k0'):
    unet({name: v for name, v in unet.variables.items() if name not in ('k0', 'b0')}, x)
  with pytest.raises(errors.UserError, match="Concat 'join' cannot take inputs of shapes"):
    unet(unet.variables, onnx_models.draw(0, 1, 2, 7, 8))

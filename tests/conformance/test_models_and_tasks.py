"""Every network and every task through the same suite."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.models import MODELS
from robustmed.tasks import TASKS, networks

SMALL = {
  'blob_unet': {'widths': (4, 4), 'anchors': 1, 'box_features': (4, 4)},
  'brats_unet': {'rank': 2, 'channels': 1, 'width': 1 / 16},
  'disk_shape': {'side': 64, 'width': 1 / 32},
  'disk_shape_lite': {'side': 32, 'width': 0.25},
  'landmark_unet': {'landmarks': 2, 'channels': 1, 'width': 1 / 32},
  'nnunet': {'strides': (2,), 'width': 1 / 8},
  'nodule_resnet': {'stages': ((16, 1),) * 3, 'last': 16, 'width': 1 / 4},
  'nodule_unet': {'levels': 2, 'depth': 1, 'growth': 4, 'stem': 4},
  'resnet': {'width': 1 / 16, 'blocks': 1},
  'unet': {'poolings': 2, 'width': 1 / 16},
  'yolov5s': {'num_classes': 2, 'channels': 1, 'width': 1 / 16},
}
SIDE = 32


def _batch(size=3):
  rng = np.random.default_rng(0)
  angle = np.linspace(0, 2 * np.pi, 176, endpoint=False)
  circle = np.stack([16 + 8 * np.cos(angle), 16 + 6 * np.sin(angle)], axis=-1)
  mask = np.zeros((size, SIDE, SIDE, 1), np.float32)
  mask[:, 10:22, 8:24] = 1
  return {
    'image': rng.uniform(0, 1, (size, SIDE, SIDE, 1)).astype(np.float32),
    'target': {'contour': np.stack([circle] * size).astype(np.float32), 'mask': mask},
    'mask': np.ones(size, bool),
  }


def test_every_entry_is_in_this_suite():
  assert set(SMALL) == set(MODELS) and set(TASKS) == {
    'blobs',
    'brats',
    'classes',
    'heat_maps',
    'landmarks',
    'nodules',
    'proposals',
    'objects',
    'segmentation',
    'shape',
  }


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_networks_keep_examples_apart_and_say_wrong_shapes(name):
  module = MODELS[name](**SMALL[name])
  side = SMALL[name].get('side', SIDE)
  image = jax.random.uniform(jax.random.key(0), (2, side, side, 1))
  network = networks.bind(module, image_shape=image.shape[1:])
  variables = network.init(jax.random.key(1))
  whole, alone = (network.predict(variables, part) for part in (image, image[1:]))
  for key, value in whole.items():
    assert value.dtype == jnp.float32 and np.isfinite(value).all()
    np.testing.assert_allclose(value[1:], alone[key], atol=1e-4)
  with pytest.raises(Exception, match='reads images'):
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, side - 1, side, 1)))


def _task():
  return TASKS['shape'](MODELS['disk_shape_lite'](**SMALL['disk_shape_lite']), side=SIDE)


def test_every_function_of_a_task_is_per_example():
  task, batch = _task(), _batch()
  variables = task.init(jax.random.key(0))
  outputs = task.predict(variables, batch['image'])
  other = jax.tree.map(lambda leaf: np.concatenate([leaf[:1], leaf[:1] * 0.5, leaf[:1]]), outputs)
  seen = {**batch, 'clean': batch['image']}
  functions = {'losses': task.losses, 'metrics': task.metrics, **dict(task.objectives)}
  for name, function in functions.items():
    first = jax.tree.leaves(function(outputs, seen))
    second = jax.tree.leaves(function(other, seen))
    for a, b in zip(first, second, strict=True):
      assert a.shape == (3,) and np.isfinite(a).all(), name
      np.testing.assert_allclose(a[0], b[0], rtol=1e-5)


@pytest.mark.slow
def test_training_and_inference_agree_where_nothing_is_random():
  task, batch = _task(), _batch()
  variables = task.init(jax.random.key(0))
  outputs, state = task.forward(variables, batch['image'], jax.random.key(1))
  assert state == {}
  predicted = task.predict(variables, batch['image'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), outputs, predicted)


def test_perfect_outputs_score_perfectly():
  task, batch = _task(), _batch()
  outputs = {
    'contour': jnp.asarray(batch['target']['contour']),
    'segmentation': jnp.asarray(40 * (2 * batch['target']['mask'] - 1)),
  }
  metrics = task.metrics(outputs, batch)
  np.testing.assert_allclose(metrics['DICE_seg'], 1)
  np.testing.assert_allclose(metrics['Error_reg'], 0)
  for name, (found, target) in task.compared(outputs, batch).items():
    np.testing.assert_allclose(found, target, atol=1e-6, err_msg=name)
  losses = task.losses(outputs, batch)
  assert max(float(v.max()) for v in losses.values()) < 1e-3
  for name in ('reg', 'seg', 'train_reg', 'train_seg', 'joint'):
    assert float(task.objectives[name](outputs, batch).max()) < 1e-3
  hard = {'segmentation': jnp.full((1, 2, 2, 1), 200.0).at[0, 0, 0, 0].set(0.0)}
  np.testing.assert_allclose(task.diagnostics(hard)['_saturated'], 0.75)


@pytest.mark.parametrize('name', MODELS)
def test_networks_in_bfloat16_multiply_in_it_and_keep_float32_around(name):
  module = MODELS[name](**SMALL[name], dtype=jnp.bfloat16)
  side = SMALL[name].get('side', SIDE)
  image = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
  network = networks.bind(module, image_shape=image.shape[1:])
  variables = jax.eval_shape(network.init, jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}

  def loss(params, image):
    outputs, state = network.forward({**variables, 'params': params}, image, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, state))} == {jnp.dtype('float32')}
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(outputs))

  traced = jax.make_jaxpr(jax.grad(loss, (0, 1)), return_shape=True)
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables['params'])
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
  jaxpr, slopes = traced(zeros, image)
  assert {leaf.dtype for leaf in jax.tree.leaves(slopes)} == {jnp.dtype('float32')}
  work = {}
  for eqn in _equations(jaxpr.jaxpr):
    if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
      dtype = str(eqn.invars[0].aval.dtype)
      work[dtype] = work.get(dtype, 0) + _products(eqn)
  # Norms, and a last layer behind means over the image, are float32 on purpose.
  assert set(work) <= {'bfloat16', 'float32'} and work['bfloat16'] > 0.98 * sum(work.values())


def _products(eqn):
  """The multiplications of a matrix product or convolution."""
  (left, right), (result,) = (
    [var.aval.shape for var in several] for several in (eqn.invars, eqn.outvars)
  )
  if eqn.primitive.name == 'dot_general':
    ((contracted, _), _) = eqn.params['dimension_numbers']
    return math.prod(result) * math.prod(left[axis] for axis in contracted)
  outputs = right[eqn.params['dimension_numbers'].rhs_spec[0]]
  return math.prod(result) * math.prod(right) // outputs


def _equations(jaxpr):
  """All equations of a jaxpr, those of calls and loops included."""
  has_equations = lambda value: hasattr(value, 'eqns') or hasattr(value, 'jaxpr')
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=has_equations):
      if has_equations(value):
        yield from _equations(getattr(value, 'jaxpr', value))

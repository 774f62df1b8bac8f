"""The nnU-Net network: size, cost, shapes, initialisation, and its parts in float64 lax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robustmed import errors, models, types
from robustmed.models import nnunet
from robustmed.runs import costs
from robustmed.tasks import networks

HEART = {'num_classes': 2, 'strides': (2,) * 6}
HIPPOCAMPUS = {'num_classes': 3}
PROSTATE = {'num_classes': 3, 'channels': 2, 'strides': ((2, 2),) * 6}


def task(image_shape, **fields):
  network = networks.bind(models.MODELS['nnunet'](**fields), image_shape=image_shape)
  return types.Task(*network, dict, {}, dict, image_shape)


@pytest.mark.parametrize(
  ('shape', 'fields', 'parameters', 'gmacs'),
  [
    ((320, 256, 1), HEART, 29_966_112, 17.92),
    ((56, 40, 1), HIPPOCAMPUS, 1_928_256, 0.314),
    ((320, 320, 2), PROSTATE, 29_967_840, 22.43),
  ],
  ids=['heart', 'hippocampus', 'prostate'],
)
def test_full_size_has_the_published_parameters_and_cost(shape, fields, parameters, gmacs):
  full = task(shape, **fields)
  assert costs.parameter_count(full) == parameters
  assert costs.multiply_adds(full) / 1e9 == pytest.approx(gmacs, abs=0.5 * 10 ** -(2 + (gmacs < 1)))


@pytest.mark.parametrize(
  ('shape', 'strides', 'grids'),
  [
    ((16, 8), (2, (2, 1)), [(16, 8), (8, 4)]),
    ((4, 8, 8), ((1, 2, 2), 2), [(4, 8, 8), (4, 4, 4)]),
    ((8,), (2,), [(8,)]),
  ],
)
def test_heads_over_any_number_of_axes(shape, strides, grids):
  net = nnunet.NnUNet(num_classes=2, channels=3, strides=strides, width=1 / 8)
  image = jax.ShapeDtypeStruct((2, *shape, 3), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  outputs = jax.eval_shape(net.apply, variables, image)
  assert {name: out.shape for name, out in outputs.items()} == {
    f'head{i}': (2, *grid, 2) for i, grid in enumerate(grids)
  }
  assert list(outputs) == sorted(outputs)
  wide = variables['params']['down1_1']['conv']['kernel'].shape[-1]
  assert wide == 8 and variables['params']['rise0']['kernel'].shape[-2:] == (4, 8)


def test_wrong_images_and_strides_are_named():
  net = nnunet.NnUNet()
  shapes = lambda net, *shape: jax.eval_shape(
    net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  with pytest.raises(
    errors.UserError, match=r'reads images \[b, 8n, 8n, 1\], got \(2, 56, 41, 1\)'
  ):
    shapes(net, 2, 56, 41, 1)
  with pytest.raises(errors.UserError, match='set channels'):
    shapes(net, 2, 56, 40, 2)
  with pytest.raises(errors.UserError, match='do not fit images'):
    shapes(net.clone(strides=((2, 2),)), 2, 8, 8, 8, 1)
  with pytest.raises(errors.UserError, match=r'\(40, 40\), which must be \[b, \*sides, channels\]'):
    shapes(net, 40, 40)


@functools.cache
def small():
  net = nnunet.NnUNet(num_classes=3, channels=2, strides=((2, 1),), width=1 / 8)
  image = jax.random.normal(jax.random.key(1), (2, 6, 5, 2))
  variables = networks.bind(net, image_shape=image.shape[1:]).init(jax.random.key(0))
  return net, variables, image


def test_initial_weights_are_kaiming_with_torch_s_fan_in():
  params = task((8, 8, 1), num_classes=3, strides=(2, 2)).init(jax.random.key(0))['params']
  deviation = lambda fan_in: (2 / (1.0001 * fan_in)) ** 0.5
  for kernel, fan_in in (
    (params['down2_1']['conv']['kernel'], 9 * 128),
    (params['up0_0']['conv']['kernel'], 9 * 64),
    (params['rise1']['kernel'], 4 * 64),  # torch counts the outputs of a transposed convolution
  ):
    assert float(jnp.std(kernel)) == pytest.approx(deviation(fan_in), rel=0.05)
    assert abs(float(jnp.mean(kernel))) < 0.05 * deviation(fan_in)
    assert float(jnp.abs(kernel).max()) > 3 * deviation(fan_in)  # not cut off, not uniform
  assert not any(jnp.any(block['bias']) for name, block in params.items() if 'bias' in block)
  assert 'bias' not in params['rise0'] and 'bias' not in params['head0']


def reference(params, x, strides):
  """The network written out with lax, biases added where the published network adds them."""
  numbers = ('NHWC', 'HWIO', 'NHWC')

  def block(name, x, stride=(1, 1)):
    p = params[name]
    x = lax.conv_general_dilated(
      x, p['conv']['kernel'], stride, ((1, 1), (1, 1)), dimension_numbers=numbers
    )
    x = x + p['bias'][None, None, None]
    x = x - x.mean((1, 2), keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean((1, 2), keepdims=True) + 1e-5)
    x = x * p['norm']['scale'][None, None, None] + p['norm']['bias'][None, None, None]
    return jnp.maximum(x, 0) + 0.01 * jnp.minimum(x, 0)

  def rise(name, x, stride):
    b, h, w, _ = x.shape
    y = jnp.einsum('bhwi,xyoi->bhxwyo', x, params[name]['kernel'])
    return y.reshape(b, h * stride[0], w * stride[1], -1)

  skips, heads = [], {}
  for stage, stride in enumerate([(1, 1), *strides]):
    x = block(f'down{stage}_1', block(f'down{stage}_0', x, stride))
    skips.append(x)
  for stage in reversed(range(len(strides))):
    x = jnp.concatenate([rise(f'rise{stage}', x, strides[stage]), skips[stage]], axis=-1)
    x = block(f'up{stage}_1', block(f'up{stage}_0', x))
    heads[f'head{stage}'] = x @ params[f'head{stage}']['kernel'][0, 0]
  return heads


def test_outputs_and_gradients_are_those_of_the_network_written_out():
  net, variables, image = small()
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(0)  # off the initial ones and zeros
  variables = jax.tree.unflatten(tree, [0.5 * rng.normal(size=leaf.shape) for leaf in leaves])
  with jax.enable_x64(True):
    image, params = jax.tree.map(jnp.float64, (image, variables['params']))
    score = lambda heads: sum(jnp.sum(jnp.sin(head)) for head in heads.values())
    run = lambda function: jax.jit(
      lambda p, x: (function(p, x), jax.grad(lambda *a: score(function(*a)), (0, 1))(p, x)),
      compiler_options={'xla_backend_optimization_level': 0},
    )(params, image)
    ours = run(lambda p, x: net.apply({'params': p}, x))
    theirs = run(lambda p, x: reference(p, x, [(2, 1)]))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)  # logits are float32


def test_examples_do_not_see_each_other():
  net, variables, image = small()
  apply = jax.jit(net.apply)
  both, changed = apply(variables, image), apply(variables, image.at[1].set(0.5))
  for name, value in both.items():
    np.testing.assert_array_equal(value[0], changed[name][0])
    assert float(jnp.abs(value[1] - changed[name][1]).max()) > 0


def test_half_precision_inside_float32_outside():
  net, variables, image = small()
  outputs = jax.eval_shape(net.clone(dtype=jnp.bfloat16).apply, variables, image)
  assert {out.dtype for out in outputs.values()} == {jnp.dtype('float32')}

"""The disk shape network: size, shapes, initialisation, and its parts in float64 lax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robustmed import errors, models
from robustmed.models import disk_shape, layers


def shapes(image=None, **fields):
  net = models.MODELS['disk_shape'](**fields)
  side = net.side
  image = image or jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  return variables, jax.eval_shape(net.apply, variables, image)


def count(variables):
  return sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_full_width_has_the_paper_s_parameter_count():
  variables, outputs = shapes()
  assert count(variables) == 38_998_721
  assert set(variables) == {'params'} and set(outputs) == {'contour', 'segmentation'}
  assert variables['params']['bottleneck']['kernel'].shape == (2, 2, 1024, 1024)
  assert variables['params']['g0']['Doubling_0']['ConvTranspose_0']['kernel'].shape[:2] == (7, 7)


@pytest.mark.parametrize('num_maps', [1, 2])
@pytest.mark.parametrize(('side', 'width'), [(64, 1.0), (64, 0.125), (128, 0.25), (256, 0.01)])
def test_shapes_at_every_size(side, width, num_maps):
  variables, outputs = shapes(side=side, width=width, num_maps=num_maps)
  assert outputs['contour'].shape == (2, 176, 2)
  maps = {'segmentation', 'reconstruction'} if num_maps == 2 else {'segmentation'}
  assert set(outputs) == maps | {'contour'}
  for name in maps:
    assert outputs[name].shape == (2, side, side, 1) and outputs[name].dtype == jnp.float32
  blocks = variables['params']
  assert blocks['bottleneck']['kernel'].shape[0] == side // 64
  assert sum(name.startswith('g4') for name in blocks) == {64: 1, 128: 2, 256: 3}[side]


def test_two_maps_cost_one_more_output_kernel():
  one, two = (count(shapes(num_maps=n)[0]) for n in (1, 2))
  assert two - one == 5 * 5 * 32 + 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'side': 96}, 'needs side 64 or 128.*got 96'),
    ({'side': 192}, 'needs side 64 or 128.*got 192'),
    ({'side': 64, 'num_maps': 3}, '1 or 2 maps'),
  ],
)
def test_wrong_fields_are_named(fields, message):
  with pytest.raises(errors.UserError, match=message):
    shapes(**fields)


def test_wrong_image_is_named():
  with pytest.raises(errors.UserError, match=r'\[b, 64, 64, 1\], got \(2, 128, 128, 1\)'):
    shapes(jax.ShapeDtypeStruct((2, 128, 128, 1), jnp.float32), side=64)


@functools.cache
def small(num_maps=2):
  net = disk_shape.DiskShapeNet(side=64, width=0.125, num_maps=num_maps)
  image = jax.random.uniform(jax.random.key(1), (2, 64, 64, 1))
  return net, jax.jit(net.init)(jax.random.key(0), image), image


def test_initial_weights_are_torch_s_uniform():
  _, variables, _ = small()
  params = variables['params']
  for kernel, fan_in in (
    (params['e4_1']['Conv_0']['kernel'], 9 * 128),
    (params['g3']['Doubling_0']['ConvTranspose_0']['kernel'], 9 * 32),
    (params['head_dense1']['bias'], 128),
  ):
    bound = fan_in**-0.5
    assert float(jnp.abs(kernel).max()) <= bound
    assert float(jnp.std(kernel)) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_outputs_are_per_example_and_in_range():
  net, variables, image = small()
  apply = jax.jit(net.apply)
  both = apply(variables, image)
  changed = apply(variables, image.at[1].set(0.5))
  for name, value in both.items():
    np.testing.assert_array_equal(value[0], changed[name][0])
    assert float(jnp.abs(value[1] - changed[name][1]).max()) > 0
  assert float(both['reconstruction'].min()) > 0 and float(both['reconstruction'].max()) < 1
  assert abs(float(both['contour'].mean()) - 32) < 2


def lax_conv(x, kernel, strides=1, pads=(0, 0), dilation=1):
  return lax.conv_general_dilated(
    x,
    kernel,
    (strides, strides),
    (pads, pads),
    lhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def norm_and_leak(x, groups, scale, bias):
  b, h, w, c = x.shape
  grouped = x.reshape(b, h * w, groups, c // groups)
  z = (grouped - grouped.mean((1, 3), keepdims=True)) / jnp.sqrt(
    grouped.var((1, 3), keepdims=True) + 1e-5
  )
  z = z.reshape(x.shape) * scale[None, None, None] + bias[None, None, None]
  return jnp.where(z >= 0, z, 0.01 * z)


def randomised(variables, seed):
  """Off the initial ones and zeros, so that a swapped or unused parameter shows."""
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves])


@pytest.mark.slow
def test_block_is_the_authors():
  with jax.enable_x64(True):
    block = disk_shape.Block(16, strides=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 8)))
    variables = randomised(block.init(jax.random.key(0), x), 1)
    p = variables['params']
    y = lax_conv(x, p['Conv_0']['kernel'], 2, (1, 1))
    y = lax_conv(norm_and_leak(y, 4, **p['Norm_0']), p['Conv_1']['kernel'])
    pooled = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    y = norm_and_leak(y + lax_conv(pooled, p['shortcut']['kernel']), 4, **p['Norm_1'])
    np.testing.assert_allclose(block.apply(variables, x), y, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(('kernel', 'pads'), [(3, (1, 2)), (5, (2, 3)), (7, (3, 4))])
def test_doubling_pads_as_the_authors_code(kernel, pads):
  with jax.enable_x64(True):
    layer = disk_shape.Doubling(4, 2, kernel)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 3)))
    variables = randomised(layer.init(jax.random.key(0), x), 1)
    p = variables['params']
    flipped = p['ConvTranspose_0']['kernel'][::-1, ::-1].swapaxes(2, 3)
    y = norm_and_leak(lax_conv(x, flipped, 1, pads, 2), 2, **p['Norm_0'])
    assert y.shape == (1, 8, 8, 4)
    np.testing.assert_allclose(layer.apply(variables, x), y, atol=1e-9)


def test_half_precision_layers():
  x = jnp.ones((1, 4, 4, 2))
  for layer in (layers.Conv(3, (3, 3), use_bias=True), layers.ConvTranspose(3, (3, 3))):
    layer = layer.clone(dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert layer.apply(variables, x).dtype == jnp.bfloat16

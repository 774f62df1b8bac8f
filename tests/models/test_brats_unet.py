"""The BraTS U-Net: size, cost, its graph in float64 lax, 2D inside 3D, dropout, remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from robustmed import errors, models, types
from robustmed.models import brats_unet
from robustmed.runs import costs
from robustmed.tasks import networks

FAST = {'xla_backend_optimization_level': 0}
TINY = {'width': 1 / 16, 'channels': 2, 'num_classes': 3}


def task(image_shape, **fields):
  network = networks.bind(models.MODELS['brats_unet'](**fields), image_shape=image_shape)
  return types.Task(*network, dict, {}, dict, image_shape)


@pytest.mark.parametrize(
  ('shape', 'parameters', 'gmacs'),
  [((128, 128, 128, 4), 8_269_676, 176.5), ((128, 128, 4), 2_775_788, 1.09)],
  ids=['3d', '2d'],
)
def test_full_size_has_the_published_parameters_and_cost(shape, parameters, gmacs):
  full = task(shape, rank=len(shape) - 1)
  assert costs.parameter_count(full) == parameters
  digits = 1 if gmacs > 100 else 2
  assert costs.multiply_adds(full) / 1e9 == pytest.approx(gmacs, abs=0.5 * 10**-digits)


def test_wrong_images_are_named():
  net = brats_unet.BratsUNet()
  shapes = lambda net, *shape: jax.eval_shape(
    net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  says = r'reads images \[b, 16n, 16n, 16n, 4\], got \(1, 32, 32, 24, 4\)'
  with pytest.raises(errors.UserError, match=says):
    shapes(net, 1, 32, 32, 24, 4)
  with pytest.raises(errors.UserError, match='set rank or channels'):
    shapes(net, 1, 32, 32, 4)
  with pytest.raises(errors.UserError, match='set rank or channels'):
    shapes(net.clone(rank=2), 1, 32, 32, 3)


@functools.cache
def small():
  """A tiny 2D network with weights off the initial ones and zeros."""
  net = brats_unet.BratsUNet(rank=2, logit_gain=100.0, **TINY)
  image = np.random.default_rng(1).uniform(0, 1, (2, 32, 16, 2)).astype(np.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), image)
  rng = np.random.default_rng(0)
  draw = lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(np.float32)
  return net, {**jax.tree.map(draw, shapes), 'fixed': net_gain(net)}, image


def net_gain(net):
  return {'logit_gain': jnp.float32(net.logit_gain)}


@functools.cache
def logits():
  net, variables, image = small()
  return np.asarray(jax.jit(net.apply, compiler_options=FAST)(variables, image)['head0'])


def reference(params, x):
  """The network written out with lax, biases added where the published network adds them."""

  def block(p, x, stride=1):
    x = lax.conv_general_dilated(
      x, p['conv']['kernel'], (stride,) * 2, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    x = x + p['bias'][None, None, None]
    x = x - x.mean((1, 2), keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean((1, 2), keepdims=True) + 1e-5)
    x = x * p['norm']['scale'][None, None, None] + p['norm']['bias'][None, None, None]
    return jnp.maximum(x, 0) + 0.01 * jnp.minimum(x, 0)

  double = lambda x: jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
  skips = []
  for level in range(5):
    p = params[f'down{level}']
    first = block(p['first'], x, 1 if level == 0 else 2)
    x = first + block(p['context1'], block(p['context0'], first))
    skips.append(x)
  out = 0.0
  for level in (3, 2, 1, 0):
    p = params[f'up{level}']
    x = jnp.concatenate([block(p['rise'], double(x)), skips[level]], axis=-1)
    x = block(p['last'], block(p['join'], x))
    if level < 3:
      head = params[f'head{level}']
      seg = x @ head['kernel'][0, 0] + head['bias'][None, None, None]
      out = seg if level == 2 else double(out) + seg
  return out


def test_logits_are_those_of_the_network_written_out():
  net, variables, image = small()
  ours = logits()
  with jax.enable_x64(True):
    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (variables, image))
    theirs = np.asarray(jax.jit(reference, compiler_options=FAST)(params['params'], x))
  assert ours.shape == (2, 32, 16, 3) and ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, net.logit_gain * theirs, atol=2e-3 * float(np.abs(ours).max()))


def _deepened(kernel, *, strided):
  """A 2D kernel in 3D that looks at its own depth alone; SAME padding of stride 2 is (0, 1)."""
  if kernel.shape[0] == 1:
    return kernel[None]
  empty = np.zeros((3, *kernel.shape), np.float32)
  empty[0 if strided else 1] = kernel
  return empty


def test_in_3d_an_image_that_is_constant_in_depth_is_its_slices_in_2d():
  net, variables, image = small()
  slices = logits()[:1]

  def deeper(path, leaf):
    names = [str(part.key) for part in path]
    strided = names[1] in {f'down{level}' for level in range(1, 5)} and names[2] == 'first'
    return _deepened(leaf, strided=strided) if names[-1] == 'kernel' else leaf

  weights = {'params': variables['params']}
  deep = {**variables, **jax.tree_util.tree_map_with_path(deeper, weights)}
  solid = np.repeat(image[:1, None], 16, axis=1)
  cube = jax.jit(net.clone(rank=3).apply, compiler_options=FAST)(deep, solid)['head0']
  for depth in (0, 7, 15):
    np.testing.assert_allclose(cube[:, depth], slices, atol=1e-3 * float(np.abs(slices).max()))


@functools.cache
def level(remat=False):
  """One level with dropout 0.5, weights off the initial ones, whose last block copies its input."""
  make = nn.remat(brats_unet.Down) if remat else brats_unet.Down
  down = make(8, 1, 0.5, 0.01, True, None)
  image = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
  keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)
  params = jax.tree.map(draw, jax.eval_shape(down.init, keys, image))['params']
  kernel = np.zeros((3, 3, 8, 8), np.float32)
  kernel[1, 1] = np.eye(8)
  params['context1']['conv']['kernel'] = kernel
  return down, {'params': params}, image


def test_dropout_takes_whole_channels_in_training_alone():
  down, variables, image = level()

  def context(train, key):
    _, seen = down.clone(train=train).apply(
      variables, image, rngs={'dropout': key}, capture_intermediates=True
    )
    return seen['intermediates']['drop']['__call__'][0]

  run = jax.jit(lambda key: (context(True, key), context(False, key)), compiler_options=FAST)
  dropped, whole = map(np.asarray, run(jax.random.key(2)))
  gone = (dropped == 0).all(axis=(1, 2))
  assert 0 < gone.sum() < gone.size
  assert (gone[0] != gone[1]).any()  # each example draws its own
  want = np.where(gone[:, None, None], 0, whole / 0.5)
  np.testing.assert_allclose(dropped, want, rtol=1e-5)


def test_remat_drops_the_levels_and_not_the_dropout():
  net, variables, image = small()
  jaxpr = lambda net: str(jax.make_jaxpr(net.apply)(variables, image))
  assert 'remat' not in jaxpr(net)
  assert jaxpr(net.clone(remat=True)).count('remat') >= 9

  def gradient(remat, key):
    down, started, image = level(remat)
    loss = lambda x: jnp.sum(jnp.sin(down.apply(started, x, rngs={'dropout': key})))
    return jax.grad(loss)(jnp.asarray(image))

  both = jax.jit(lambda key: (gradient(False, key), gradient(True, key)), compiler_options=FAST)
  plain, again = both(jax.random.key(3))
  # Rounding of two programs, at the scale of the largest entry (about 2.5); another dropout mask
  # would change entries by as much as they are large.
  np.testing.assert_allclose(plain, again, rtol=1e-5, atol=5e-6)
  assert np.any(plain)


def test_remat_is_counted_in_the_memory():
  count = lambda **fields: costs.activation_bytes(task((32, 32, 2), rank=2, **TINY, **fields))
  plain, again = count(), count(remat=True)
  # At least the results of levels 0 to 4 on the way down and 3 to 0 on the way up.
  results = 4 * sum((32 // 2**level) ** 2 * 2**level for level in range(5))
  results += 4 * sum((32 // 2**level) ** 2 * 2**level for level in range(4))
  assert results < again < plain / 2

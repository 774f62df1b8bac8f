"""The networks of the nodule study: sizes, costs, grids, and each graph written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robustmed import errors, models, types
from robustmed.models import nodule_resnet
from robustmed.runs import costs
from robustmed.tasks import networks

FAST = {'xla_backend_optimization_level': 0}


def task(name, side, **fields):
  shape = (side, side, side, 1)
  network = networks.bind(models.MODELS[name](**fields), image_shape=shape)
  return types.Task(*network, dict, {}, dict, shape)


@pytest.mark.parametrize(
  ('name', 'fields', 'side', 'parameters', 'gmacs', 'published'),
  [
    ('blob_unet', {}, 128, 139_889, 67.36, (143.92e3, 67.15)),
    ('blob_unet', {'anchors': 3}, 128, 278_046, 113.01, (276.93e3, 113.91)),
    ('nodule_unet', {}, 64, 454_059, 17.04, (455.98e3, 17.24)),
    ('nodule_resnet', {}, 128, 5_383_623, 168.7, (5.36e6, 168.43)),
  ],
  ids=['blob', 'rpn', 'classifier', 'res18'],
)
def test_full_size_is_within_three_percent_of_the_paper(
  name, fields, side, parameters, gmacs, published
):
  full = task(name, side, **fields)
  assert costs.parameter_count(full) == parameters
  digits = 1 if gmacs > 120 else 2
  spent = costs.multiply_adds(full) / 1e9
  assert spent == pytest.approx(gmacs, abs=0.5 * 10**-digits)
  assert parameters == pytest.approx(published[0], rel=0.03)
  assert spent == pytest.approx(published[1], rel=0.02)


def shapes(name, grid, **fields):
  net = models.MODELS[name](**fields)
  image = jax.ShapeDtypeStruct((2, *grid, 1), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  outputs = jax.eval_shape(net.apply, variables, image)
  return {key: leaf.shape for key, leaf in outputs.items()}


def test_narrow_networks_of_fewer_levels_read_small_patches():
  grid = (24, 24, 24)
  found = shapes('blob_unet', grid, widths=(4, 4, 6), anchors=2, box_features=(2, 4))
  assert found == {'heat': (2, *grid, 1), 'boxes': (2, 12, 12, 12, 2, 7)}
  found = shapes('nodule_unet', grid, levels=3, depth=2, growth=4, stem=4, rise=4, hidden=8)
  assert found == {'logits': (2, 2), 'segmentation': (2, *grid, 1)}
  stages = ((4, 1), (8, 1), (8, 1))
  small = {'stages': stages, 'last': 8, 'width': 0.5}
  assert shapes('nodule_resnet', grid, **small) == {'boxes': (2, 6, 6, 6, 3, 5)}
  assert shapes('nodule_resnet', grid, head='classifier', **small) == {'logits': (2, 2)}


def test_before_training_nothing_looks_like_a_nodule():
  net = models.MODELS['blob_unet'](widths=(4, 4), anchors=2, box_features=(2, 4))
  image = jnp.zeros((1, 8, 8, 1))
  key = jax.random.key(0, impl='unsafe_rbg')
  outputs = jax.jit(lambda: net.apply(net.init(key, image), image), compiler_options=FAST)()
  np.testing.assert_allclose(jax.nn.sigmoid(outputs['heat']), 0.018, atol=1e-3)
  np.testing.assert_allclose(outputs['boxes'][0, 0, 0], [[-4, 0, 0, 0, 0]] * 2, atol=1e-5)


@pytest.mark.parametrize(
  ('name', 'fields', 'shape', 'says'),
  [
    ('blob_unet', {}, (1, 32, 24, 1), r'BlobUNet reads images \[b, 16n, 16n, 1\], got .*widths'),
    ('nodule_unet', {}, (1, 12, 16, 1), r'NoduleUNet reads images \[b, 8n, 8n, 1\], .*levels'),
    ('nodule_unet', {}, (1, 16, 16, 2), 'set channels or levels'),
    ('nodule_resnet', {}, (1, 16, 8, 1), r'NoduleResNet reads images \[b, 16n, 16n, 1\]'),
    ('nodule_resnet', {'head': 'class'}, (1, 16, 16, 1), "did you mean 'classifier'"),
    ('nodule_resnet', {'stages': ((8, 1),) * 2}, (1, 16, 16, 1), 'three stages or more'),
  ],
)
def test_mistakes_are_named(name, fields, shape, says):
  net = models.MODELS[name](**fields)
  with pytest.raises(errors.UserError, match=says):
    jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


# The graphs written out with lax; running statistics and weights are drawn, none is 0 or 1 -------


def drawn(net, image):
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'var':
      return rng.uniform(0.5, 2, leaf.shape)
    return 0.5 * rng.normal(size=leaf.shape)

  started = jax.eval_shape(net.init, jax.random.key(0), image)
  return jax.tree_util.tree_map_with_path(draw, started)


class Plain:
  """Layers on 2D images in the dtype that comes in, with the drawn weights of one module."""

  def __init__(self, variables):
    self.params, self.stats = variables['params'], variables['batch_stats']

  def __getitem__(self, name):
    stats = self.stats.get(name, {})
    return Plain({'params': self.params[name], 'batch_stats': stats})

  def conv(self, x, name, stride=1):
    own = self.params[name]
    pad = own['kernel'].shape[0] // 2
    y = lax.conv_general_dilated(
      x,
      own['kernel'],
      (stride,) * 2,
      [(pad, pad)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y + own['bias'][None, None, None] if 'bias' in own else y

  def norm(self, x, name):
    own, stats = self.params[name], self.stats[name]
    wide = lambda value: value[None, None, None]
    x = (x - wide(stats['mean'])) / jnp.sqrt(wide(stats['var']) + 1e-5)
    return x * wide(own['scale']) + wide(own['bias'])

  def active(self, x, name):
    return jnp.maximum(self.norm(x, name), 0)

  def dense(self, x, name):
    return x @ self.params[name]['kernel'] + self.params[name]['bias'][None]


def doubled(x):
  shape = (len(x), 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
  return jax.image.resize(x, shape, 'linear')


def residual(p, x, stride=1):
  y = p.conv(p.active(x, 'norm0'), 'conv0', stride)
  y = p.conv(p.active(y, 'norm1'), 'conv1')
  return y + (p.conv(x, 'shortcut', stride) if 'shortcut' in p.params else x)


def blob_reference(p, x):
  x = residual(p['down0'], p.conv(x, 'stem'))
  skips = [x]
  for level in (1, 2):
    x = residual(p[f'down{level}'], x, 2)
    skips.append(x)
  for level in (1, 0):
    x = doubled(p.conv(x, f'rise{level}')) + skips[level]
    x = residual(p[f'up{level}'], x)
  x = p.active(x, 'norm')
  y, head = x, p['boxes']
  for i, stride in enumerate((1, 2, 1)):
    y = head.active(head.conv(y, f'conv{i}', stride), f'norm{i}')
  boxes = head.conv(y, 'out')
  return {'heat': p.conv(x, 'heat'), 'boxes': boxes.reshape(*boxes.shape[:-1], 2, 5)}


def dense_block(p, x, depth):
  for i in range(depth):
    x = jnp.concatenate([x, p.conv(p.active(x, f'norm{i}'), f'conv{i}')], axis=-1)
  return x


def halved(x, of):
  return of(x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1), (2, 4))


def classifier_reference(p, x):
  x = dense_block(p['down0'], p.conv(x, 'stem'), 2)
  skips = []
  for level in (1, 2):
    skips.append(x)
    x = halved(p.conv(p.active(x, f'norm{level}'), f'turn{level}'), jnp.mean)
    x = dense_block(p[f'down{level}'], x, 2)
  x = deep = p.active(x, 'deep')
  for level in (1, 0):
    x = jnp.concatenate([skips[level], doubled(p.conv(x, f'rise{level}'))], axis=-1)
    x = dense_block(p[f'up{level}'], x, 1)
  x = p.active(x, 'fine')
  means = jnp.concatenate([deep.mean((1, 2)), x.mean((1, 2))], axis=-1)
  hidden = jnp.maximum(p.dense(means, 'hidden'), 0)
  return {'logits': p.dense(hidden, 'logits'), 'segmentation': p.conv(x, 'segmentation')}


def block(p, x):
  y = p.active(p.conv(x, 'conv0'), 'norm0')
  y = p.norm(p.conv(y, 'conv1'), 'norm1')
  if 'shortcut' in p.params:
    x = p.norm(p.conv(x, 'shortcut'), 'norm_shortcut')
  return jnp.maximum(x + y, 0)


def res18_reference(p, x):
  for i in range(2):
    x = p.active(p.conv(x, f'stem{i}'), f'norm_stem{i}')
  kept = []
  for stage, blocks in enumerate((1, 1, 2)):
    x = halved(x, jnp.max)
    for i in range(blocks):
      x = block(p[f'down{stage}_{i}'], x)
    kept.append(x)
  rise = p.params['rise1']
  x = jnp.einsum('bhwi,klfi->bhkwlf', x, rise['kernel'])
  x = x.reshape(len(x), 2 * x.shape[1], 2 * x.shape[3], -1) + rise['bias'][None, None, None]
  down, across = (jnp.linspace(-0.5, 0.5, n) for n in x.shape[1:3])
  place = jnp.stack(jnp.meshgrid(down, across, indexing='ij'), axis=-1)
  place = jnp.broadcast_to(place[None], (*x.shape[:3], 2))
  x = jnp.concatenate([p.active(x, 'norm_rise1'), kept[1], place], axis=-1)
  for i in range(3):
    x = block(p[f'up1_{i}'], x)
  boxes = p.conv(jnp.maximum(p.conv(x, 'hidden'), 0), 'boxes')
  return {'boxes': boxes.reshape(*boxes.shape[:-1], 3, 4)}


SMALL = {
  'blob_unet': ({'widths': (4, 4, 6), 'anchors': 2, 'box_features': (2, 4)}, blob_reference),
  'nodule_unet': (
    {'levels': 3, 'depth': 2, 'growth': 3, 'stem': 4, 'rise': 4, 'hidden': 5},
    classifier_reference,
  ),
  'nodule_resnet': (
    {'stages': ((4, 1), (6, 1), (6, 2)), 'last': 8, 'width': 0.5},
    res18_reference,
  ),
}


@pytest.mark.parametrize('name', SMALL)
def test_outputs_are_those_of_the_network_written_out(name):
  fields, reference = SMALL[name]
  net = models.MODELS[name](**fields)
  image = np.random.default_rng(1).uniform(0, 1, (2, 16, 8, 1))
  variables = drawn(net, image)
  single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (variables, image))
  ours = jax.jit(net.apply, compiler_options=FAST)(*single)
  with jax.enable_x64(True):
    run = jax.jit(lambda v, x: reference(Plain(v), x), compiler_options=FAST)
    theirs = jax.tree.map(np.asarray, run(variables, image))
  assert ours.keys() == theirs.keys()
  for key, value in ours.items():
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, theirs[key], atol=1e-4 * np.abs(theirs[key]).max())


def test_positions_run_from_edge_to_edge():
  place = nodule_resnet._positions(jnp.zeros((2, 3, 5, 4)))
  assert place.shape == (2, 3, 5, 2)
  np.testing.assert_allclose(place[0, :, 0, 0], [-0.5, 0, 0.5])
  np.testing.assert_allclose(place[1, 2, :, 1], np.linspace(-0.5, 0.5, 5))

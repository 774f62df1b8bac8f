"""Batch normalisation: by hand, on several devices, and kept to one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.models import layers
from robustmed.process import parallel, shared_statistics


def _made(x):
  layer = layers.BatchNorm(eps=1e-3, momentum=0.25)
  variables = layer.init(jax.random.key(0), x, train=False)
  params = {'scale': jnp.asarray([2.0, 0.5]), 'bias': jnp.asarray([1.0, -1.0])}
  state = {'mean': jnp.asarray([0.5, 0.0]), 'var': jnp.asarray([4.0, 1.0])}
  assert jax.tree.map(jnp.shape, variables) == {
    'params': {'scale': (2,), 'bias': (2,)},
    'batch_stats': {'mean': (2,), 'var': (2,)},
  }
  return layer, params, state


def _train(layer, params, state, x):
  variables = {'params': params, 'batch_stats': state}
  return layer.apply(variables, x, train=True, mutable=['batch_stats'])


def _image(seed=0):
  return np.random.default_rng(seed).normal(1, 2, (4, 3, 5, 2)).astype(np.float32)


def test_batch_moments_in_training_and_running_ones_in_inference():
  x = _image()
  layer, params, state = _made(x)
  y, new = _train(layer, params, state, x)
  flat = x.reshape(-1, 2).astype(np.float64)
  mean, variance = flat.mean(0), flat.var(0)
  scale, bias = (np.asarray(params[name]) for name in ('scale', 'bias'))
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-3) * scale + bias, atol=1e-5)
  new = new['batch_stats']
  np.testing.assert_allclose(new['mean'], 0.75 * state['mean'] + 0.25 * mean, rtol=1e-5)
  np.testing.assert_allclose(
    new['var'], 0.75 * state['var'] + 0.25 * flat.var(0, ddof=1), rtol=1e-5
  )
  y = layer.apply({'params': params, 'batch_stats': state}, x, train=False)
  centred = (x - np.asarray(state['mean'])) / np.sqrt(np.asarray(state['var']) + 1e-3)
  np.testing.assert_allclose(y, centred * scale + bias, atol=1e-5)


def test_the_batch_is_that_of_all_devices_unless_alone():
  x = _image()
  layer, params, state = _made(x)
  y, new = _train(layer, params, state, x)
  assert shared_statistics.devices() == 1

  def one_device(params, state, part):
    with shared_statistics.local():
      mine = _train(layer, params, state, part)
    return _train(layer, params, state, part), jax.tree.map(lambda leaf: leaf[None], mine)

  mapped = parallel.each_device(one_device, split=(2,), gathered=(False, True))
  number = jax.local_device_count()
  half = x[: 4 // number]
  (_, joint), (own_y, own) = mapped(params, state, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), joint, new)
  want_y, want = _train(layer, params, state, half)
  np.testing.assert_allclose(own_y[0], want_y, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5), own, want)


@pytest.mark.parametrize('layer', [layers.Conv, layers.ConvTranspose])
@pytest.mark.parametrize('features', [0, -1, 8.0])
def test_a_layer_of_no_channels_is_one_line(layer, features):
  with pytest.raises(errors.UserError, match=f'at least one channel, not {features}'):
    layer(features, (3, 3)).init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))

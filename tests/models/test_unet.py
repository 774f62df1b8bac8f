import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.models import layers, unet
from robustmed.process import parallel
from robustmed.tasks import networks


def _parameters(module, side):
  shapes = jax.eval_shape(
    lambda key: module.init(key, jnp.zeros((1, side, side, module.channels))), jax.random.key(0)
  )
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


def test_the_full_network_has_the_usual_number_of_parameters():
  # the widely used PyTorch implementation, padded, with batch norm and transposed convolutions
  assert _parameters(unet.UNet(num_classes=1, channels=3), 16) == 31_037_633


def test_outputs_follow_the_image_and_sizes_are_free():
  module = unet.UNet(num_classes=3, width=1 / 32, poolings=1)
  network = networks.bind(module, image_shape=(8, 8, 1))
  variables = network.init(jax.random.key(0))
  image = jax.random.normal(jax.random.key(1), (2, 8, 12, 1))
  logits = network.predict(variables, image)['head0']
  assert logits.shape == (2, 8, 12, 3) and logits.dtype == jnp.float32
  mirrored = network.predict(variables, jnp.flip(image, 0))['head0']
  np.testing.assert_allclose(mirrored, jnp.flip(logits, 0), atol=1e-5)
  with pytest.raises(errors.UserError, match=r'multiples of 2, got \(1, 7, 8, 1\)'):
    network.predict(variables, jnp.zeros((1, 7, 8, 1)))


def test_the_gradient_through_batch_norm_is_that_of_the_batch_of_all_devices():
  x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2)) + jnp.arange(4.0).reshape(4, 1, 1, 1)
  layer = layers.BatchNorm(leak=0.1)
  variables = layer.init(jax.random.key(0), x, train=False)

  def total(x):
    out, _ = layer.apply(variables, x, train=True, mutable=['batch_stats'])
    return (jnp.arange(1.0, 3.0)[None, None, None] * out**3).sum()

  run = parallel.each_device(lambda _, x: jax.grad(total)(x), split=(1,), gathered=True)
  np.testing.assert_allclose(run(variables, x), jax.grad(total)(x), atol=1e-3)


def test_leak_and_no_scale():
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  bare = layers.BatchNorm(affine=False)
  variables = bare.init(jax.random.key(0), x, train=False)
  assert 'params' not in variables
  plain = bare.apply(variables, x, train=False)
  leaky = layers.BatchNorm(affine=False, leak=0.2).apply(variables, x, train=False)
  np.testing.assert_allclose(leaky, np.where(plain >= 0, plain, 0.2 * plain), rtol=1e-6)

"""Modules as pure functions."""

import flax.linen as nn
import jax
import numpy as np

from robustmed.tasks import networks


class Scale(nn.Module):
  @nn.compact
  def __call__(self, image, *, train=False):
    seen = self.variable('batch_stats', 'seen', lambda: np.float32(0))
    if train:
      seen.value += image.shape[0]
    return (image * self.param('factor', nn.initializers.constant(3.0), ())).astype('bfloat16')


def test_a_silent_network_has_outputs_and_nothing_else():
  task = networks.bind_without_losses(Scale(), image_shape=[2, 1])
  variables = task.init(jax.random.key(0))
  image = np.ones((4, 2, 1), np.float32)
  outputs = task.predict(variables, image)
  assert outputs.dtype == np.float32
  np.testing.assert_array_equal(outputs, 3 * image)
  trained, state = task.forward(variables, image, jax.random.key(1))
  np.testing.assert_array_equal(trained, outputs)
  assert state == {'batch_stats': {'seen': 4.0}} and task.image_shape == (2, 1)
  found = (task.losses(outputs, {}), task.metrics(outputs, {}), task.diagnostics(outputs))
  assert found == ({}, {}, {}) and task.objectives == {} and task.coupled is None

"""The landmark network: size, cost, grids, and a decoder stage against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import models, types
from robustmed.models import landmark_unet
from robustmed.runs import costs
from robustmed.tasks import networks


def test_full_size_has_the_published_parameters_and_cost():
  network = networks.bind(models.MODELS['landmark_unet'](), image_shape=(200, 160, 3))
  full = types.Task(*network, dict, {}, dict, (200, 160, 3))
  assert costs.parameter_count(full) == 24_308_153
  shapes = jax.eval_shape(full.init, jax.random.key(0))['params']
  size = lambda name: sum(
    leaf.size
    for key, part in shapes.items()
    if key.startswith(name)
    for leaf in jax.tree.leaves(part)
  )
  assert size('features_') == 20_024_384 and size('up_') == 4_280_064 and size('maps') == 3_705
  assert costs.multiply_adds(full) / 1e9 == pytest.approx(19.50, abs=0.005)


@pytest.mark.parametrize('grid', [(200, 160), (45, 33)])
def test_every_map_has_the_grid_of_the_image(grid):
  module = landmark_unet.LandmarkUNet(landmarks=4, width=1 / 32)
  image = jax.ShapeDtypeStruct((2, *grid, 3), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), image)
  outputs = jax.eval_shape(module.apply, variables, image)
  assert {name: out.shape for name, out in outputs.items()} == dict.fromkeys(
    ('heat', 'offset_x', 'offset_y'), (2, *grid, 4)
  )
  assert set(variables['batch_stats']) == {f'up_{i}' for i in range(5)}


def test_skips_are_padded_below_and_to_the_right_first():
  x = jnp.ones((1, 2, 4, 1))
  padded = landmark_unet._padded(x, (1, 5, 5, 3))[0, ..., 0]
  np.testing.assert_array_equal(padded.sum(axis=1), [0, 4, 4, 0, 0])
  np.testing.assert_array_equal(padded.sum(axis=0), [2, 2, 2, 2, 0])

"""The detector: parameters of every part, grids, priors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.models import yolo

PARTS = {
  0: 3_520,
  1: 18_560,
  2: 18_816,
  3: 73_984,
  4: 115_712,
  5: 295_424,
  6: 625_152,
  7: 1_180_672,
  8: 1_182_720,
  9: 656_896,
  10: 131_584,
  13: 361_984,
  14: 33_024,
  17: 90_880,
  18: 147_712,
  20: 296_448,
  21: 590_336,
  23: 1_182_720,
}


def shapes(grid=(64, 96), **fields):
  module = yolo.Yolo(**fields)
  image = jax.ShapeDtypeStruct((1, *grid, 3), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), image)
  return variables, jax.eval_shape(module.apply, variables, image)


@pytest.mark.parametrize(('classes', 'total'), [(3, 7_027_720), (80, 7_235_389)])
def test_full_size_has_the_published_parameters(classes, total):
  params = shapes(num_classes=classes)[0]['params']
  count = lambda part: sum(leaf.size for leaf in jax.tree.leaves(part))
  assert count(params) == total
  assert {i: count(params[f'model_{i}']) for i in PARTS} == PARTS
  assert set(params) == {f'model_{i}' for i in PARTS} | {f'model_24_m_{i}' for i in range(3)}


def test_three_grids_of_three_anchors():
  _, outputs = shapes(width=1 / 16, num_classes=2)
  assert {name: out.shape for name, out in outputs.items()} == {
    'p8': (1, 8, 12, 3, 7),
    'p16': (1, 4, 6, 3, 7),
    'p32': (1, 2, 3, 3, 7),
  }


def test_a_fresh_network_expects_few_objects():
  draw = yolo._detection_bias(16, 3, 10**8)  # so wide that nothing random is left
  bias = np.asarray(draw(jax.random.key(0), (24,))).reshape(3, 8)
  np.testing.assert_allclose(bias[:, :4], 0, atol=2e-4)
  np.testing.assert_allclose(bias[:, 4], math.log(8 / 1600), atol=2e-4)
  np.testing.assert_allclose(bias[:, 5:], math.log(0.6 / 2.000001), atol=2e-4)

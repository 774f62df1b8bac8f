"""How far outputs move from image to image, from sums of their elements with fixed signs."""

import jax
import numpy as np
import pandas as pd
import pytest

from robustmed.evaluation import movement


def shares(output, target):
  """The share of an output [n, ...] through the columns of one compiled program."""
  columns = jax.jit(movement.columns)({'mask': (output, target)})
  return movement.shares(pd.DataFrame(jax.tree.map(np.asarray, columns)))


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 1.0])
def test_an_output_that_follows_its_target_by_a_share(share):
  target = np.random.default_rng(0).normal(size=(50, 16, 16, 2)).astype(np.float32)
  found = shares(7 + share * target, target)
  np.testing.assert_allclose(found['mask'], share, atol=1e-3)


def test_the_sums_stand_for_the_spread_of_independent_elements():
  random = np.random.default_rng(1)
  target = random.normal(size=(400, 300)).astype(np.float32)
  output = random.normal(size=(400, 300), scale=0.3).astype(np.float32)
  np.testing.assert_allclose(shares(output, target)['mask'], 0.3, rtol=0.15)


def test_signs_are_balanced_and_differ_between_sketches():
  columns = movement.columns({'x': (np.eye(4096, dtype=np.float32),) * 2})
  signs = np.stack([columns[f'{movement.OUTPUT}x.{k}'] for k in range(movement.SKETCHES)])
  assert set(np.unique(signs)) == {-1.0, 1.0}
  correlation = signs @ signs.T / 4096
  assert np.abs(signs.mean(axis=1)).max() < 0.05
  assert np.abs(correlation - np.eye(movement.SKETCHES)).max() < 0.05


def test_outputs_of_a_number_each_and_of_too_few_images():
  label = np.array([0, 1, 0, 1], np.int32)
  np.testing.assert_allclose(shares(0.5 * label, label)['mask'], 0.5)
  assert shares(label[:2], label[:2]) == {} and shares(label, np.ones(4)) == {}

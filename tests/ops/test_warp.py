"""ops.warp against scipy.ndimage.map_coordinates, in float64, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from robustmed import errors
from robustmed.ops import warp

MODES = {'zero': 'grid-constant', 'edge': 'nearest'}


@pytest.fixture(autouse=True)
def _double():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize('padding', ['zero', 'edge'])
@pytest.mark.parametrize('grid', [(6,), (5, 7), (4, 3, 5)])
def test_sampling_is_scipy_s(grid, padding):
  rng = np.random.default_rng(0)
  image = rng.normal(size=(2, *grid, 3))
  coordinates = rng.uniform(-3, 9, size=(2, 4, 5, len(grid)))
  coordinates[0, 0, 0] = 1e12
  actual = warp.sample(jnp.asarray(image), jnp.asarray(coordinates), padding=padding)
  assert actual.shape == (2, 4, 5, 3)
  for example in range(2):
    where = np.moveaxis(coordinates[example], -1, 0)
    for channel in range(3):
      expected = ndimage.map_coordinates(
        image[example, ..., channel], where, order=1, mode=MODES[padding]
      )
      np.testing.assert_allclose(actual[example, ..., channel], expected, atol=1e-10)


@pytest.mark.parametrize('padding', ['zero', 'edge'])
def test_gradients_by_image_and_coordinates(padding):
  rng = np.random.default_rng(1)
  image = jnp.asarray(rng.normal(size=(1, 4, 5, 2)))
  where = jnp.asarray(rng.integers(-1, 4, size=(1, 6, 2)) + rng.uniform(0.2, 0.8, size=(1, 6, 2)))
  check_grads(lambda i, c: warp.sample(i, c, padding=padding), (image, where), 1, ('rev',))


def test_displacement():
  image = jnp.arange(12.0).reshape(1, 3, 4, 1)
  none = jnp.zeros((1, 3, 4, 2))
  np.testing.assert_array_equal(warp.displace(image, none), image)
  right = none.at[..., 1].set(1)
  shifted = warp.displace(image, right)
  np.testing.assert_array_equal(shifted[0, :, :3], image[0, :, 1:])
  np.testing.assert_array_equal(shifted[0, :, 3], np.zeros((3, 1)))
  edge = warp.displace(image, right, padding='edge')
  np.testing.assert_array_equal(edge[0, :, 3], image[0, :, 3])


@pytest.mark.parametrize('grid', [(5, 7), (4, 3, 5)])
def test_the_nearest_label_is_scipy_s(grid):
  rng = np.random.default_rng(2)
  labels = rng.integers(0, 5, size=(2, *grid))
  moves = rng.uniform(-4, 4, size=(2, *grid, len(grid)))
  found = warp.nearest(jnp.asarray(labels), jnp.asarray(moves))
  assert found.dtype == labels.dtype
  for example in range(2):
    where = np.indices(grid) + np.moveaxis(moves[example], -1, 0)
    want = ndimage.map_coordinates(labels[example], where, order=0, mode='nearest')
    np.testing.assert_array_equal(found[example], want)
  np.testing.assert_array_equal(warp.nearest(jnp.asarray(labels), 0 * jnp.asarray(moves)), labels)


def test_the_gradient_of_a_warp_is_that_of_finite_differences():
  rng = np.random.default_rng(3)
  image, weight = rng.normal(size=(2, 1, 6, 5, 1))
  moves = rng.integers(-1, 2, size=(1, 6, 5, 2)) + rng.uniform(0.2, 0.8, size=(1, 6, 5, 2))
  total = lambda field: (weight * warp.displace(jnp.asarray(image), field, padding='edge')).sum()
  gradient = jax.grad(total)(jnp.asarray(moves))
  for place in ((0, 0, 0, 0), (0, 3, 2, 1), (0, 5, 4, 0), (0, 2, 1, 1)):
    step = np.zeros(moves.shape)
    step[place] = 1e-5
    difference = (total(moves + step) - total(moves - step)) / 2e-5
    np.testing.assert_allclose(gradient[place], difference, atol=1e-7)


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match='warp padding'):
    warp.sample(jnp.zeros((1, 3, 3, 1)), jnp.zeros((1, 2, 2)), padding='mirror')
  with pytest.raises(errors.UserError, match='do not fit'):
    warp.sample(jnp.zeros((1, 3, 3, 1)), jnp.zeros((1, 2, 3)))

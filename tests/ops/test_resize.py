"""ops.resize against numpy, jax.image and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from robustmed import errors
from robustmed.ops import resize


def draw(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_nearest_repeats():
  x = draw(2, 3, 2, 2)
  expected = x.repeat(2, axis=1).repeat(3, axis=2)
  np.testing.assert_array_equal(resize.nearest(jnp.asarray(x), (2, 3)), expected)
  gradient = jax.grad(lambda x: resize.nearest(x, 2).sum())(jnp.zeros((1, 2, 2, 2, 1)))
  np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 2, 1), 8))


@pytest.mark.parametrize('size', [(8, 10), (7, 5), (3, 2), (4, 9)])
def test_half_pixel_centres_are_jax_image_s(size):
  x = jnp.asarray(draw(2, 4, 5, 3))
  expected = jax.image.resize(x, (2, *size, 3), 'linear', antialias=False)
  np.testing.assert_allclose(resize.linear(x, size), expected, atol=5e-6)


@pytest.mark.parametrize(('grid', 'size'), [((5,), (9,)), ((4, 5), (7, 3)), ((3, 4, 2), (5, 4, 6))])
def test_aligned_corners_are_scipy_s_zoom(grid, size):
  x = draw(1, *grid, 1)
  zoom = [t / n for n, t in zip(grid, size)]
  expected = ndimage.zoom(x[0, ..., 0], zoom, order=1, grid_mode=False)
  actual = resize.linear(jnp.asarray(x), size, align_corners=True)
  assert actual.shape == (1, *size, 1)
  np.testing.assert_allclose(actual[0, ..., 0], expected, atol=1e-6)


@pytest.mark.parametrize('align_corners', [False, True])
def test_weights_sum_to_one_and_keep_the_grid(align_corners):
  for size, target in ((4, 9), (9, 4), (1, 3), (3, 1)):
    weights = resize.matrix(size, target, align_corners=align_corners)
    np.testing.assert_allclose(weights.sum(1), np.ones(target))
  np.testing.assert_array_equal(resize.matrix(5, 5, align_corners=align_corners), np.eye(5))


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match='2 spatial axes'):
    resize.linear(jnp.zeros((1, 4, 4, 1)), (8,))
  with pytest.raises(errors.UserError, match='3 factors'):
    resize.nearest(jnp.zeros((1, 4, 4, 1)), (2, 2, 2))


def test_weights_of_any_positions_are_those_of_the_linear_resize():
  position = (np.arange(7) + 0.5) * 4 / 7 - 0.5
  expected = resize.matrix(4, 7, align_corners=False)
  np.testing.assert_allclose(resize.weights(4, position), expected, atol=1e-12)


@pytest.mark.parametrize('cubic', [None, -0.75])
def test_weights_are_shares_and_reproduce_lines(cubic):
  position = np.linspace(1.0, 6.0, 11)
  weights = resize.weights(9, position, cubic=cubic)
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
  if cubic is None:
    np.testing.assert_allclose(weights @ np.arange(9), position, atol=1e-12)
  whole = resize.weights(9, np.arange(9.0), cubic=cubic)
  np.testing.assert_allclose(whole, np.eye(9), atol=1e-12)


def test_a_shrunk_kernel_averages():
  weights = resize.weights(8, np.asarray([3.5]), shrink=0.25)
  np.testing.assert_allclose(weights[0], np.asarray([1, 3, 5, 7, 7, 5, 3, 1]) / 32, atol=1e-12)


def test_elements_outside_are_the_border_or_left_out():
  outside = np.asarray([-0.5])
  np.testing.assert_allclose(resize.weights(3, outside)[0], [1, 0, 0])
  np.testing.assert_allclose(resize.weights(3, outside, exclude_outside=True)[0], [1, 0, 0])
  cubic = resize.weights(3, outside, cubic=-0.5, exclude_outside=True)[0]
  assert cubic.sum() == pytest.approx(1) and cubic[2] == 0


def test_one_axis_times_a_matrix():
  x, weights = draw(2, 3, 4), np.asarray([[0.5, 0.5, 0.0]])
  expected = (x[:, :1] + x[:, 1:2]) / 2
  np.testing.assert_allclose(resize.along(jnp.asarray(x), 1, weights), expected, atol=1e-6)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.data.spine import shapes


def contours(count=30, points=6, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, points, 2)) * np.array([5.0, 2.0]) + 30


def test_equals_the_eigenvectors_of_the_covariance():
  data = contours()
  model = shapes.fit(data, 4)
  flat = data.reshape(30, -1)
  values, vectors = np.linalg.eigh(np.cov(flat.T))  # n - 1 normalised
  values, vectors = values[::-1], vectors[:, ::-1].T
  np.testing.assert_allclose(model.mean, flat.mean(axis=0), rtol=1e-6)
  np.testing.assert_allclose(np.square(model.scale), values[:4], rtol=1e-5)
  np.testing.assert_allclose(model.explained, values[:4] / values.sum(), rtol=1e-5)
  np.testing.assert_allclose(
    np.abs(np.sum(np.asarray(model.components) * vectors[:4], axis=1)), 1, atol=1e-5
  )


def test_more_points_than_shapes():
  model = shapes.fit(contours(count=5, points=40), 4)
  np.testing.assert_allclose(np.sum(model.explained), 1, rtol=1e-5)
  np.testing.assert_allclose(model.components @ model.components.T, np.eye(4), atol=1e-5)


def test_signs_are_fixed():
  model = shapes.fit(contours(), 5)
  mirrored = shapes.fit(contours()[::-1], 5)
  np.testing.assert_allclose(model.components, mirrored.components, atol=1e-5)
  largest = np.abs(model.components).argmax(axis=1)
  assert (np.asarray(model.components)[np.arange(5), largest] > 0).all()


def test_one_direction_is_found_by_hand():
  line = np.array([[[0.0, 0], [1, 0]], [[0.0, 0], [3, 0]], [[0.0, 0], [5, 0]]])
  model = shapes.fit(line, 1)
  np.testing.assert_allclose(model.mean, [0, 0, 3, 0])
  np.testing.assert_allclose(model.components, [[0, 0, 1, 0]], atol=1e-6)
  np.testing.assert_allclose(model.scale, [2.0])
  np.testing.assert_allclose(shapes.compose(jnp.array([1.5]), model), [[0, 0], [6, 0]], atol=1e-6)


def test_samples_are_uniform_within_two_deviations_and_independent():
  model = shapes.fit(contours(), 3)
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = jax.jit(jax.vmap(shapes.sample, in_axes=(0, None)))(keys, model)
  assert drawn.shape == (4000, 6, 2)
  offset = np.asarray(drawn).reshape(4000, -1) - np.asarray(model.mean)
  coefficients = offset @ np.asarray(model.components).T / np.asarray(model.scale)
  assert np.abs(coefficients).max() <= shapes.LIMIT + 1e-4
  histogram = np.stack([np.histogram(c, 4, (-2, 2))[0] for c in coefficients.T]) / 4000
  np.testing.assert_allclose(histogram, 0.25, atol=0.03)
  np.testing.assert_allclose(np.corrcoef(coefficients.T), np.eye(3), atol=0.06)


def test_a_key_gives_the_same_shape_in_any_batch():
  model = shapes.fit(contours(), 3)
  keys = jax.random.split(jax.random.key(1), 5)
  together = jax.vmap(shapes.sample, in_axes=(0, None))(keys, model)
  alone = shapes.sample(keys[3], model)
  np.testing.assert_allclose(together[3], alone, rtol=1e-6)


@pytest.mark.parametrize('count', [0, 30, 31])
def test_impossible_numbers_of_components(count):
  with pytest.raises(errors.UserError, match=f'1 to 12 components, not {count}'):
    shapes.fit(contours(), count)


def test_equal_contours_are_refused():
  with pytest.raises(errors.UserError, match='contours that differ'):
    shapes.fit(np.ones((4, 6, 2)), 1)

"""ops.spline against scipy's RBFInterpolator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import interpolate

from robustmed import errors
from robustmed.ops import spline

SCIPY = {'r': 'linear', 'r2logr': 'thin_plate_spline'}


def landmarks(seed, n=40):
  rng = np.random.default_rng(seed)
  points = rng.uniform(0, 128, size=(n, 2))
  return points, points + rng.normal(scale=3, size=(n, 2)), rng.uniform(0, 128, size=(5, 6, 2))


def reference(points, values, where, kernel):
  model = interpolate.RBFInterpolator(points, values, kernel=SCIPY[kernel], degree=1)
  return model(where.reshape(-1, 2)).reshape(where.shape)


@pytest.mark.slow
@pytest.mark.parametrize('kernel', ['r', 'r2logr'])
def test_float64_is_scipy_s(kernel):
  points, values, where = landmarks(0)
  with jax.enable_x64(True):
    fitted = spline.fit(jnp.asarray(points), jnp.asarray(values), kernel=kernel)
    actual = spline.evaluate(fitted, jnp.asarray(where), kernel=kernel)
  np.testing.assert_allclose(actual, reference(points, values, where, kernel), atol=1e-8)


def smooth_landmarks(seed):
  points, _, where = landmarks(seed, n=192)
  return points, points + 3 * np.sin(points / 20), where


@pytest.mark.parametrize(
  ('kernel', 'draw', 'atol'),
  [('r', smooth_landmarks, 1e-3), ('r2logr', smooth_landmarks, 1e-3), ('r', landmarks, 2e-2)],
)
def test_float32_batch_on_the_device(kernel, draw, atol):
  """192 landmarks over 128 pixels; the last case jitters neighbours apart, far worse than use."""
  sets = [draw(seed) for seed in range(2)]
  points, values, where = (jnp.asarray(np.stack(part), jnp.float32) for part in zip(*sets))

  @jax.jit
  @jax.vmap
  def both(points, values, where):
    fitted = spline.fit(points, values, kernel=kernel)
    evaluate = functools.partial(spline.evaluate, fitted, kernel=kernel)
    return evaluate(where), evaluate(points)

  actual, at_points = both(points, values, where)
  np.testing.assert_allclose(at_points, values, atol=atol)
  for got, arrays in zip(actual, sets):
    np.testing.assert_allclose(got, reference(*arrays, kernel), atol=atol)


def test_affine_maps_are_reproduced_in_three_dimensions():
  rng = np.random.default_rng(3)
  points = jnp.asarray(rng.uniform(-5, 40, size=(30, 3)), jnp.float32)
  matrix = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
  where = jnp.asarray(rng.uniform(-5, 40, size=(7, 3)), jnp.float32)
  fitted = spline.fit(points, points @ matrix + 2)
  np.testing.assert_allclose(spline.evaluate(fitted, where), where @ matrix + 2, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize('kernel', ['r', 'r2logr'])
def test_gradients_are_finite_at_the_control_points(kernel):
  points, values, _ = (jnp.asarray(a, jnp.float32) for a in landmarks(5, n=12))
  value = lambda p, v: spline.evaluate(spline.fit(p, v, kernel=kernel), p, kernel=kernel).sum()
  for gradient in jax.grad(value, (0, 1))(points, values):
    assert jnp.isfinite(gradient).all()


def test_smoothing_moves_towards_the_affine_fit():
  points, values, _ = landmarks(6)
  with jax.enable_x64(True):
    points, values = jnp.asarray(points), jnp.asarray(values)
    for kernel in ('r', 'r2logr'):
      misfits = []
      for smoothing in (0.0, 0.1, 10.0):
        fitted = spline.fit(points, values, kernel=kernel, smoothing=smoothing)
        at_points = spline.evaluate(fitted, points, kernel=kernel)
        misfits.append(float(jnp.square(at_points - values).sum()))
      assert misfits[0] < 1e-9 < misfits[1] < misfits[2]


def test_unknown_kernel():
  with pytest.raises(errors.UserError, match='spline kernel'):
    spline.fit(jnp.eye(3, 2), jnp.eye(3, 2), kernel='gauss')

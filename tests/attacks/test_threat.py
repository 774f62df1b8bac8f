"""Balls, boxes and regions, by hand and against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.attacks import threat

RNG = np.random.default_rng(0)


def _keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def test_linf_by_hand():
  centre = jnp.asarray([[0.5, 0.1, 0.95]])
  x = jnp.asarray([[0.9, -0.3, 0.94]])
  ball = threat.Threat('linf')
  np.testing.assert_allclose(ball.project(x, centre, 0.2), [[0.7, -0.1, 0.94]], atol=1e-7)
  box = threat.Threat('linf', bounds=(0.0, 1.0))
  np.testing.assert_allclose(box.project(x, centre, 0.2), [[0.7, 0.0, 0.94]], atol=1e-7)
  np.testing.assert_array_equal(ball.direction(jnp.asarray([[-2.0, 0.0, 3.0]])), [[-1, 0, 1]])


def test_l2_by_hand():
  ball = threat.Threat('l2')
  centre = jnp.zeros((2, 2))
  x = jnp.asarray([[3.0, 4.0], [0.3, 0.4]])
  np.testing.assert_allclose(ball.project(x, centre, 1.0), [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)
  np.testing.assert_allclose(ball.distance(x, centre), [5.0, 0.5], rtol=1e-6)
  np.testing.assert_allclose(ball.direction(x), [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6)
  # Below 1e-8 the direction is not blown up to length 1; a zero gradient moves nothing.
  np.testing.assert_allclose(ball.direction(x * 1e-9 / 5), x / 50, rtol=1e-5)
  np.testing.assert_array_equal(ball.direction(centre), centre)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_projection_is_the_nearest_allowed_point_of_the_ball(norm):
  centre, x = (RNG.normal(size=(4, 3, 2)).astype(np.float32) for _ in range(2))
  eps = np.asarray([0.0, 0.3, 2.0, 50.0], np.float32)
  ours = np.asarray(threat.Threat(norm).project(x, centre, eps))
  np.testing.assert_array_equal(ours[0], centre[0])
  np.testing.assert_allclose(ours[3], x[3], atol=1e-6)
  delta = x.astype(np.float64) - centre
  for i in (1, 2):
    if norm == 'linf':
      want = np.clip(delta[i], -eps[i], eps[i])
    else:
      want = delta[i] * min(1, eps[i] / np.linalg.norm(delta[i]))
    np.testing.assert_allclose(ours[i], centre[i] + want, atol=1e-6)


def test_bounds_per_channel_and_values_outside_of_them():
  low, high = np.asarray([0.0, -1.0], np.float32), np.asarray([1.0, 0.0], np.float32)
  box = threat.Threat('linf', bounds=(low, high))
  centre = jnp.asarray([[[0.5, -0.5]], [[1.2, 0.4]]])
  up = box.project(centre + 9.0, centre, 5.0)
  np.testing.assert_allclose(up, [[[1.0, 0.0]], [[1.2, 0.4]]])  # never further out than it was
  down = box.project(centre - 9.0, centre, 5.0)
  np.testing.assert_allclose(down, [[[0.0, -1.0]], [[0.0, -1.0]]])
  np.testing.assert_array_equal(box.project(centre + 9.0, centre, 0.0), centre)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_region_holds_the_rest_still_and_l2_spends_eps_inside(norm):
  region = np.zeros((1, 4, 4, 1), np.float32)
  region[0, 1:3, 1:3] = 1
  area = threat.Threat(norm, region=region)
  centre = jnp.asarray(RNG.normal(size=(2, 4, 4, 3)), jnp.float32)
  grad = jnp.asarray(RNG.normal(size=centre.shape), jnp.float32)
  outside = np.broadcast_to(region == 0, centre.shape)
  for moved in (
    area.start(_keys(2), centre, 0.5),
    area.project(centre + grad, centre, 0.5),
    centre + area.direction(grad),
  ):
    np.testing.assert_array_equal(np.asarray(moved)[outside], np.asarray(centre)[outside])
    assert np.all(np.asarray(moved)[~outside] != np.asarray(centre)[~outside])
  if norm == 'l2':
    step = np.asarray(area.direction(grad), np.float64)
    np.testing.assert_allclose(np.sqrt((step**2).sum((1, 2, 3))), 1.0, rtol=1e-5)


def test_start_linf_is_uniform_and_l2_lies_on_its_sphere():
  centre = jnp.zeros((2, 100, 100))
  radius = jnp.asarray([0.1, 3.0])
  flat = np.asarray(threat.Threat('linf').start(_keys(2), centre, radius))
  for noise, r in zip(flat, np.asarray(radius)):
    assert np.abs(noise).max() <= r
    shares = np.histogram(noise, 10, (-r, r))[0] / noise.size
    np.testing.assert_allclose(shares, 0.1, atol=0.015)
  sphere = threat.Threat('l2').start(_keys(2), centre, radius)
  np.testing.assert_allclose(np.linalg.norm(sphere, axis=(1, 2)), radius, rtol=1e-5)
  # u ~ U(-1, 1) * r per element, then rescaled: the same draws as for linf, only shorter.
  scaled = (
    flat / np.linalg.norm(flat, axis=(1, 2), keepdims=True) * np.asarray(radius)[:, None, None]
  )
  np.testing.assert_allclose(sphere, scaled, rtol=1e-4, atol=1e-6)


def test_l2_start_in_few_dimensions_may_lie_inside():
  starts = threat.Threat('l2').start(_keys(200), jnp.zeros((200, 2)), 1.0)
  lengths = np.linalg.norm(starts, axis=1)
  assert lengths.max() <= 1 + 1e-6
  # P(u in the unit disk) = pi / 4; those stay where they fell.
  assert 0.6 < np.mean(lengths < 1 - 1e-5) < 0.95


def test_max_change_limits_every_element():
  ball = threat.Threat('l2', max_change=1.0)
  x = jnp.asarray([[30.0, 0.5, -40.0]])
  np.testing.assert_allclose(ball.project(x, jnp.zeros((1, 3)), 100.0), [[1.0, 0.5, -1.0]])


@pytest.mark.parametrize(
  ('wrong', 'says'),
  [
    (lambda: threat.Threat('l3'), "unknown norm 'l3'"),
    (lambda: threat.Threat(bounds=(1.0, 0.0)), 'low < high'),
    (lambda: threat.Threat(bounds=0.5), 'pair'),
    (lambda: threat.Threat(bounds=('a', 'b')), 'bounds must be numbers'),
    (lambda: threat.Threat(bounds=(np.zeros(3), 1.0)).check(jnp.zeros((2, 4))), '4 channels'),
    (lambda: threat.Threat(region=np.ones((2, 5, 1))).check(jnp.zeros((2, 4, 3))), 'region'),
    (lambda: threat.Threat(region=np.ones((2, 4))).check(jnp.zeros((2, 4, 3))), 'region'),
  ],
)
def test_mistakes_are_named(wrong, says):
  with pytest.raises(errors.UserError, match=says):
    wrong()


def test_column_broadcasts_scalars_and_vectors():
  like = jnp.zeros((3, 2, 2))
  assert threat.expand_to_rank(0.5, like).shape == (3, 1, 1)
  np.testing.assert_array_equal(threat.expand_to_rank(jnp.arange(3), like)[:, 0, 0], [0, 1, 2])

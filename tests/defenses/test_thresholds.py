import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from robustmed import errors
from robustmed.defenses import thresholds


def test_mean_and_largest_per_column():
  values = np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]])
  np.testing.assert_allclose(thresholds.estimate(values), [3, 20])
  np.testing.assert_allclose(
    thresholds.estimate(values, k=2.0), [3 + 2 * np.sqrt(8 / 3), 20 + 2 * np.sqrt(200)]
  )
  np.testing.assert_array_equal(thresholds.estimate(values, estimator='max'), [5, 40])


def test_every_stratum_has_a_threshold_of_its_own():
  values = np.array([[1.0, 10.0], [7.0, 10.0], [5.0, 40.0], [8.0, 0.0]])
  found = thresholds.within(values, np.array([0, 2, 0, 2]), number=4, estimator='max')
  np.testing.assert_array_equal(found, [[5, 40], [np.nan] * 2, [8, 10], [np.nan] * 2])
  with pytest.raises(errors.UserError, match='at least one example'):
    thresholds.within(np.zeros((0, 1)), np.zeros(0, int), number=2)


@pytest.mark.parametrize('c', [1.0, 1.5])
def test_huber_solves_its_two_equations(c):
  rng = np.random.default_rng(0)
  values = np.concatenate([rng.normal(3, 2, 60), [50.0, 80.0]])
  location, scale = thresholds.huber(values, c=c)
  expected = scipy.stats.norm.expect(lambda z: np.clip(z, -c, c) ** 2)

  def off(guess):
    psi = np.clip((values - guess[0]) / guess[1], -c, c)
    return [psi.sum(), np.sum(psi**2) - (len(values) - 1) * expected]

  np.testing.assert_allclose(off((location, scale)), 0, atol=1e-6)
  want = scipy.optimize.fsolve(off, [np.median(values), 2.0])
  np.testing.assert_allclose([location, scale], want, rtol=1e-7)
  assert abs(location - 3) < 1 and scale < 3 < np.std(values)


def test_huber_of_normal_values_is_mean_and_deviation_and_follows_units():
  values = np.random.default_rng(1).normal(5, 2, 20000)
  np.testing.assert_allclose(thresholds.huber(values), [5, 2], rtol=0.02)
  location, scale = thresholds.huber(values)
  np.testing.assert_allclose(
    thresholds.huber(3 * values - 1), [3 * location - 1, 3 * scale], rtol=1e-9
  )
  np.testing.assert_allclose(
    thresholds.estimate(values[:, None], estimator='huber', k=-2.0), location - 2 * scale
  )
  assert thresholds.huber([4.0, 4.0, 4.0]) == (4.0, 0.0) == thresholds.huber([4.0])
  assert thresholds.huber([4.0, 4.0, 4.0, 9.0])[1] > 0  # more than half of them equal


@pytest.mark.parametrize(
  'values, options, message',
  [
    (np.zeros((0, 2)), {}, r'shape \[n, K\], not \(0, 2\)'),
    (np.zeros(3), {}, r'not \(3,\)'),
    (np.array([[1.0], [np.nan], [np.inf]]), {}, '2 of 3 training examples'),
    (np.ones((3, 1)), {'estimator': 'median'}, "unknown estimator of thresholds 'median'"),
    (np.ones((3, 1)), {'estimator': 'max', 'k': 1.0}, 'takes no k'),
    (np.ones((3, 1)), {'estimator': 'huber', 'c': 0.0}, 'above 0'),
  ],
)
def test_mistakes_are_user_errors(values, options, message):
  with pytest.raises(errors.UserError, match=message):
    thresholds.estimate(values, **options)

import numpy as np
import pytest
from scipy import stats

from robustmed.evaluation import normality


def test_distance_from_the_normal_as_scipy_has_it():
  values = np.random.default_rng(2).gamma(2, size=50)
  fitted = (values - values.mean()) / values.std()
  found = normality.distance(values, np.arange(50))
  assert found.value == pytest.approx(stats.kstest(fitted, 'norm').statistic)


def test_the_bootstrap_is_that_of_drawing_groups():
  rng = np.random.default_rng(3)
  values = rng.gamma(2, size=400)
  groups = np.arange(400) // 4
  found = normality.distance(values, groups, draws=600)
  drawn = []
  for _ in range(600):
    picked = np.concatenate([np.arange(4 * g, 4 * g + 4) for g in rng.integers(0, 100, 100)])
    one = values[picked]
    drawn.append(stats.kstest((one - one.mean()) / one.std(), 'norm').statistic)
  assert found.value + found.bias == pytest.approx(np.mean(drawn), abs=0.005)
  assert found.scale == pytest.approx(np.std(drawn), rel=0.15)


def test_examples_of_one_volume_are_not_independent():
  rng = np.random.default_rng(4)
  groups = np.repeat(np.arange(12), 30)
  values = rng.normal(size=12)[groups] + 0.1 * rng.normal(size=360)
  apart, together = (normality.distance(values, names) for names in (np.arange(360), groups))
  assert together.value == apart.value and together.scale > 2 * apart.scale


def test_one_group_has_no_limits():
  found = normality.distance(np.arange(20.0), np.zeros(20))
  assert np.isnan(found.limits(0.95)).all()
  assert found.at_least(0.1) == found.at_most(0.1) == 1


def test_limits_of_the_quantiles_of_a_normal_distribution_are_apart():
  """They are nearer to it than any draw, and nearer than the bias of one."""
  values = stats.norm.ppf((np.arange(60) + 0.5) / 60)
  found = normality.distance(values, np.random.default_rng(0).permutation(60) // 5)
  assert found.value < 0.02 < found.bias and found.corrected == 0
  low, high = found.limits(0.95)
  assert low == 0 and high == pytest.approx(stats.t.ppf(0.975, 11) * found.scale)
  assert 2 * found.value < high < 0.1
  # The limit is where the test is at its level.
  assert found.at_least(high) == pytest.approx(0.025)


@pytest.mark.parametrize(('shape', 'truth'), [(np.inf, 0.0), (20.0, 0.030), (1.785, 0.100)])
def test_limits_cover_the_truth_and_the_distance_of_the_sample(shape, truth):
  groups, covered = np.arange(100) // 5, 0
  for seed in range(100):
    rng = np.random.default_rng(seed)
    own = np.sqrt(0.5) * (rng.normal(size=20)[groups] + rng.normal(size=100))
    values = own if np.isinf(shape) else stats.gamma.ppf(stats.norm.cdf(own), shape)
    found = normality.distance(values, groups, draws=100)
    low, high = found.limits(0.95)
    assert low <= found.value <= high and low < high
    covered += low <= truth <= high
  assert covered >= 90


def test_order_and_names_do_not_matter():
  rng = np.random.default_rng(5)
  values, groups = rng.gamma(2, size=60), np.arange(60) // 5
  order = rng.permutation(60)
  first = normality.distance(values, groups)
  second = normality.distance(values[order], groups[order] + 100)
  assert first.limits(0.95) == pytest.approx(second.limits(0.95))

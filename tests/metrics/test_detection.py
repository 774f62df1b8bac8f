import numpy as np
import pytest
from scipy import stats

from robustmed.metrics import detection


def test_auroc_by_hand():
  assert detection.auroc([0.0, 1.0], [2.0, 3.0]) == 1.0
  assert detection.auroc([2.0, 3.0], [0.0, 1.0]) == 0.0
  assert detection.auroc([1.0, 1.0], [1.0]) == 0.5
  # positives 1 and 3 against 0, 2: wins 1, 0, 1, 1
  assert detection.auroc([0.0, 2.0], [1.0, 3.0]) == 0.75


def test_auroc_is_the_mann_whitney_statistic():
  rng = np.random.default_rng(0)
  for size in (3, 20, 57):
    negative = rng.integers(0, 9, size).astype(float)
    positive = rng.integers(2, 12, size + 4).astype(float)
    expected = stats.mannwhitneyu(positive, negative).statistic / (len(negative) * len(positive))
    assert detection.auroc(negative, positive) == pytest.approx(expected, abs=1e-12)


def test_roc_by_hand():
  curve = detection.roc([0.0, 2.0], [1.0, 3.0])
  np.testing.assert_array_equal(curve.thresholds, [np.inf, 3, 2, 1, 0])
  np.testing.assert_allclose(curve.true_positive, [0, 0.5, 0.5, 1, 1])
  np.testing.assert_allclose(curve.false_positive, [0, 0, 0.5, 0.5, 1])


def test_the_area_under_the_roc_is_the_auroc():
  rng = np.random.default_rng(1)
  negative, positive = rng.integers(0, 6, 30), rng.integers(1, 8, 41)
  curve = detection.roc(negative, positive)
  area = np.trapezoid(curve.true_positive, curve.false_positive)
  assert area == pytest.approx(detection.auroc(negative, positive), abs=1e-12)
  assert (np.diff(curve.true_positive) >= 0).all() and (np.diff(curve.false_positive) >= 0).all()


def test_any_rising_change_of_the_score_leaves_it():
  rng = np.random.default_rng(2)
  negative, positive = rng.normal(size=15), rng.normal(0.5, size=22)
  before = detection.auroc(negative, positive)
  assert detection.auroc(np.exp(negative), np.exp(positive)) == before
  assert detection.auroc(-positive, -negative) == pytest.approx(before, abs=1e-12)
  assert detection.auroc(positive, negative) == pytest.approx(1 - before, abs=1e-12)


def test_placements_average_to_the_auroc():
  rng = np.random.default_rng(3)
  negative, positive = rng.integers(0, 5, 12), rng.integers(0, 7, 9)
  of_negative, of_positive = detection.placements(negative, positive)
  assert of_negative.shape == (12,) and of_positive.shape == (9,)
  value = detection.auroc(negative, positive)
  assert of_negative.mean() == pytest.approx(value) and of_positive.mean() == pytest.approx(value)


def _interval(negative, positive, groups, **more):
  return detection.auroc_interval(
    negative, positive, negative_groups=groups, positive_groups=groups, **more
  )


@pytest.mark.parametrize('shared', [False, True])
def test_the_scale_is_that_of_leaving_groups_out(shared):
  """To first order: leaving out moves the AUROC by its group's share of wins."""
  rng = np.random.default_rng(4)
  groups = np.repeat(np.arange(200), 1 + np.arange(200) % 3)
  negative, positive = rng.normal(size=len(groups)), rng.normal(0.7, size=len(groups))
  found = detection.clustered(
    negative, positive, negative_groups=groups, positive_groups=groups, shared=shared
  )
  logit = lambda share: np.log(share / (1 - share))
  kept = [groups != name for name in range(200)]
  if shared:
    sides = [[detection.auroc(negative[keep], positive[keep]) for keep in kept]]
  else:
    sides = [
      [detection.auroc(negative[keep], positive) for keep in kept],
      [detection.auroc(negative, positive[keep]) for keep in kept],
    ]
  variance = sum(199 * logit(np.array(side)).var() for side in sides)
  assert found.scale == pytest.approx(np.sqrt(variance), rel=0.02)
  assert found.value == pytest.approx(detection.auroc(negative, positive))
  assert found.freedom == pytest.approx(199 if shared else 398, rel=0.1)


def test_the_scale_is_that_of_delong():
  """DeLong's components on the plain scale, of examples that are groups, with the covariance."""
  rng = np.random.default_rng(5)
  negative, positive = rng.normal(size=400), rng.normal(0.3, size=400)
  positive = positive + 0.7 * negative
  names = np.arange(400)
  found = detection.clustered(
    negative, positive, negative_groups=names, positive_groups=names, shared=True
  )
  won = (positive[:, None] > negative).astype(float)
  parts = np.cov(won.mean(1), won.mean(0))
  delong = np.sqrt((parts[0, 0] + parts[1, 1] + 2 * parts[0, 1]) / 400)
  plain = found.scale * found.value * (1 - found.value)
  assert plain == pytest.approx(delong, rel=0.01)


def test_the_interval_covers_the_truth():
  """95 % intervals of 40 groups of one must cover P(X > Y) about that often."""
  truth = stats.norm.cdf(0.8 / np.sqrt(2))
  covered = 0
  for seed in range(200):
    rng = np.random.default_rng(seed)
    found = _interval(rng.normal(size=40), rng.normal(0.8, size=40), np.arange(40))
    covered += found.low <= truth <= found.high
  assert 0.91 <= covered / 200 <= 0.99


def test_groups_of_the_two_kinds_are_strangers_unless_shared():
  rng = np.random.default_rng(6)
  own = rng.normal(size=30)
  negative, positive = own + 0.1 * rng.normal(size=30), own + 0.1 * rng.normal(size=30) + 0.5
  names = np.arange(30)
  apart = _interval(negative, positive, names)
  renamed = detection.auroc_interval(
    negative, positive, negative_groups=names, positive_groups=names + 1000
  )
  assert apart == renamed
  shared = _interval(negative, positive, names, shared=True)
  assert shared.high - shared.low < 0.5 * (apart.high - apart.low)


@pytest.mark.parametrize('groups', [2, 5, 12])
def test_perfect_separation_is_bounded_by_chance(groups):
  """`groups` independent pairs are all in order with a probability of AUROC^groups."""
  low, names = np.arange(groups), np.arange(groups)
  found = _interval(low, low + 100.0, names)
  assert found.value == found.high == 1 and found.low == pytest.approx(0.025 ** (1 / groups))
  fooled = _interval(low + 100.0, low, names)
  assert fooled.value == fooled.low == 0 and fooled.high == pytest.approx(1 - found.low)
  clustered = detection.clustered(
    low, low + 100.0, negative_groups=names, positive_groups=names, shared=False
  )
  assert clustered.tail(0.9, sign=1) == pytest.approx(0.9**groups)
  assert clustered.tail(0.9, sign=-1) == 1
  assert clustered.tail(found.low, sign=1) == pytest.approx(0.025)


def test_one_group_has_no_interval():
  found = _interval(np.arange(3.0), np.arange(3.0) + 1, np.zeros(3))
  assert np.isnan(found.low) and np.isnan(found.high) and found.value == pytest.approx(7 / 9)


@pytest.mark.parametrize('bad', [[], [np.nan, 1.0], [[1.0]]])
def test_scores_must_be_known(bad):
  with pytest.raises(ValueError, match='without nan'):
    detection.auroc(bad, [1.0])

"""Tests of one number per group, vectorised over runs, and what their verdicts rest on.

Every test asks whether an estimand lies inside (low, high), one of which may be infinite:

* `p` is against "it does not lie inside": the larger p of the finite bounds (two finite bounds are
  the two one-sided tests of equivalence);
* `opposite` is against "it does not lie outside": the smaller p of the finite bounds times their
  number;
* `least` is the smallest value that `p` can take with that many groups: 2^-groups, below which no
  test goes that does not know the distribution.

Estimands and tests:

* `mean_test`: the mean over groups, by a t test that is corrected for skewness (Hall 1992).
* `median_test`: the median over groups, by the sign test, exact for every distribution.
* `auroc_test`: the AUROC, by the jackknife over groups on the logit scale.
* `normality_test`: the distance from the normal distribution, by a bootstrap over groups.

Which data they hold their level on is measured in tests/calibration, through these functions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from robustmed.evaluation import normality, statistics
from robustmed.metrics import detection

LEVEL = 0.95
# The skewness counts (1 + CAUTION / n) times: small samples show too little of it. Far from the
# middle they show still less, so that p below FAR must also stand with FAR_CAUTION.
CAUTION, FAR_CAUTION, FAR = 6.0, 18.0, 0.02
ROUNDING = 1e-12

MEAN = 'mean of group means, skewness-corrected t test'
MEDIAN = 'median of group means, sign test'
AUROC = 'AUROC, clustered jackknife on the logit scale'


class Finding(NamedTuple):
  """What a test found; every field has the shape of the runs."""

  estimate: np.ndarray
  low: np.ndarray  # limits at LEVEL, from the same test; nan where it has none
  high: np.ndarray
  p: np.ndarray  # evidence that the estimand lies inside the bounds
  opposite: np.ndarray  # evidence that it lies outside
  least: np.ndarray  # the smallest p that this number of groups allows


def effect(estimate, *, low: float, high: float):
  """Distance of the estimate inside (low, high), negative outside."""
  return np.minimum(estimate - low, high - estimate)


def mean_test(values: np.ndarray, *, low: float = -math.inf, high: float = math.inf) -> Finding:
  """Tests whether the mean over groups, `values` [..., groups], lies inside (low, high).

  With t the statistic of the n groups that differ from the bound, s = (1 + 6 / n) times their
  unbiased skewness over sqrt(n), and z = t + s t^2 / 3 + s^2 t^3 / 27 + s / 6 (Hall 1992, On the
  removal of skewness by transformation), p is the largest of those of t, of z (n - 1 degrees of
  freedom) and 2^-n; where it is below 0.02, also of z with 18 for 6, or 0.02 if that is less. A
  group exactly at the bound says nothing of the side on which the mean lies.

  Claims of 20 groups and more err as often as they say also after Holm's correction. At 12 groups
  corrected p of differences as skewed as an exponential are too small: 30 such claims, none of them
  true and all independent, give a verdict in 11 % of tables, not 5 %.

  No test of the mean of arbitrary distributions can be both valid and powerful (Bahadur and Savage
  1956): outliers that are rarer than one in the number of groups cannot be seen.
  """
  values = np.asarray(values, np.float64)
  tail = lambda at, sign: _mean_tail(sign * _differences(values, at))
  limits = (-_mean_limit(-values), _mean_limit(values))
  least = np.broadcast_to(0.5 ** values.shape[-1], values.shape[:-1])
  return _inside(values.mean(-1), limits, tail, least, low=low, high=high)


def median_test(values: np.ndarray, *, low: float = -math.inf, high: float = math.inf) -> Finding:
  """Tests whether the median over groups, `values` [..., groups], lies inside (low, high).

  The sign test, exact for every distribution and the most powerful one for the median of unknown
  distributions. A group exactly at a bound counts as evidence for neither side.
  """
  values = np.asarray(values, np.float64)
  size = values.shape[-1]

  def tail(at, sign):
    beyond = (sign * _differences(values, at) > 0).sum(-1)
    return stats.binom.sf(beyond - 1, size, 0.5)

  ordered = np.sort(values, axis=-1)
  # The largest k with P(fewer than k of the groups below the median) within the tail.
  skipped = int(stats.binom.ppf((1 - LEVEL) / 2, size, 0.5))
  while skipped > 0 and stats.binom.cdf(skipped - 1, size, 0.5) > (1 - LEVEL) / 2:
    skipped -= 1
  none = np.full(values.shape[:-1], np.nan)
  limits = (none, none)
  if skipped > 0:
    limits = (ordered[..., skipped - 1], ordered[..., size - skipped])
  least = np.broadcast_to(0.5**size, values.shape[:-1])
  return _inside(np.median(values, axis=-1), limits, tail, least, low=low, high=high)


def auroc_test(found: detection.Clustered, *, low: float = 0.0, high: float = 1.0) -> Finding:
  """Tests whether the AUROC lies inside (low, high); 0 and 1 are no bounds.

  p comes from `detection.Clustered.tail`, which also handles perfect separation, and is at least
  2^-d with d disjoint pairs of a positive and a negative group.
  """
  low, high = (low if low > 0 else -math.inf), (high if high < 1 else math.inf)
  least = 0.5**found.disjoint
  tail = lambda at, sign: np.maximum(found.tail(at, sign=sign), least)
  every = np.broadcast_to(least, np.shape(found.value))
  return _inside(found.value, found.limits(LEVEL), tail, every, low=low, high=high)


def normality_test(found: normality.Distance, *, bound: float) -> Finding:
  """Tests whether the distance from the normal distribution is below `bound` (equivalence)."""
  least = np.asarray(1 / (1 + found.draws))
  p = np.maximum(found.at_least(bound), least)
  return Finding(found.value, *found.limits(LEVEL), p, found.at_most(bound), least)


def best_of(p: np.ndarray, opposite: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(p, opposite) of "better than every rival" from those against each rival, [..., rivals].

  An intersection-union test needs no correction: all must hold. That some rival is better is the
  best of as many tries, and is corrected for their number.
  """
  return np.max(p, -1), np.minimum(1.0, np.shape(opposite)[-1] * np.min(opposite, -1))


def at_least(p: np.ndarray, opposite: np.ndarray, *, number: int) -> tuple[np.ndarray, np.ndarray]:
  """(p, opposite) of "at least `number` of the claims are true" from those of each, [..., claims].

  Bonferroni's partial conjunction (Benjamini and Heller 2008), under any dependence: of the p
  values in order the one at `number`, times the number of those from there on.
  """
  size = np.shape(p)[-1]
  if not 1 <= number <= size:
    raise ValueError(f'at least {number} of {size} claims')
  part = lambda values, k: np.minimum(1.0, (size - k + 1) * np.sort(values, -1)[..., k - 1])
  return part(p, number), part(opposite, size - number + 1)


def decided(effects, p, opposite, *, alpha: float) -> np.ndarray:
  """1 for holds, -1 for fails and 0 for undecided, for families of claims on the last axis.

  Holm's correction runs over the p values of each family, and over the opposites.
  """
  holds = (np.asarray(effects) > 0) & (statistics.holm(p) < alpha)
  fails = (np.asarray(effects) < 0) & (statistics.holm(opposite) < alpha)
  return holds.astype(int) - fails.astype(int)


def _inside(estimate, limits, tail: Callable, least, *, low: float, high: float) -> Finding:
  """tail: (bound, sign) -> p against "the estimand does not lie on that side of the bound"."""
  bounds = [(low, 1)] * math.isfinite(low) + [(high, -1)] * math.isfinite(high)
  if not bounds or not low < high:
    raise ValueError(f'a test needs low < high and a finite bound, not ({low}, {high})')
  p = np.max([tail(at, sign) for at, sign in bounds], axis=0)
  against = np.min([tail(at, -sign) for at, sign in bounds], axis=0)
  return Finding(estimate, *limits, p, np.minimum(1.0, len(bounds) * against), least)


def _differences(values, at: float):
  """values - at, with exact zeros for what only rounding tells from it."""
  size = max(abs(at), float(np.abs(values).max(initial=0.0)))
  differences = values - at
  return np.where(np.abs(differences) <= ROUNDING * size, 0.0, differences)


def _moments(values, used):
  """Number, mean, deviation and unbiased skewness of the used values on the last axis."""
  n = used.sum(-1).astype(np.float64)
  with np.errstate(divide='ignore', invalid='ignore'):
    mean = np.where(used, values, 0.0).sum(-1) / n
    centred = np.where(used, values - mean[..., None], 0.0)
    squares = np.square(centred).sum(-1)
    # Equal values have no deviation, whatever rounding makes of their mean.
    squares = np.where(squares <= n * np.square(ROUNDING * mean), 0.0, squares)
    deviation = np.sqrt(squares / (n - 1))
    skewness = (centred**3).sum(-1) / n / (squares / n) ** 1.5 * np.sqrt(n * (n - 1)) / (n - 2)
  skewness = np.where((n > 2) & (squares > 0), skewness, 0.0)
  return n, mean, deviation, skewness


def _mean_tail(values):
  """p of the mean of `values` [..., groups] not being above 0."""
  n, mean, deviation, skewness = _moments(values, values != 0)
  with np.errstate(divide='ignore', invalid='ignore'):
    t = np.where(deviation > 0, mean / deviation * np.sqrt(n), np.inf * np.sign(mean))
    usual, far = (
      stats.t.sf(_corrected(t, (1 + caution / n) * skewness / np.sqrt(n)), n - 1)
      for caution in (CAUTION, FAR_CAUTION)
    )
    p = np.maximum(np.maximum(stats.t.sf(t, n - 1), usual), np.minimum(far, FAR))
  alone = np.where(np.nan_to_num(mean) > 0, 0.0, 1.0)
  return np.maximum(np.where(n > 1, p, alone), 0.5**n)


def _corrected(t, s):
  """The statistic `t` without the skewness that `s` stands for."""
  return np.where(np.isinf(t), t, t + s * t**2 / 3 + s**2 * t**3 / 27 + s / 6)


def _mean_limit(values):
  """The upper limit of the mean: where a lower mean's tail is (1 - LEVEL) / 2."""
  n, mean, deviation, skewness = _moments(values, np.ones(values.shape, bool))
  if values.shape[-1] < 2:
    return np.full(values.shape[:-1], np.nan)
  quantile = stats.t.ppf((1 - LEVEL) / 2, n - 1)  # below 0
  s = (1 + CAUTION / n) * skewness / np.sqrt(n)
  # z(t) = ((1 + s t / 3)^3 - 1) / s + s / 6, solved for t.
  safe = np.where(np.abs(s) < 1e-9, 1.0, s)
  t = np.where(np.abs(s) < 1e-9, quantile, 3 / safe * (np.cbrt(1 + s * (quantile - s / 6)) - 1))
  return mean - np.minimum(t, quantile) * deviation / np.sqrt(n)

"""Certified labels, numbers and intervals from counts under noise; each holds with 1 - alpha.

Cohen et al. 2019 (classes), Fischer et al. 2021 (label maps, Holm), Chiang et al. 2020 (medians),
Levine et al. 2019 (numbers in [0, 1]).
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from robustmed import errors

ABSTAIN = -1
CORRECTIONS = ('bonferroni', 'holm', 'none')


class Labels(NamedTuple):
  """Labels that no change below `radius` in L2 alters; `ABSTAIN` where none is certified."""

  labels: np.ndarray
  radius: np.ndarray  # 0 where abstained


def radii(
  top: np.ndarray,
  hits: np.ndarray,
  *,
  draws: int,
  sigma: float,
  alpha: float,
  correction: str = 'bonferroni',
) -> Labels:
  """Returns each pixel's label with its own radius, sigma * quantile of a lower bound of its share.

  top, hits: [b, ...]; the top label must come from other draws than the hits. All of an image hold
  together with probability 1 - alpha ('bonferroni'), or each alone ('none').
  """
  _check(hits, draws, alpha)
  errors.lookup(dict.fromkeys(('bonferroni', 'none')), correction, kind='correction')
  tests = int(np.prod(np.shape(hits)[1:])) if correction == 'bonferroni' else 1
  share = lower_share(hits, draws, alpha / max(tests, 1))
  sure = share > 0.5
  radius = np.where(sure, sigma * stats.norm.ppf(np.where(sure, share, 0.5)), 0.0)
  return Labels(np.where(sure, top, ABSTAIN), radius)


def at_radius(
  top: np.ndarray,
  hits: np.ndarray,
  *,
  draws: int,
  sigma: float,
  radius: float,
  alpha: float,
  correction: str = 'holm',
) -> Labels:
  """Returns the labels that hold at one radius, by tests of share > Phi(radius / sigma).

  'holm' and 'bonferroni' keep the probability of any wrong label of an image below alpha.
  """
  _check(hits, draws, alpha)
  errors.lookup(dict.fromkeys(CORRECTIONS), correction, kind='correction')
  share = stats.norm.cdf(radius / sigma)
  p = stats.binom.sf(np.asarray(hits) - 1, draws, share)
  flat = p.reshape(len(p), -1)
  if correction == 'holm':
    passed = np.stack([_holm(one, alpha) for one in flat])
  else:
    passed = flat <= (alpha / flat.shape[1] if correction == 'bonferroni' else alpha)
  passed = passed.reshape(p.shape)
  return Labels(np.where(passed, top, ABSTAIN), np.where(passed, radius, 0.0))


def _holm(p: np.ndarray, alpha: float) -> np.ndarray:
  order = np.argsort(p, kind='stable')
  allowed = p[order] <= alpha / (len(p) - np.arange(len(p)))
  passed = np.zeros(len(p), bool)
  passed[order] = np.logical_and.accumulate(allowed)
  return passed


def lower_share(hits: np.ndarray, draws: int, alpha: float) -> np.ndarray:
  """Returns the one-sided Clopper-Pearson lower bound of a share."""
  hits = np.asarray(hits)
  found = stats.beta.ppf(alpha, np.maximum(hits, 1), draws - hits + 1)
  return np.where(hits > 0, found, 0.0)


def certified_dice(found: np.ndarray, truth: np.ndarray, label: int) -> np.ndarray:
  """Returns the least Dice of a class, [b], over all ways to fill in the pixels without a label.

  Each of them counts as wrong. nan where neither has the class and nothing is open.
  """
  axes = tuple(range(1, np.ndim(truth)))
  unknown = found == ABSTAIN
  right = ((found == label) & (truth == label)).sum(axes)
  wrong = (((found == label) != (truth == label)) & ~unknown).sum(axes) + unknown.sum(axes)
  with np.errstate(invalid='ignore'):
    return 2 * right / (2 * right + wrong)


def mean_at_radius(values: np.ndarray, *, sigma: float, radius: float, alpha: float) -> np.ndarray:
  """Returns a lower bound of the smoothed mean of numbers in [0, 1] at any image within the radius.

  values: [draws, b]. The mean of the draws is bounded by Hoeffding's inequality, each image alone.
  """
  values = np.asarray(values, np.float64)
  if values.min(initial=0) < 0 or values.max(initial=1) > 1:
    raise errors.UserError('a smoothed mean needs numbers in [0, 1]')
  low = values.mean(0) - np.sqrt(np.log(1 / alpha) / (2 * len(values)))
  low = np.clip(low, 0, 1)
  return stats.norm.cdf(stats.norm.ppf(low) - radius / sigma)


class Median(NamedTuple):
  """The smoothed median and where it stays, each [b, ...]; infinite where the draws are too few."""

  value: np.ndarray
  low: np.ndarray
  high: np.ndarray


def median_at_radius(values: np.ndarray, *, sigma: float, radius: float, alpha: float) -> Median:
  """Returns where the median of coordinates stays at any image within the radius.

  values: [draws, b, ...]. All coordinates of an image hold together (Bonferroni), the two sides of
  each at alpha / 2.
  """
  values = np.sort(np.asarray(values, np.float64), axis=0)
  draws = len(values)
  tests = 2 * int(np.prod(values.shape[2:]))
  share = stats.norm.cdf(radius / sigma)
  # the draw with k draws below it is above a quantile if at most k of all draws are below that
  enough = stats.binom.cdf(np.arange(draws), draws, share) >= 1 - alpha / tests
  infinite = np.full(values.shape[1:], np.inf)
  low, high = -infinite, infinite
  if enough.any():
    k = int(np.argmax(enough))
    low, high = values[draws - 1 - k], values[k]
  return Median(np.median(values, axis=0), low, high)


def least_draws(*, radius: float, sigma: float, alpha: float, tests: int = 1) -> int:
  """Returns the number of draws below which nothing can be certified at the radius."""
  share = stats.norm.cdf(radius / sigma)
  return int(np.ceil(np.log(alpha / tests) / np.log(share)))


def _check(hits, draws: int, alpha: float) -> None:
  if not 0 < alpha < 1:
    raise errors.UserError(f'alpha must lie between 0 and 1, not {alpha}')
  if np.min(hits, initial=0) < 0 or np.max(hits, initial=0) > draws:
    raise errors.UserError(f'hits must lie between 0 and the {draws} draws')

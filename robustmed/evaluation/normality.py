"""How far a distribution is from a normal one, with limits from a bootstrap over groups.

The distance is Kolmogorov's: the largest difference between the distribution function of the values
and that of the normal distribution of the same mean and deviation. In a sample it is too large, and
in a bootstrap sample of that sample larger still, so that percentiles of the latter are no limits:

* the upper limit is the distance minus the bootstrap's estimate of its bias, at least 0, plus
  Student's quantile (groups - 1 degrees of freedom) times its standard error, and no less than the
  distance itself. Values that are more regular than draws of a normal distribution, such as its
  quantiles, have less distance than the bias of such draws;
* the lower limit is the distance minus the 95 % quantile of how far the difference of the two
  functions moves anywhere. It is conservative: where a sample's difference is largest is itself
  chosen by the sample, and no estimate of the bias keeps its level there (tests/calibration).
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

DRAWS = 2000
_BLOCK = 4_000_000  # numbers held at once


class Distance(NamedTuple):
  """The distance of one sample and what the bootstrap says of it."""

  value: float
  bias: float
  scale: float  # its standard error
  moves: np.ndarray  # [draws], rising: the largest move of the difference of the functions
  groups: int

  @property
  def draws(self) -> int:
    return len(self.moves)

  @property
  def corrected(self) -> float:
    """The distance without its bias."""
    return max(0.0, self.value - self.bias)

  def at_least(self, bound: float) -> float:
    """p against "the distance is `bound` or more"."""
    if self.groups < 2:
      return 1.0
    t = (self.corrected - bound) / max(self.scale, np.finfo(float).tiny)
    return float(stats.t.cdf(t, self.groups - 1))

  def at_most(self, bound: float) -> float:
    """p against "the distance is `bound` or less"."""
    if self.groups < 2:
      return 1.0
    beyond = self.draws - np.searchsorted(self.moves, self.value - bound, 'left')
    return float((1 + beyond) / (1 + self.draws))

  def limits(self, level: float) -> tuple[float, float]:
    """Two-sided limits about `value`; nan with fewer than two groups."""
    if self.groups < 2:
      return np.nan, np.nan
    tail = (1 + level) / 2
    low = max(0.0, self.value - float(np.quantile(self.moves, tail)))
    reach = stats.t.ppf(tail, self.groups - 1) * self.scale
    return low, float(max(self.value, self.corrected + reach))


def distance(
  values: np.ndarray, groups: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> Distance:
  """The distance of `values` [n] from the normal distribution; whole `groups` [n] are drawn anew.

  The bootstrap uses the first-order change of the difference of the functions with the weights of
  the groups, mean and deviation included, with the variance of groups - 1.
  """
  order = np.argsort(np.asarray(values, np.float64), kind='stable')
  ordered = np.asarray(values, np.float64)[order]
  size = len(ordered)
  names, inverse = np.unique(np.asarray(groups)[order], return_inverse=True)
  deviation = max(float(ordered.std()), np.finfo(float).tiny)
  z = (ordered - ordered.mean()) / deviation
  share, expected = np.arange(1, size + 1) / size, stats.norm.cdf(z)
  above, below = share - expected, share - 1 / size - expected
  value = float(max(above.max(), -below.min()))
  if len(names) < 2:
    return Distance(value, 0.0, 0.0, np.zeros(draws), len(names))

  member = (inverse == np.arange(len(names))[:, None]).astype(np.float64)  # [groups, n]
  count = member.sum(1, keepdims=True)
  first, second = member @ z, member @ np.square(z)
  of_fit = first[:, None] + z / 2 * (second[:, None] - count)
  change = (np.cumsum(member, axis=1) - count * share + stats.norm.pdf(z) * of_fit) / size

  random = np.random.default_rng(seed)
  spread = np.sqrt(len(names) / (len(names) - 1))
  drawn, moves = [], []
  block = max(1, _BLOCK // size)
  for start in range(0, draws, block):
    number = min(block, draws - start)
    weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=number)
    moved = (weights - 1.0) * spread @ change
    drawn.append(np.maximum((above + moved).max(1), -(below + moved).min(1)))
    moves.append(np.abs(moved).max(1))
  drawn, moves = np.concatenate(drawn), np.sort(np.concatenate(moves))
  return Distance(value, float(drawn.mean() - value), float(drawn.std()), moves, len(names))

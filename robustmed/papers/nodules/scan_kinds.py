"""Kinds of claims on submissions: differences of the mean sensitivity, and nodules found at all."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from robustmed.evaluation import claims, hypotheses
from robustmed.metrics import froc

Submissions = Mapping[tuple[str, int], froc.Scored]


@dataclasses.dataclass(frozen=True)
class Cpm(claims.Kind):
  """Is the difference of two networks' mean sensitivity inside (low, high)? Decided by drawing the
  scans again, the same ones for both networks."""

  first: str
  second: str
  scored: Submissions = dataclasses.field(repr=False, compare=False)
  low: float = -math.inf
  high: float = math.inf
  rates: tuple[float, ...] = froc.RATES
  resamples: int = 1000
  reason: str = ''  # of a bound

  estimand = 'mean sensitivity of the network, bootstrap over scans and t'

  def least(self, groups: int) -> float:
    return max(1 / (1 + self.resamples), super().least(groups))

  def __str__(self):
    rates = ' and '.join(f'{rate:g}' for rate in self.rates)
    name = 'CPM' if self.rates == froc.RATES else f'sensitivity at {rates} '
    what = f'{name}({self.first}) - {name}({self.second})'
    return claims.between(what, self)

  def __call__(self, rows: pd.DataFrame) -> claims.Outcome:
    both = pair(self, rows)
    if isinstance(both, claims.Outcome):
      return both
    one, two = both
    value, drawn = difference(one, two, rates=self.rates, resamples=self.resamples)
    if len(drawn) < 2:
      return claims.not_run('no draw of the scans has a nodule')
    scans = len(one.nodules)
    found = bootstrap_test(value, drawn, scans=scans, low=self.low, high=self.high)
    shown = f'difference {value:+.4f} [{found.low:+.4f}, {found.high:+.4f}], {scans} scans'
    return claims.outcome(found, shown, low=self.low, high=self.high)


@dataclasses.dataclass(frozen=True)
class Found(claims.Kind):
  """Does `first` mark more of the nodules than `second`, whatever the probability of its marks?"""

  first: str
  second: str
  scored: Submissions = dataclasses.field(repr=False, compare=False)

  estimand = f'nodules found in a scan, {hypotheses.MEAN}'

  def __str__(self):
    return f'nodules found({self.first}) > nodules found({self.second})'

  def __call__(self, rows: pd.DataFrame) -> claims.Outcome:
    both = pair(self, rows)
    if isinstance(both, claims.Outcome):
      return both
    counts = [np.bincount(one.scan[one.hit], minlength=len(one.nodules)) for one in both]
    some = both[0].nodules > 0
    if not some.any():
      return claims.not_run('no scan has a nodule')
    found = hypotheses.mean_test((counts[0] - counts[1])[some], low=0.0)
    shares = [f'{count.sum() / both[0].nodules.sum():.1%}' for count in counts]
    shown = f'{" and ".join(shares)} of {both[0].nodules.sum()} nodules in {some.sum()} scans'
    return claims.outcome(found, shown, low=0.0, high=math.inf)


def pair(test, rows: pd.DataFrame) -> tuple[froc.Scored, froc.Scored] | claims.Outcome:
  """Both submissions of a test in the seed of the rows, or why there are none."""
  seed = int(rows['seed'].iloc[0])
  for arm in (test.first, test.second):
    if (arm, seed) not in test.scored:
      return claims.not_run(f'no submission of {arm} (seed {seed})')
  return test.scored[test.first, seed], test.scored[test.second, seed]


def bootstrap_test(
  value: float, drawn: np.ndarray, *, scans: int, low: float, high: float
) -> hypotheses.Finding:
  """Tests whether a difference lies inside (low, high), from its `drawn` values in resampled scans.

  p is the larger of the share of the draws beyond the bound and that of Student's t, scans - 1
  degrees of freedom, with the deviation of the draws; the share alone rejects 6.8 % at 12 scans.
  """
  scale = float(drawn.std(ddof=1)) * math.sqrt(scans / max(1, scans - 1))
  least = max(1 / (1 + len(drawn)), 0.5**scans)

  def tail(at, sign):
    beyond = (1 + float(np.sum(sign * (drawn - at) <= 0))) / (1 + len(drawn))
    inside = sign * (value - at)
    # Draws that are all alike say nothing more than the value itself.
    of_t = float(stats.t.sf(inside / scale, scans - 1)) if scale > 0 else float(inside <= 0)
    return max(beyond, of_t, least)

  bounds = [(at, sign) for at, sign in ((low, 1), (high, -1)) if math.isfinite(at)]
  against = min(tail(at, -sign) for at, sign in bounds)
  return hypotheses.Finding(
    value,
    *np.quantile(drawn, froc.BOUNDS),
    max(tail(at, sign) for at, sign in bounds),
    min(1.0, len(bounds) * against),
    least,
  )


def difference(
  one: froc.Scored, two: froc.Scored, *, rates: tuple[float, ...], resamples: int
) -> tuple[float, np.ndarray]:
  """Difference of the mean sensitivities at `rates` and its draws, without those with no nodule."""
  value = float(np.mean(froc.sensitivity_at(one, rates) - froc.sensitivity_at(two, rates)))
  draws = lambda scored: froc.resampled(scored, rates=rates, resamples=resamples).mean(axis=1)
  drawn = draws(one) - draws(two)
  return value, drawn[np.isfinite(drawn)]

"""What Ma & Liang 2022 say of AMAT, as tests on our rows."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from robustmed.evaluation import claims, statistics
from robustmed.metrics import slice_sets
from robustmed.report import inputs

TABLE_2 = 'Table 2'
AVERAGE, ALL_LEVELS = 'pgd_average', 1.0  # the attack and 'level' of rows that average the levels
COLLAPSE = 0.1  # Dice that counts as near 0
SAME_COST = 1.25  # AMAT / SAT seconds that count as about the same
AWAY = 0.1  # a distribution function further from the normal one is not approximately normal


class Saying(NamedTuple):
  """What the paper says of one kind of task beside that AMAT is the best."""

  place: str = 'Results, Figs. 2-4'
  higher: bool = True  # the metric
  collapse: str = 'highest'  # the level at which STD has fallen to COLLAPSE, '' for none
  volumes: bool = False  # TVDI is above ADI
  better: tuple[tuple[str, str], ...] = ()  # arms of which the first has the better average
  close: tuple[tuple[str, str, float], ...] = ()  # arms, and how far apart their averages may be


def averaged(rows: pd.DataFrame, *, attack: str, metric: str) -> pd.DataFrame:
  """One row per network and example: the metric's mean over clean and all levels of `attack`."""
  kept = rows[rows['attack'].isin([attack, statistics.CLEAN])]
  keys = ['arm', 'seed', 'group', 'index']
  mean = kept.groupby(keys, sort=True, as_index=False)[metric].mean()
  return mean.assign(attack=AVERAGE, eps=ALL_LEVELS)


def volumes(rows: pd.DataFrame) -> pd.DataFrame:
  """One row per network, cell and volume: Dice of all its slices together minus the slices' mean.

  The first is the term of TVDI, the second that of ADI, both over the evaluated slices.
  """
  keys = ['arm', 'seed', 'attack', 'eps', 'group']
  lines = []
  for values, part in rows.groupby(keys, sort=True):
    gap = slice_sets.tvdi(part) - slice_sets.adi(part)
    lines.append((*values, values[-1], gap))
  return pd.DataFrame(lines, columns=[*keys, 'index', 'volume_minus_slices'])


@dataclasses.dataclass(frozen=True)
class Normal:
  """Is the distribution function of `values` nowhere further than `bound` from that of the normal
  distribution of the same mean and deviation? Decided by a bootstrap over the values.

  Skewness alone would call two or three equal heaps normal.
  """

  values: tuple[float, ...] = dataclasses.field(repr=False)
  bound: float = AWAY

  def __str__(self):
    return f'largest distance from the normal distribution function < {self.bound:g}'

  def __call__(self, rows: pd.DataFrame) -> claims.Outcome:
    del rows
    values = np.asarray(self.values, np.float64)
    if len(values) < 8:
      nothing = {'effect': math.nan, 'p': math.nan, 'opposite': math.nan}
      return claims.Outcome(numbers='', reason='no clean losses of the std arm', **nothing)
    rng = np.random.default_rng(0)
    draws = from_normal(rng.choice(values, (1000, len(values))))
    away = float(from_normal(values[None])[0])
    skew, excess = float(stats.skew(values)), float(stats.kurtosis(values))
    at_least = lambda hits: (1 + float(np.sum(hits))) / (1 + len(draws))
    return claims.Outcome(
      numbers=f'distance {away:.3g}, skewness {skew:.3g}, excess kurtosis {excess:.3g}, '
      f'{len(values)} samples',
      effect=self.bound - away,
      p=at_least(draws >= self.bound),
      opposite=at_least(draws <= self.bound),
    )


def from_normal(values: np.ndarray) -> np.ndarray:
  """Kolmogorov's distance of each row [n, m] from the normal of its mean and deviation, [n]."""
  ordered = np.sort(values, axis=1)
  deviation = np.maximum(ordered.std(axis=1, keepdims=True), np.finfo(float).tiny)
  expected = stats.norm.cdf((ordered - ordered.mean(axis=1, keepdims=True)) / deviation)
  steps = np.arange(values.shape[1] + 1) / values.shape[1]
  return np.maximum(expected - steps[:-1], steps[1:] - expected).max(axis=1)


def of_paper(
  rows: pd.DataFrame,
  *,
  metric: str,
  sat: tuple[str, ...],
  levels: tuple[float, ...],
  losses: np.ndarray,
  seconds: pd.DataFrame,
  saying: Saying = Saying(volumes=True),  # noqa: B008 a tuple
) -> tuple[claims.Claim, ...]:
  """The claims on one data set; `levels` are those of `pgd`, the attacked ones, rising.

  `losses` are the clean losses V of the std arm, `seconds` one row per seed and interval of the
  training log with AMAT's time over SAT's.
  """
  found, lowest, highest = [], min(levels), max(levels)
  standards = tuple(arm for arm in dict.fromkeys(rows['arm']) if arm.startswith('std')) or ('std',)

  def add(statement, test, place=saying.place):
    found.append(claims.Claim(statement, place, test))

  def better(one, other, **where):
    first, second = (one, other) if saying.higher else (other, one)
    return claims.greater(first, second, metric=metric, **where)

  mean = averaged(rows, attack='pgd', metric=metric)
  at = {'attack': AVERAGE, 'eps': ALL_LEVELS}
  for rival in (*standards, *sat):
    test = claims.Elsewhere(better('amat', rival, **at), mean)
    add(f'AMAT has a better average over all levels than {rival}', test)
  for eps in levels:
    rival = _best(rows, (*standards, *sat), metric=metric, eps=eps, higher=saying.higher)
    test = better('amat', rival, attack='pgd', eps=eps)
    add(f'AMAT is the best at level {eps:g} (next best: {rival})', test)
  for rival in sat:
    add(f'AMAT beats {rival} on clean images', better('amat', rival, attack='none', eps=0.0))
  if saying.collapse:
    eps = lowest if saying.collapse == 'lowest' else highest
    add(
      f'STD falls to almost nothing at level {eps:g}',
      claims.below('std', metric=metric, attack='pgd', eps=eps, threshold=COLLAPSE),
    )
  for one, other in saying.better:
    test = claims.Elsewhere(better(one, other, **at), mean)
    add(f'{one} has a better average over all levels than {other}', test)
  for one, other, tolerance in saying.close:
    test = claims.close(one, other, metric=metric, tolerance=tolerance, **at)
    add(f'{one} is close to {other} on average over all levels', claims.Elsewhere(test, mean))
  if len(sat) > 1:
    low, high = sat[0], sat[-1]
    add(
      f'A larger training level is better at the highest level ({high} against {low})',
      better(high, low, attack='pgd', eps=highest),
    )
    add(
      f'A larger training level is worse on clean images ({high} against {low})',
      better(low, high, attack='none', eps=0.0),
    )
  if saying.volumes:
    gap = {'metric': 'volume_minus_slices', 'attack': 'none', 'eps': 0.0, 'threshold': 0.0}
    together = volumes(rows[rows['attack'] == statistics.CLEAN])
    for arm in ('std', 'amat'):
      test = claims.Elsewhere(claims.above(arm, **gap), together)
      add(f'Dice of whole volumes (TVDI) is above that of slices (ADI) for {arm}', test)
  for place, values in enumerate(np.transpose(losses)):
    term = '' if losses.shape[1] == 1 else f', term {place + 1},'
    add(
      f'The clean losses V of STD{term} are approximately normal',
      Normal(tuple(values)),
      'Section 2.3',
    )
  cost = claims.below('amat', metric='ratio', attack='none', eps=0.0, threshold=SAME_COST)
  add('AMAT takes about as long as SAT', claims.Elsewhere(cost, seconds), TABLE_2)
  return tuple(found)


def _best(rows: pd.DataFrame, arms, *, metric: str, eps: float, higher: bool) -> str:
  """The arm with the best mean; the claim is then tested against the strongest rival."""
  means = {arm: statistics.select(rows, arm=arm, attack='pgd', eps=eps)[metric] for arm in arms}
  means = {arm: float(column.mean()) for arm, column in means.items() if len(column)}
  return (max if higher else min)(means, key=means.get) if means else arms[0]


def ratios(training: pd.DataFrame | None, *, sat: tuple[str, ...]) -> pd.DataFrame:
  """AMAT's seconds per step over the mean of the SAT arms', interval by interval, as rows."""
  table = inputs.seconds_per_step(training)
  keys = ['seed', 'step']
  ours = table[table['arm'] == 'amat'].set_index(keys)['per_step']
  theirs = table[table['arm'].isin(sat)].groupby(keys)['per_step'].mean()
  found = (ours / theirs).dropna().rename('ratio').reset_index()
  return found.assign(
    arm='amat', attack=statistics.CLEAN, eps=0.0, group=found['step'], index=found['step']
  )

"""The claims table: what a paper says, tested on our rows, with one verdict per statement.

Every test here asks whether a number per group (a mean, or a paired difference of means) lies
inside an interval: above a threshold is (t, inf), below is (-inf, t), close is (-tol, tol). Both
sides are tested, each with one-sided Wilcoxon signed-rank tests on one value per group:

* `p` is against "it does not lie inside": the larger p of its finite bounds (for `close` this is
  the two one-sided tests of equivalence);
* `opposite` is against "it does not lie outside": the smaller p of the finite bounds, times their
  number.

Verdicts, with Holm's correction over all claims that could be tested:

* holds: the mean lies inside and the corrected `p` is below alpha;
* fails: the mean lies outside and the corrected `opposite` is below alpha;
* undecided: neither, so these data cannot tell;
* not run: an arm, an attack, a level or a metric is missing; `numbers` says which.

Several training seeds: each seed is decided by itself. A claim holds only if it holds in every
seed, fails only if it fails in every seed, and is undecided otherwise; `p` and `p_holm` are those
of the weakest seed. With g groups no p can be below 2^-g.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed.evaluation import statistics

COLUMNS = ('statement', 'place', 'test', 'numbers', 'p', 'p_holm', 'verdict')
VERDICTS = ('holds', 'fails', 'undecided', 'not run')
ALPHA = 0.05


class Outcome(NamedTuple):
  """What a test found in the rows of one seed."""

  numbers: str  # for the reader
  effect: float  # distance inside the claimed interval; above 0 = in the claimed direction
  p: float  # evidence for the claim; nan = not run
  opposite: float  # evidence against it
  reason: str = ''  # why it was not run


Test = Callable[[pd.DataFrame], Outcome]  # prepared rows of one seed -> Outcome


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement, where the paper makes it, and the test that decides it.

  `test` is made by `greater, below, above, close, inside` or is any callable of prepared rows;
  its `str` is printed.
  """

  statement: str
  place: str
  test: Test


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cell of the grid; eps 0 is the clean image."""

  arm: str
  attack: str = statistics.CLEAN
  eps: float = 0.0

  def __str__(self):
    return f'{self.arm}, clean' if self.eps == 0 else f'{self.arm}, {self.attack} {self.eps:g}'


@dataclasses.dataclass(frozen=True)
class Inside:
  """Is the metric of `first` (minus that of `second`) between `low` and `high`?"""

  metric: str
  first: Cell
  second: Cell | None
  low: float
  high: float

  def __str__(self):
    what = f'{self.metric}({self.first})'
    if self.second is not None:
      what = f'{what} - {self.metric}({self.second})'
    if math.isinf(self.high):
      return f'{what} > {self.low:g}'
    if math.isinf(self.low):
      return f'{what} < {self.high:g}'
    return f'{self.low:g} < {what} < {self.high:g}'

  def __call__(self, rows: pd.DataFrame) -> Outcome:
    if self.metric not in rows.columns:
      return _not_run(f'no metric {self.metric}')
    cells = [cell for cell in (self.first, self.second) if cell is not None]
    found = [statistics.select(rows, **dataclasses.asdict(cell)) for cell in cells]
    for cell, part in zip(cells, found, strict=True):
      if part.empty:
        return _not_run(f'no rows for {cell}')
    if self.second is None:
      kept = statistics.examples(found[0], metric=self.metric)
      value = kept['value'].to_numpy()
    else:
      kept = statistics.pair(*found, metric=self.metric)
      value = (kept['first'] - kept['second']).to_numpy()
    if not len(value):
      return _not_run(f'no finite value of {self.metric} to compare')
    groups = kept['group'].to_numpy()
    means = statistics.group_means(value, groups)
    bounds = [(self.low, 'greater', 'less'), (self.high, 'less', 'greater')]
    bounds = [bound for bound in bounds if math.isfinite(bound[0])]
    inner = [statistics.signed_rank(means - at, alternative=side) for at, side, _ in bounds]
    outer = [statistics.signed_rank(means - at, alternative=side) for at, _, side in bounds]
    interval = statistics.bootstrap_interval(value, groups)
    shown = f'{value.mean():.4g} [{interval.low:.4g}, {interval.high:.4g}]'
    if self.second is not None:
      shown = f'{kept["first"].mean():.4g} and {kept["second"].mean():.4g}, difference {shown}'
    return Outcome(
      numbers=f'{shown}, {len(means)} groups',
      effect=float(min(value.mean() - self.low, self.high - value.mean())),
      p=max(inner),
      opposite=min(1.0, len(bounds) * min(outer)),
    )


@dataclasses.dataclass(frozen=True)
class Elsewhere:
  """`test` on the rows of `frame`, of the seeds of the rows that it is given."""

  test: Inside
  frame: pd.DataFrame = dataclasses.field(repr=False, compare=False)

  def __str__(self):
    return str(self.test)

  def __call__(self, rows: pd.DataFrame) -> Outcome:
    if 'seed' not in self.frame.columns:
      return self.test(self.frame)
    return self.test(self.frame[self.frame['seed'].isin(rows['seed'].unique())])


def inside(
  first: Cell,
  second: Cell | None = None,
  *,
  metric: str,
  low: float = -math.inf,
  high: float = math.inf,
) -> Inside:
  """The general test: any two cells of the grid (paired by example), or one cell by itself."""
  if not low < high or (math.isinf(low) and math.isinf(high)):
    raise ValueError(f'a claim needs low < high and a finite bound, not ({low}, {high})')
  return Inside(metric, first, second, float(low), float(high))


def greater(
  arm_a: str, arm_b: str, *, metric: str, attack: str, eps: float, margin: float = 0.0
) -> Inside:
  """The metric of `arm_a` is above that of `arm_b` by more than `margin`."""
  return inside(Cell(arm_a, attack, eps), Cell(arm_b, attack, eps), metric=metric, low=margin)


def close(
  arm_a: str, arm_b: str, *, metric: str, attack: str, eps: float, tolerance: float
) -> Inside:
  """The two arms differ by less than `tolerance`, in either direction (equivalence)."""
  cells = Cell(arm_a, attack, eps), Cell(arm_b, attack, eps)
  return inside(*cells, metric=metric, low=-tolerance, high=tolerance)


def below(arm: str, *, metric: str, attack: str, eps: float, threshold: float) -> Inside:
  """The mean of the metric is below `threshold`."""
  return inside(Cell(arm, attack, eps), metric=metric, high=threshold)


def above(arm: str, *, metric: str, attack: str, eps: float, threshold: float) -> Inside:
  """The mean of the metric is above `threshold`."""
  return inside(Cell(arm, attack, eps), metric=metric, low=threshold)


def decide(claims: Sequence[Claim], rows: pd.DataFrame, *, alpha: float = ALPHA) -> pd.DataFrame:
  """Tests every claim in every seed and returns one line per claim with `COLUMNS`."""
  rows = statistics.prepare(rows)
  seeds = sorted(rows['seed'].unique().tolist())
  by_seed = [rows[rows['seed'] == seed] for seed in seeds]
  # [claims][seeds]
  outcomes = [[claim.test(part) for part in by_seed] for claim in claims]
  shape = (len(claims), len(seeds))
  p = np.array([[o.p for o in line] for line in outcomes], np.float64).reshape(shape)
  opposite = np.array([[o.opposite for o in line] for line in outcomes], np.float64).reshape(shape)
  adjusted, adjusted_opposite = np.full(shape, np.nan), np.full(shape, np.nan)
  for column in range(len(seeds)):
    adjusted[:, column] = statistics.holm(p[:, column])
    adjusted_opposite[:, column] = statistics.holm(opposite[:, column])

  lines = []
  for row, (claim, line) in enumerate(zip(claims, outcomes, strict=True)):
    verdicts = [
      _verdict(outcome, adjusted[row, column], adjusted_opposite[row, column], alpha=alpha)
      for column, outcome in enumerate(line)
    ]
    verdict = verdicts[0] if len(set(verdicts)) == 1 else 'undecided'
    run = verdict != 'not run' and not np.all(np.isnan(p[row]))
    lines.append(
      (
        claim.statement,
        claim.place,
        str(claim.test),
        _numbers(seeds, line, verdicts, adjusted_opposite[row]),
        np.nanmax(p[row]) if run else np.nan,
        np.nanmax(adjusted[row]) if run else np.nan,
        verdict,
      )
    )
  return pd.DataFrame(lines, columns=[*COLUMNS])


def _verdict(outcome: Outcome, p: float, opposite: float, *, alpha: float) -> str:
  if outcome.reason:
    return 'not run'
  if outcome.effect > 0 and p < alpha:
    return 'holds'
  if outcome.effect < 0 and opposite < alpha:
    return 'fails'
  return 'undecided'


def _numbers(seeds, outcomes, verdicts, opposite) -> str:
  shown = []
  for outcome, verdict, against in zip(outcomes, verdicts, opposite, strict=True):
    text = outcome.reason or outcome.numbers
    shown.append(f'{text}, p of the opposite {against:.2g}' if verdict == 'fails' else text)
  if len(seeds) == 1 or len(set(shown)) == 1:
    return shown[0] if shown else ''
  lines = zip(seeds, shown, verdicts, strict=True)
  return '; '.join(f'seed {seed}: {text} ({verdict})' for seed, text, verdict in lines)


def _not_run(reason: str) -> Outcome:
  return Outcome(numbers='', effect=math.nan, p=math.nan, opposite=math.nan, reason=reason)

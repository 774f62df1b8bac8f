"""Kinds of tests on samples: AUROC, normality, and costs that are measured."""

import dataclasses
import math

import numpy as np
import pandas as pd

from robustmed.evaluation import hypotheses, kinds, normality, statistics
from robustmed.metrics import detection

FEWEST = 8  # values of which normality can be tested
MANY_RUNS = 5  # runs from which a test over runs can be significant at 5 %: 2^-5


@dataclasses.dataclass(frozen=True)
class Auroc(kinds.Kind):
  """Does the metric tell the rows of a cell from those of its arm under the attacks `negatives`,
  with an AUROC between `low` and `high`?

  `shared`: groups with one name are the same patient. Otherwise names of groups mean nothing across
  the two kinds.
  """

  metric: str
  positive: kinds.Cell
  negatives: tuple[str, ...]
  low: float
  high: float
  shared: bool
  reason: str = ''  # of the bound

  estimand = hypotheses.AUROC

  def __str__(self):
    of = f'AUROC of {self.metric}, {self.positive} against {" and ".join(self.negatives)}'
    said = f'{of} < {self.high:g}' if self.low <= 0 else f'{of} > {self.low:g}'
    return f'{said} ({self.reason})' if self.reason else said

  def __call__(self, rows: pd.DataFrame) -> kinds.Outcome:
    if self.metric not in rows.columns:
      return kinds.not_run(f'no metric {self.metric}')
    own = rows[(rows['arm'] == self.positive.arm) & np.isfinite(rows[self.metric].astype(float))]
    cell = self.positive
    # Rows from outside the distribution may be unattacked: level 0 with an attack of their own.
    positive = own[(own['attack'] == cell.attack) & (own['eps'] == statistics.level(cell.eps))]
    negative = own[own['attack'].isin(self.negatives)]
    for name, part in ((cell, positive), (' and '.join(self.negatives), negative)):
      if part.empty:
        return kinds.not_run(f'no rows for {name}')
    clustered = detection.clustered(
      negative[self.metric].to_numpy(),
      positive[self.metric].to_numpy(),
      negative_groups=negative['group'].to_numpy(),
      positive_groups=positive['group'].to_numpy(),
      shared=self.shared,
    )
    found = hypotheses.auroc_test(clustered, low=self.low, high=self.high)
    low = self.low if self.low > 0 else -math.inf  # 0 and 1 are no bounds
    high = self.high if self.high < 1 else math.inf
    sizes = ' and '.join(
      f'{part["group"].nunique()} groups of {len(part)}' for part in (positive, negative)
    )
    return kinds.outcome(found, f'AUROC {kinds.shown_limits(found)}, {sizes}', low=low, high=high)


@dataclasses.dataclass(frozen=True)
class Normal(kinds.Kind):
  """Is the distribution of `values` no further than `bound` from the normal one of its mean and
  deviation? Whole `groups` are drawn anew."""

  values: tuple[float, ...] = dataclasses.field(repr=False)
  groups: tuple[int, ...] = dataclasses.field(repr=False)
  bound: float
  reason: str  # of the bound
  what: str = 'values'
  name: str = ''  # of a part of the samples

  estimand = "Kolmogorov's distance, bias-corrected bootstrap over groups"

  def least(self, groups: int) -> float:
    del groups  # these values have groups of their own
    return math.nan

  def __str__(self):
    said = f'largest distance from the normal distribution function < {self.bound:g}'
    return f'{f"{self.name}: " if self.name else ""}{said} ({self.reason})'

  @property
  def first(self) -> str:
    """What `kinds.AtLeast` calls the test beside its numbers."""
    return self.name or str(self)

  def __call__(self, rows: pd.DataFrame) -> kinds.Outcome:
    del rows
    if len(self.values) < FEWEST:
      return kinds.not_run(f'no {self.what}')
    found = hypotheses.normality_test(
      normality.distance(np.asarray(self.values), np.asarray(self.groups)), bound=self.bound
    )
    count = len(set(self.groups))
    shown = f'distance {kinds.shown_limits(found)}, {len(self.values)} samples, {count} groups'
    return kinds.outcome(found, shown, low=-math.inf, high=self.bound)


@dataclasses.dataclass(frozen=True)
class Measured(kinds.Kind):
  """Is the metric of a cell, one number per interval of a log, between `low` and `high`?

  Intervals of one training are no replicates: fewer than `MANY_RUNS` seeds give the mean and the
  smallest and largest interval, and no p. More are tested by the logarithms of their means.
  """

  metric: str
  first: kinds.Cell
  low: float
  high: float
  reason: str = ''  # of the bounds

  over_runs = True
  estimand = f'mean of the log over runs, from {MANY_RUNS} runs: skewness-corrected t test'

  def least(self, groups: int) -> float:
    del groups
    return math.nan

  def __str__(self):
    return kinds.between(f'{self.metric}({self.first})', self)

  def __call__(self, rows: pd.DataFrame) -> kinds.Outcome:
    kept = kinds.known(rows, self.metric, [(1.0, self.first)], by=('seed', 'index'))
    if isinstance(kept, kinds.Outcome):
      return kept
    value = kept['value'].to_numpy()
    means = statistics.group_means(value, kept['group'].to_numpy())
    runs = f'{len(means)} run{"s" if len(means) > 1 else ""}'
    shown = (
      f'{means.mean():.4g} ({value.min():.4g} to {value.max():.4g} over {len(value)} intervals of '
      f'{runs})'
    )
    effect = float(hypotheses.effect(means.mean(), low=self.low, high=self.high))
    if len(means) < MANY_RUNS:
      return kinds.Outcome(shown, effect, math.nan, math.nan)
    low, high = (math.log(at) if 0 < at < math.inf else -math.inf if at <= 0 else at
                 for at in (self.low, self.high))  # fmt: skip
    found = hypotheses.mean_test(np.log(means), low=low, high=high)
    return kinds.outcome(found, shown, low=low, high=high)

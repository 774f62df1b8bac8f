"""A family of paired comparisons by the Wilcoxon signed-rank test, the test of the BraTS paper.

One line per comparison of two cells of the grid on one metric, paired by example and reduced to one
difference per group: signed-rank test with Pratt's zeros, matched-pairs rank-biserial correlation,
group bootstrap interval. Holm's and Bonferroni's corrections run over all lines of the table; its
`family` column says how many those were.

The signed-rank test asks whether differences are symmetric about 0, not whether their mean is 0:
it rejects 15 % (12 groups) to 35 % (60) of exponential differences of mean 0 at 5 %. Claims are
therefore decided by the tests of `evaluation.hypotheses`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from robustmed.evaluation import claims, statistics

COLUMNS = (
  'metric', 'first', 'second', 'mean_first', 'mean_second', 'difference', 'low', 'high', 'effect',
  'groups', 'p', 'p_holm', 'p_bonferroni', 'family',
)  # fmt: skip
_FEW = 13  # differences whose 2^n patterns of signs are all looked at, as scipy does


class Comparison(NamedTuple):
  """Is the metric of `first` another one than that of `second`?"""

  first: claims.Cell
  second: claims.Cell
  metric: str


def against(
  arms: Sequence[str],
  reference: str,
  *,
  metrics: Sequence[str],
  attack: str,
  levels: Sequence[float],
) -> list[Comparison]:
  """Every arm against the reference at equal level, for every metric (0 is the clean image)."""
  return [
    Comparison(claims.Cell(arm, attack, eps), claims.Cell(reference, attack, eps), metric)
    for metric in metrics
    for eps in levels
    for arm in arms
    if arm != reference
  ]


def table(
  comparisons: Sequence[Comparison], rows: pd.DataFrame, *, family: str = ''
) -> pd.DataFrame:
  """One line per comparison with `COLUMNS`; cells that are missing give nan and are not counted.

  `family` names the set of tests that is corrected together, such as '7 defenses x 3 regions'.
  """
  rows = statistics.prepare(rows, metrics=sorted({one.metric for one in comparisons}))
  lines = []
  for one in comparisons:
    first, second = (
      statistics.select(rows, arm=cell.arm, attack=cell.attack, eps=cell.eps)
      for cell in (one.first, one.second)
    )
    both = statistics.pair(first, second, metric=one.metric)
    found = statistics.paired_difference(first, second, metric=one.metric)
    lines.append(
      {
        'metric': one.metric,
        'first': str(one.first),
        'second': str(one.second),
        'mean_first': both['first'].mean(),
        'mean_second': both['second'].mean(),
        'difference': found.mean,
        'low': found.low,
        'high': found.high,
        'effect': rank_biserial(found.by_group) if found.n else float('nan'),
        'groups': len(found.by_group),
        'p': signed_rank(found.by_group) if found.n else float('nan'),
      }
    )
  result = pd.DataFrame(lines, columns=[*COLUMNS])
  p = result['p'].to_numpy(float)
  result['p_holm'] = statistics.holm(p)
  result['p_bonferroni'] = statistics.bonferroni(p)
  tested = int(result['p'].notna().sum())
  result['family'] = f'{family}: {tested} tests' if family else f'{tested} tests'
  return result


def signed_rank(differences: np.ndarray, *, alternative: str = 'two-sided') -> float:
  """p of the Wilcoxon signed-rank test (Pratt's zeros: ranked, then dropped).

  Differences below 1e-12 of the largest are zeros. Nothing to rank (no difference, or only zeros)
  is no evidence: p = 1.
  """
  differences = _without_rounding(differences)
  if not np.any(differences):
    return 1.0
  distinct = len(np.unique(np.abs(differences))) == len(differences) and np.all(differences)
  if len(differences) <= _FEW and not distinct:
    return _signed_rank_of_few(differences, alternative)
  test = stats.wilcoxon(differences, zero_method='pratt', alternative=alternative)
  return float(min(1.0, test.pvalue))


def _signed_rank_of_few(differences: np.ndarray, alternative: str) -> float:
  """p over all signs of the ranks, exact with ties too.

  scipy gives the same number, in a second or so: it ranks anew for each of 2^n patterns.
  """
  ranks = stats.rankdata(np.abs(differences))[differences != 0]
  positive = np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks)) & 1
  sums = positive @ ranks  # of halves: exact
  observed = ranks[differences[differences != 0] > 0].sum()
  greater, less = np.mean(sums >= observed), np.mean(sums <= observed)
  both = min(1.0, 2 * min(greater, less))
  return float({'two-sided': both, 'greater': greater, 'less': less}[alternative])


def rank_biserial(differences: np.ndarray) -> float:
  """(R+ - R-) / (R+ + R-) with Pratt's ranks; 0 when every difference is zero."""
  differences = _without_rounding(differences)
  if not np.any(differences):
    return 0.0
  ranks = stats.rankdata(np.abs(differences))
  used = ranks[differences != 0].sum()
  return float((np.sign(differences) * ranks).sum() / used)


def _without_rounding(differences: np.ndarray) -> np.ndarray:
  differences = np.asarray(differences, np.float64)
  largest = np.abs(differences).max(initial=0.0)
  return np.where(np.abs(differences) <= 1e-12 * largest, 0.0, differences)

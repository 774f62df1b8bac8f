"""From per-example rows to numbers with intervals: groups are resampled, never examples.

A frame of rows has one line per (arm, attack, eps, index, seed), a `group` (patient, volume or
scan) and one column per metric; diagnostics start with an underscore. Rules that hold everywhere:

* An example that was run under several seeds counts once, with its mean over the seeds, so that
  `n` is a number of examples.
* A value that is not finite is unknown: it is left out, and `n` counts what is left.
* Fewer than two groups give no interval (nan): nothing can be said about another patient.
* Neither the order of the rows nor (beyond rounding) what else is in the frame changes a result.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed import errors

KEYS = ('arm', 'attack', 'eps', 'index', 'seed')
SUMMARY = ('arm', 'attack', 'eps', 'metric', 'mean', 'std', 'n', 'low', 'high')
CLEAN = 'none'  # the attack of a clean row; its eps is 0
WORST = 'worst'  # the attack of a row that is the worst of several
MIXED = 'slice by slice'  # the member of a subject whose examples have different worst attacks

_BLOCK = 4_000_000  # resampling weights held at once


class Interval(NamedTuple):
  low: float
  high: float


class Difference(NamedTuple):
  """A paired difference, first minus second."""

  mean: float  # over examples
  low: float  # group bootstrap interval of the mean
  high: float
  by_group: np.ndarray  # the mean difference of each group
  n: int  # pairs


def level(eps: float) -> float:
  """The shortest decimal that float32 cannot tell from `eps`: 0.07 however it was stored."""
  return float(str(np.float32(eps)))


def prepare(rows: pd.DataFrame, *, metrics: Sequence[str] = ()) -> pd.DataFrame:
  """Returns rows with the keys checked, levels made comparable, in one fixed order.

  Raises:
    UserError: a column is missing.
    ValueError: a key occurs twice, which would count an example twice.
  """
  missing = [name for name in (*KEYS, 'group', *metrics) if name not in rows.columns]
  if missing:
    known = ', '.join(map(str, rows.columns))
    raise errors.UserError(
      f'the rows of the evaluation lack the column(s) {", ".join(missing)} (they have: {known})'
    )
  rows = rows.copy()
  stored = rows['eps'].to_numpy(np.float64)
  unique, inverse = np.unique(stored, return_inverse=True)
  rows['eps'] = np.array([level(value) for value in unique], np.float64)[inverse]
  rows = rows.sort_values([*KEYS], kind='stable', ignore_index=True)
  repeated = rows.duplicated([*KEYS])
  if repeated.any():
    first = rows.loc[repeated.idxmax(), [*KEYS]].to_dict()
    raise ValueError(f'{int(repeated.sum())} rows occur twice, the first of them {first}')
  return rows


def select(rows: pd.DataFrame, *, arm: str, attack: str, eps: float) -> pd.DataFrame:
  """The rows of one cell of the grid; level 0 is the clean image whatever the attack."""
  eps = level(eps)
  attack = CLEAN if eps == 0 else attack
  return rows[(rows['arm'] == arm) & (rows['attack'] == attack) & (rows['eps'] == eps)]


def examples(rows: pd.DataFrame, *, metric: str) -> pd.DataFrame:
  """One line per example of a cell: columns group, index, value (mean over seeds), sorted."""
  value = rows[metric].to_numpy(np.float64)
  kept = rows.loc[np.isfinite(value), ['group', 'index']].assign(value=value[np.isfinite(value)])
  return kept.groupby(['group', 'index'], sort=True, as_index=False)['value'].mean()


def worst(
  rows: pd.DataFrame, *, attacks: Sequence[str], metric: str, higher_is_better: bool
) -> pd.DataFrame:
  """Returns one row per network, example and level: that of the attack which is worst by `metric`.

  An image of a lower level lies in the ball of a higher one, and the clean image lies in every one,
  so both are candidates: the metric never improves with the level. Columns '_member' and
  '_member_eps' say where the row is from; 'attack' is `WORST`. Unknown values are no candidates as
  long as one is known.
  """
  rows = prepare(rows, metrics=[metric])
  rows = rows[rows['attack'].isin([CLEAN, *attacks])]
  badness = rows[metric].astype(np.float64) * (-1 if higher_is_better else 1)
  rows = rows.assign(_badness=badness.fillna(-np.inf))
  keys = [name for name in ('arm', 'seed', 'fold', 'index') if name in rows.columns]
  found = []
  for eps in sorted(set(rows['eps']) - {0.0}):
    inside = rows[rows['eps'] <= eps]
    attacked = set(rows.loc[rows['eps'] == eps, 'arm'])
    # of equal ones the first: the clean image, then the lowest level
    inside = inside[inside['arm'].isin(attacked)].sort_values(['eps', 'attack'], kind='stable')
    chosen = inside.loc[inside.groupby(keys, sort=True)['_badness'].idxmax()]
    where = {'_member': chosen['attack'], '_member_eps': chosen['eps']}
    found.append(chosen.assign(**where, attack=WORST, eps=eps))
  empty = rows.head(0).assign(_member='', _member_eps=0.0)
  whole = pd.concat(found, ignore_index=True) if found else empty
  return whole.drop(columns='_badness')


def worst_of_subjects(
  rows: pd.DataFrame,
  whole: pd.DataFrame,
  *,
  subjects: Callable[[pd.DataFrame], pd.DataFrame],
  attacks: Sequence[str],
  metric: str,
  higher_is_better: bool,
) -> pd.DataFrame:
  """Returns `worst` of the subjects that rows of examples, such as the slices of a volume, make up.

  subjects: rows of examples -> rows of subjects; whole: those of `rows`. Candidates are every
  attack on all examples of a subject, and as `MIXED` the worst one of each example. These need not
  be the worst together, as the Dice of a volume is not the mean of that of its slices.
  """
  judge = {'metric': metric, 'higher_is_better': higher_is_better}
  if len(whole) == len(rows) or metric not in rows.columns:
    return worst(whole, attacks=attacks, **judge)
  single = worst(rows, attacks=attacks, **judge)
  single = single.drop(columns=['_member', '_member_eps']).assign(attack=MIXED)
  mixed = subjects(single) if len(single) else single
  return worst(pd.concat([whole, mixed]), attacks=[*attacks, MIXED], **judge)


def summary(
  rows: pd.DataFrame,
  *,
  metrics: Sequence[str],
  seed: int = 0,
  resamples: int = 2000,
  level: float = 0.95,
) -> pd.DataFrame:
  """Mean, standard deviation over examples and group bootstrap interval of every cell.

  Returns the columns of `SUMMARY`, ordered by arm, attack, eps as sorted and metric as given.
  `std` has n - 1 in its denominator. Every cell uses the same draws of groups as long as it has
  the same number of groups, so that neighbouring intervals do not differ by chance alone.
  """
  rows = prepare(rows, metrics=metrics)
  table = []
  for (arm, attack, eps), cell in rows.groupby(['arm', 'attack', 'eps'], sort=True):
    for metric in metrics:
      kept = examples(cell, metric=metric)
      value = kept['value'].to_numpy()
      sums, counts = _by_group(value, kept['group'].to_numpy())
      table.append(((arm, attack, eps, metric), value, sums, counts))

  by_size: dict[int, list[int]] = {}
  for position, (_, _, sums, _) in enumerate(table):
    by_size.setdefault(len(sums), []).append(position)
  interval = np.full((len(table), 2), np.nan)
  for size, positions in by_size.items():
    if size >= 2:
      sums = np.stack([table[position][2] for position in positions])
      counts = np.stack([table[position][3] for position in positions])
      means = _resampled_means(sums, counts, seed=seed, resamples=resamples)
      interval[positions] = np.quantile(means, _tails(level), axis=0).T

  lines = []
  for (key, value, _, _), (low, high) in zip(table, interval, strict=True):
    mean = value.mean() if len(value) else np.nan
    std = value.std(ddof=1) if len(value) > 1 else np.nan
    lines.append((*key, mean, std, len(value), low, high))
  return pd.DataFrame(lines, columns=[*SUMMARY])


def bootstrap_interval(
  values: np.ndarray,
  groups: np.ndarray,
  *,
  seed: int = 0,
  resamples: int = 2000,
  level: float = 0.95,
) -> Interval:
  """Percentile interval of the mean of `values` [n] when whole `groups` [n] are drawn."""
  values = np.asarray(values, np.float64)
  known = np.isfinite(values)
  sums, counts = _by_group(values[known], np.asarray(groups)[known])
  if len(sums) < 2:
    return Interval(math.nan, math.nan)
  means = _resampled_means(sums[None], counts[None], seed=seed, resamples=resamples)
  low, high = np.quantile(means[:, 0], _tails(level))
  return Interval(float(low), float(high))


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """The mean of `values` [n] in each group, in the order of the sorted groups, [g]."""
  sums, counts = _by_group(np.asarray(values, np.float64), np.asarray(groups))
  return sums / counts


def pair(first: pd.DataFrame, second: pd.DataFrame, *, metric: str) -> pd.DataFrame:
  """The examples known in both cells: columns group, index, first, second."""
  first = examples(first, metric=metric).rename(columns={'value': 'first'})
  second = examples(second, metric=metric).rename(columns={'value': 'second'})
  return first.merge(second, on=['group', 'index'], how='inner', validate='one_to_one')


def contrast(terms: Sequence[tuple[float, pd.DataFrame]], *, metric: str) -> pd.DataFrame:
  """The weighted sum of cells over the examples known in all of them.

  terms: (weight, rows of a cell). Columns: group, index, value and each cell's own as 0, 1, ...
  """
  first, *others = (
    examples(rows, metric=metric).rename(columns={'value': place})
    for place, (_, rows) in enumerate(terms)
  )
  for other in others:
    first = first.merge(other, on=['group', 'index'], how='inner', validate='one_to_one')
  value = sum(weight * first[place] for place, (weight, _) in enumerate(terms))
  return first.assign(value=value)


def paired_difference(
  first: pd.DataFrame,
  second: pd.DataFrame,
  *,
  metric: str,
  seed: int = 0,
  resamples: int = 2000,
  level: float = 0.95,
) -> Difference:
  """Compares two cells of prepared rows, first - second, on the examples that both have.

  The interval resamples groups. No pair at all gives nan.
  """
  both = pair(first, second, metric=metric)
  difference = (both['first'] - both['second']).to_numpy()
  groups = both['group'].to_numpy()
  low, high = bootstrap_interval(difference, groups, seed=seed, resamples=resamples, level=level)
  means = group_means(difference, groups)
  mean = float(difference.mean()) if len(difference) else math.nan
  return Difference(mean, low, high, means, len(difference))


def holm(p: Sequence[float]) -> np.ndarray:
  """Holm's step-down adjusted p values of each family, the last axis of `p`.

  nan (not tested) stays nan and is not counted.
  """
  p = np.asarray(p, np.float64)
  order = np.argsort(p, axis=-1, kind='stable')  # nan comes last
  tested = np.count_nonzero(~np.isnan(p), axis=-1)[..., None]
  factors = tested - np.arange(p.shape[-1])
  rising = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
  adjusted = np.empty(p.shape)
  np.put_along_axis(adjusted, order, np.minimum(1.0, rising), axis=-1)
  return adjusted


def bonferroni(p: Sequence[float]) -> np.ndarray:
  """p times the number of tests, at most 1; nan (not tested) stays nan and is not counted."""
  p = np.asarray(p, np.float64)
  return np.minimum(1.0, p * np.count_nonzero(~np.isnan(p)))


def _tails(level: float) -> tuple[float, float]:
  return (1 - level) / 2, (1 + level) / 2


def _by_group(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Sum and number of the values in each group, in the order of the sorted groups."""
  names, inverse = np.unique(groups, return_inverse=True)
  sums = np.bincount(inverse, weights=values, minlength=len(names))
  return sums, np.bincount(inverse, minlength=len(names)).astype(np.float64)


def _resampled_means(
  sums: np.ndarray, counts: np.ndarray, *, seed: int, resamples: int
) -> np.ndarray:
  """Means of [cells, groups] sums and counts after drawing groups: [resamples, cells]."""
  size = sums.shape[1]
  random = np.random.default_rng(seed)
  block = max(1, _BLOCK // size)
  means = []
  for start in range(0, resamples, block):
    drawn = min(block, resamples - start)
    weights = random.multinomial(size, np.full(size, 1 / size), size=drawn).astype(np.float64)
    means.append((weights @ sums.T) / (weights @ counts.T))
  return np.concatenate(means)

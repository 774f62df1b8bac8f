"""A paper's printed tables as rows of an evaluation, and the verdicts of its claims on them.

A table of cells has the columns arm, attack, eps (clean: 'none', 0), metric and mean, and may have
std and correlation, which go before `Spread`; `published.tables()` of a paper is one.

* `rows(table, sizes=(5,) * 20, spread={'DICE': Spread(0.05)})`: rows whose means are the printed
  ones exactly, of 20 groups with 5 examples each. Residuals are normal scores in an order that
  depends on the cell alone: no new draw, no other cell changes them.
* `without_effect(table, seed=3, ...)`: random rows of the same cells, all of one distribution.
* `check(made, rows, holds=[...], undecided=[...])`: the claims' verdicts are the expected ones,
  each claim is named, and no other statement is.
* `unexplained(made)`: claims with a threshold that prints no reason; there should be none.
* `check_without_effect(make, draw)`: no claim that something is better than something else holds in
  rows without effect, save as seldom as a table of claims may err; `superiority` are those claims.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from robustmed.evaluation import claims, kinds, sample_kinds

KEYS = ['arm', 'attack', 'eps']


class Spread(NamedTuple):
  """How a metric differs between examples."""

  std: float  # over examples
  correlation: float = 0.5  # of two cells over examples
  shared: float = 0.5  # of two examples of one group
  bounds: tuple[float, float] = (-math.inf, math.inf)  # finite: beta; from below only: lognormal


DICE = Spread(0.06, bounds=(0.0, 1.0))


def rows(
  table: pd.DataFrame,
  *,
  sizes: Sequence[int],
  spread: Mapping[str, Spread],
  seed: int = 0,
  exact: bool = True,
) -> pd.DataFrame:
  """Rows of `statistics` with one column per metric; `sizes` are the groups' numbers of examples.

  The mean over examples is the printed one, and without bounds the standard deviation too.
  Bounded values deviate a little less than stated, and not more than half of what their bounds
  allow. `exact=False` draws residuals at random: means are then those of the population.
  """
  group = np.repeat(np.arange(len(sizes)), sizes)
  draw = lambda one, *name: _residual(_generator(seed, *name), group, one.shared, exact=exact)
  common = {name: draw(one, 'common') for name, one in spread.items()}
  parts = []
  for keys, cell in table.groupby(KEYS, sort=False):
    found = dict(zip(KEYS, keys, strict=True))
    found |= {'seed': 0, 'group': group, 'index': np.arange(len(group))}
    for line in cell.to_dict('records'):
      metric = line['metric']
      one = spread[metric]
      correlation = line.get('correlation', one.correlation)
      own = draw(one, *keys, metric)
      if exact:
        own = _orthogonal(own, common[metric], group)
      z = math.sqrt(correlation) * common[metric] + math.sqrt(1 - correlation) * own
      found[metric] = _values(z, line['mean'], line.get('std', one.std), one.bounds, exact=exact)
    parts.append(pd.DataFrame(found))
  return pd.concat(parts, ignore_index=True)


def without_effect(
  table: pd.DataFrame, *, seed: int, sizes: Sequence[int], spread: Mapping[str, Spread]
) -> pd.DataFrame:
  """Random rows of the table's cells: every cell of a metric has the mean of its printed means."""
  mean = table.groupby('metric')['mean'].transform('mean')
  kept = table[[*KEYS, 'metric']].assign(mean=mean)
  return rows(kept, sizes=sizes, spread=spread, seed=seed, exact=False)


def check(made: Sequence[claims.Claim], frame: pd.DataFrame, **expected: Sequence[str]) -> None:
  """Asserts the verdict of every claim; expected: verdict (not_run for 'not run') = statements."""
  wanted = {}
  for name, statements in expected.items():
    for statement in statements:
      assert statement not in wanted, f'expected twice: {statement}'
      wanted[statement] = name.replace('_', ' ')
  table = claims.decide(made, frame).set_index('statement')
  assert table.index.is_unique, table.index[table.index.duplicated()]
  found = dict(table['verdict'])
  assert not found.keys() ^ wanted.keys(), sorted(found.keys() ^ wanted.keys())
  wrong = [name for name in found if found[name] != wanted[name]]
  lines = [
    f'{name}: {found[name]}, not {wanted[name]} ({table["numbers"][name]})' for name in wrong
  ]
  assert not lines, '\n'.join(lines)


def check_without_effect(
  make: Callable[[pd.DataFrame], Sequence[claims.Claim]],
  draw: Callable[[int], pd.DataFrame],
  *,
  seeds: int = 10,
) -> None:
  """Asserts that superiority is found as seldom in rows without effect as claims may err.

  draw: seed -> rows `without_effect`; make: rows -> claims. A table may err in one of 20 seeds, so
  that 2 of 10 are allowed.
  """
  found = {seed: held(make(rows), rows) for seed in range(seeds) for rows in [draw(seed)]}
  wrong = {seed: names for seed, names in found.items() if names}
  assert len(wrong) <= stats.binom.ppf(0.95, seeds, claims.ALPHA), wrong


def superiority(made: Sequence[claims.Claim]) -> list[str]:
  """The statements that something is better or worse than something else."""
  return [claim.statement for claim in made if _compares(claim.test)]


def held(made: Sequence[claims.Claim], frame: pd.DataFrame) -> list[str]:
  """The statements of superiority that hold in `frame`."""
  table = claims.decide(made, frame).set_index('statement')['verdict']
  return [name for name in superiority(made) if table[name] == 'holds']


def unexplained(made: Sequence[claims.Claim]) -> list[str]:
  """The statements with a threshold other than 0, or chance, whose reason is not printed."""
  return [claim.statement for claim in made if not _explained(claim.test)]


def _explained(test) -> bool:
  if isinstance(test, kinds.Elsewhere | kinds.Repeated):
    return _explained(test.test)
  if isinstance(test, kinds.AtLeast):
    return all(map(_explained, test.tests))
  natural = (0.0, 0.5, 1.0) if isinstance(test, sample_kinds.Auroc) else (0.0,)
  bounds = [getattr(test, name, 0.0) for name in ('low', 'high', 'bound')]
  if all(math.isinf(bound) or bound in natural for bound in bounds if isinstance(bound, float)):
    return True
  reason = getattr(test, 'reason', '')
  return bool(reason) and reason in str(test)


def _compares(test) -> bool:
  if isinstance(test, kinds.Elsewhere | kinds.Repeated):
    return _compares(test.test)
  if isinstance(test, kinds.AtLeast):
    return all(map(_compares, test.tests))
  if isinstance(test, kinds.Contrast):  # a difference; equivalence has two bounds
    return test.low >= 0 or test.high <= 0
  if isinstance(test, sample_kinds.Auroc):
    return test.low >= 0.5 or test.high <= 0.5
  return isinstance(test, kinds.BestOf)


def _generator(seed: int, *name) -> np.random.Generator:
  return np.random.default_rng([seed, zlib.crc32(repr(tuple(map(str, name))).encode())])


def _residual(rng, group, shared: float, *, exact: bool):
  """[n] of mean 0 and deviation 1; two examples of one group have a correlation of `shared`."""
  by_group = _scores(rng, group.max() + 1, exact=exact)[group]
  if len(np.unique(group)) == len(group):
    return by_group
  own = _scores(rng, len(group), exact=exact)
  return _standard(math.sqrt(shared) * by_group + math.sqrt(1 - shared) * own, exact=exact)


def _scores(rng, count: int, *, exact: bool):
  if not exact:
    return rng.normal(size=count)
  return _standard(rng.permutation(stats.norm.ppf((np.arange(count) + 0.5) / count)), exact=True)


def _standard(values, *, exact: bool):
  return (values - values.mean()) / values.std(ddof=1) if exact else values


def _orthogonal(own, common, group):
  """`own` without what it shares with `common` between groups and within them."""
  count = np.bincount(group)
  mean = lambda values: (np.bincount(group, values) / count)[group]
  between, within = mean(own), own - mean(own)
  for part, other in ((between, mean(common)), (within, common - mean(common))):
    if (square := other @ other) > 1e-12:
      part -= (part @ other) / square * other
  left = between + within
  return _standard(left, exact=True) if left.std() > 1e-9 else np.zeros_like(left)


def _values(z, mean: float, std: float, bounds, *, exact: bool):
  low, high = bounds
  if mean in bounds or std == 0:
    return np.full(z.shape, float(mean))
  if math.isinf(low):
    return mean + std * z
  if math.isinf(high):
    width = math.sqrt(math.log1p((std / (mean - low)) ** 2))
    values = (mean - low) * np.exp(width * z - width**2 / 2)
    return low + values * ((mean - low) / values.mean() if exact else 1.0)
  at, most = (mean - low) / (high - low), high - low
  variance = min((std / most) ** 2, at * (1 - at) / 4)
  size = at * (1 - at) / variance - 1
  share = stats.beta.ppf(stats.norm.cdf(z), at * size, (1 - at) * size)
  if exact and share.mean() > at:
    share = share * (at / share.mean())
  elif exact:
    share = 1 - (1 - share) * ((1 - at) / (1 - share.mean()))
  return low + most * share

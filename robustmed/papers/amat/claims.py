"""What Ma & Liang 2022 say of AMAT, as tests on our rows."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed.evaluation import claims, sample_kinds, statistics, trials
from robustmed.metrics import slice_sets
from robustmed.report import inputs

TABLE_2, METHOD, SEGMENTATION, CONCLUSION = 'Table 2', 'Section 2.2', 'Section 3.1', 'Conclusion'
AVERAGE, ALL_LEVELS = 'pgd_average', 1.0  # the attack and 'level' of rows that average the levels
COLLAPSE = 0.1  # Dice or IOU
COLLAPSE_REASON = "ours; 'almost 0' in the paper"
SAME_COST = 1.25  # AMAT's seconds over SAT's
SAME_COST_REASON = "ours; 'almost the same' are 1.004 to 1.17 in Table 2"
AWAY = 0.1  # a distribution function further from the normal one is not approximately normal
AWAY_REASON = 'bound: ours, the paper gives none'
OURS = 'ours, the paper prints curves'
EXCEPTIONS = 1  # 'almost all noise levels': the paper names one exception


class Clean(NamedTuple):
  """The clean values V of the std arm that thresholds are estimated from."""

  values: np.ndarray  # [n, K]
  groups: np.ndarray | None = None  # [n], their volumes or images; None: not known
  strata: np.ndarray | None = None  # [n], places in `names`; None: values of one kind
  names: tuple[str, ...] = ('',)
  what: str = 'losses'

  def kinds(self) -> dict[str, np.ndarray]:
    """Returns {name of a stratum: which values are of it, [n] bool}, without empty ones."""
    if self.strata is None:
      return {'': np.ones(len(self.values), bool)}
    return {self.names[place]: self.strata == place for place in np.unique(self.strata)}


class Saying(NamedTuple):
  """What the paper says of one kind of task beside that AMAT is the best."""

  place: str = 'Section 4, Figs. 2-4'
  higher: bool = True  # the metric
  collapse: str = 'highest'  # the level at which STD has fallen to COLLAPSE, '' for none
  levels: bool = False  # AMAT is the best at almost all levels
  better_clean: str = ''  # an arm that is better than AMAT on clean images
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


def of_paper(
  rows: pd.DataFrame,
  *,
  metric: str,
  sat: tuple[str, ...],
  levels: tuple[float, ...],
  clean: Clean,
  seconds: pd.DataFrame,
  saying: Saying,
) -> tuple[claims.Claim, ...]:
  """The claims on one data set; `levels` are those of `pgd`, the attacked ones, rising.

  `clean` is V of the std arm, `seconds` one row per trial and interval of the training log with
  AMAT's time over SAT's.
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
  if saying.levels:
    # One claim, as the paper says it of the levels together; each of them is in its numbers.
    tests = [
      claims.best_of(
        'amat',
        (*standards, *sat),
        metric=metric,
        attack='pgd',
        eps=eps,
        higher=saying.higher,
      )
      for eps in (0.0, *levels)
    ]
    number = max(1, len(tests) - EXCEPTIONS)
    which = f'at least {number} of {len(tests)}, clean among them'
    add(f'AMAT is the best at almost all levels ({which})', claims.at_least(number, tests))
  if saying.better_clean:
    test = better(saying.better_clean, 'amat', attack='none', eps=0.0)
    add(f'{saying.better_clean} is better than AMAT on clean images', test)
  for rival in sat:
    test = better('amat', rival, attack='none', eps=0.0)
    add(f'AMAT beats {rival} on clean images', test, CONCLUSION)
  if saying.collapse:
    eps = lowest if saying.collapse == 'lowest' else highest
    add(
      f'STD falls to almost nothing at level {eps:g}',
      claims.below(
        'std',
        metric=metric,
        attack='pgd',
        eps=eps,
        threshold=COLLAPSE,
        reason=COLLAPSE_REASON,
      ),
    )
  for one, other in saying.better:
    test = claims.Elsewhere(better(one, other, **at), mean)
    add(f'{one} has a better average over all levels than {other}', test)
  for one, other, tolerance in saying.close:
    test = claims.close(one, other, metric=metric, tolerance=tolerance, reason=OURS, **at)
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
      statement = f'Dice of whole volumes (TVDI) is above that of slices (ADI) for {arm}'
      add(statement, test, SEGMENTATION)
  for term in range(clean.values.shape[1]):
    which = '' if clean.values.shape[1] == 1 else f', term {term + 1},'
    are = 'are' if clean.what == 'losses' else 'is'
    statement = f'The clean {clean.what} V of STD{which} {are} approximately normal'
    add(statement, _normal(clean, term), METHOD)
  cost = claims.measured(
    claims.Cell('amat'), metric='ratio', high=SAME_COST, reason=SAME_COST_REASON
  )
  add('AMAT takes about as long as SAT', claims.Elsewhere(cost, seconds), TABLE_2)
  return tuple(found)


def _normal(clean: Clean, term: int):
  """Returns the test that V is normal within every stratum of `sample_kinds.FEWEST` values."""

  def test(name, kept):
    return sample_kinds.Normal(
      tuple(clean.values[kept, term]),
      () if clean.groups is None else tuple(clean.groups[kept].tolist()),
      AWAY,
      AWAY_REASON,
      what=f'clean {clean.what} of the std arm with their groups',
      name=name,
    )

  known = {} if clean.groups is None else clean.kinds()
  strata = {name: kept for name, kept in known.items() if kept.sum() >= sample_kinds.FEWEST}
  tests = [test(name, kept) for name, kept in strata.items()]
  if not tests:
    return test('', np.zeros(len(clean.values), bool))
  return tests[0] if len(tests) == 1 else claims.at_least(len(tests), tests)


def ratios(training: pd.DataFrame | None, *, sat: tuple[str, ...]) -> pd.DataFrame:
  """AMAT's seconds per step over the mean of the SAT arms', interval by interval, as rows."""
  table = inputs.seconds_per_step(training)
  keys = [*trials.names(table), 'step']
  ours = table[table['arm'] == 'amat'].set_index(keys)['per_step']
  theirs = table[table['arm'].isin(sat)].groupby(keys)['per_step'].mean()
  found = (ours / theirs).dropna().rename('ratio').reset_index()
  return found.assign(
    arm='amat', attack=statistics.CLEAN, eps=0.0, group=found['step'], index=found['step']
  )

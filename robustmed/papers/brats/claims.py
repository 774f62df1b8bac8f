"""What Liu et al. 2021 say of attacks on brain tumour networks, as tests on our rows."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import pandas as pd

from robustmed.evaluation import claims
from robustmed.papers.brats import published
from robustmed.papers.brats import rows as brats_rows
from robustmed.report import inputs

REGIONS = {'wt': 'whole tumour', 'tc': 'core', 'et': 'enhancing tumour'}
METRICS = tuple(f'dice_{name}' for name in REGIONS)
ATTACKS = {'fgsm': 'FGSM', 'ifgsm': 'i-FGSM', 'tifgsm': 'ti-FGSM'}
EPS, HIGH = 0.05, 0.1
SATURATED = 0.05  # Dice by which temperatures above 100 may differ
KEPT = 0.05  # Dice that a distilled network may lose on clean images
TRAININGS = 3  # of each temperature, to compare temperatures
SIGNIFICANT = 0.05  # the printed p below which a gain is claimed
TABLES = {2: 'Table 3', 3: 'Table 2'}
DISTILLED, TRAINED = {2: 'Fig. 6', 3: 'Fig. 5'}, {2: 'Fig. 8', 3: 'Fig. 7'}
TEXT = 'Text of the discussion'
OURS = 'Carlini and Wagner 2016, not in the paper'


@dataclasses.dataclass(frozen=True)
class Missing(claims.Kind):
  """A claim that this run cannot decide, and why."""

  reason: str

  estimand = 'nothing'

  def least(self, groups: int) -> float:
    del groups
    return math.nan

  def __str__(self):
    return 'not tested'

  def __call__(self, rows: pd.DataFrame) -> claims.Outcome:
    del rows
    return claims.not_run(self.reason)


def arms_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
  """The students by rising temperature and the networks trained on FGSM by rising eps."""
  number = lambda name: int(name.rsplit('_', 1)[1])
  kinds = {
    kind: [name for name in names if name.startswith(f'{kind}_') and name[-1].isdigit()]
    for kind in ('distil', 'at')
  }
  return {kind: tuple(sorted(found, key=number)) for kind, found in kinds.items()}


def of_paper(
  rows: pd.DataFrame,
  *,
  dimension: int,
  arms: Sequence[str],
  adaptive: Sequence[str] = (),
  training: pd.DataFrame | None = None,
  other: pd.DataFrame | None = None,
  unpaired: str = '',
  curves: pd.DataFrame | None = None,
  alpha: float = 0.0,
) -> tuple[claims.Claim, ...]:
  """What the paper says of networks of this dimension, and whether the gains are masked.

  `adaptive` are the attacks of which the lowest Dice counts, `other` the rows of the run in the
  other dimension or, why they are not paired, `unpaired`; `training` is the log of losses and
  seconds, `curves` the rows after each step of `alpha` (Fig. 3).
  """
  kinds = arms_of(arms)
  made = [*_attacks(dimension), *_gains(kinds, dimension), *_defended(arms, kinds, dimension)]
  if dimension == 3:
    made += [*_iterations(curves, alpha), *_temperature(rows, kinds['distil'])]
    made += _clean(kinds['distil'])
  made += [*_budgets(kinds['at'], dimension), *_enhancing(kinds, dimension)]
  made += [*_dimensions(rows, other, dimension, unpaired), *_cost(kinds, training)]
  made += _masked(rows, kinds['distil'], adaptive)
  return tuple(made)


def _cells(first, second, *, metric, low=0.0):
  return claims.inside(first, second, metric=metric, low=low)


def _attacks(dimension):
  """Table 1 is of volumes; of slices Table 3 has FGSM."""
  clean = claims.Cell('std')
  attacks, place = (ATTACKS, 'Table 1') if dimension == 3 else ({'fgsm': 'FGSM'}, 'Table 3')
  for metric, (name, shown) in itertools.product(METRICS, attacks.items()):
    attacked = claims.Cell('std', name, EPS)
    yield claims.Claim(
      f'{shown} lowers {_region(metric)} Dice', place, _cells(clean, attacked, metric=metric)
    )
  for metric, other in itertools.product(METRICS, ('fgsm', 'tifgsm') if dimension == 3 else ()):
    cells = claims.Cell('std', other, EPS), claims.Cell('std', 'ifgsm', EPS)
    yield claims.Claim(
      f'i-FGSM lowers {_region(metric)} Dice more than {ATTACKS[other]}',
      place,
      _cells(*cells, metric=metric),
    )


def _iterations(curves, alpha):
  """After as many steps as the curves have less than half way, there less than after one."""
  for name, metric in itertools.product(('ifgsm', 'tifgsm'), METRICS):
    statement = f'Dice falls with the iterations of {ATTACKS[name]} ({_region(metric)})'
    found = None if curves is None else curves[curves['attack'] == name]
    count = 0 if found is None or found.empty else round(float(found['eps'].max()) / alpha)
    if count < 3:
      reason = 'no curves against the number of iterations of three steps or more'
      yield claims.Claim(statement, 'Fig. 3', Missing(reason))
      continue
    at = [claims.Cell('std', name, round(step * alpha, 6)) for step in (1, count // 2, count)]
    falls = [_cells(*pair, metric=metric) for pair in itertools.pairwise(at)]
    test = claims.Elsewhere(claims.at_least(2, falls), found)
    yield claims.Claim(f'{statement}: 1, {count // 2}, {count}', 'Fig. 3', test)


def _gains(kinds, dimension):
  """Every defense against none where the paper prints p <= 0.05 at both levels.

  Table 3 stars enhancing tumour at T = 500 and eps 0.1 with p = 0.0750, which counts as a slip.
  """
  table = published.defenses(dimension)
  table = table[table['eps'] > 0].set_index(['arm', 'metric', 'eps'])['p']
  for arm, metric in itertools.product((*kinds['distil'], *kinds['at']), METRICS):
    levels = [eps for eps in (EPS, HIGH) if table.get((arm, metric, eps), 1.0) <= SIGNIFICANT]
    if len(levels) < 2:
      continue
    tests = [claims.greater(arm, 'std', metric=metric, attack='fgsm', eps=eps) for eps in levels]
    statement = f'{arm} is better than no defense under FGSM {EPS:g} and {HIGH:g}'
    yield claims.Claim(
      f'{statement} ({_region(metric)})', TABLES[dimension], claims.at_least(2, tests)
    )


def _temperature(rows, distilled: Sequence[str]):
  """Said of volumes: enhancing tumour in slices has 0.535 at T = 20 and 0.507 at T = 5000."""
  if distilled[1:]:
    low, high = distilled[0], distilled[-1]
    for metric in METRICS:
      test = claims.greater(high, low, metric=metric, attack='fgsm', eps=EPS)
      yield claims.Claim(
        f'Robustness to FGSM grows with T ({_region(metric)}, {high} against {low})',
        'Fig. 5',
        claims.repeated(test, rows, needed=TRAININGS),
      )
  above = [name for name in distilled if int(name.rsplit('_', 1)[1]) >= 100]
  reason = "ours; the paper's 0.807, 0.814 and 0.809 lie within 0.007"
  for low, high in itertools.pairwise(above):
    test = claims.close(
      high, low, metric='dice_wt', attack='fgsm', eps=EPS, tolerance=SATURATED, reason=reason
    )
    yield claims.Claim(
      f'Above T = 100 it saturates for whole tumour ({high}, {low})', 'Fig. 5', test
    )


def _clean(distilled: Sequence[str]):
  reason = f"{KEPT:g}: ours, twice the paper's largest loss, core at T = 100"
  for arm, metric in itertools.product(distilled, METRICS):
    test = _cells(claims.Cell(arm), claims.Cell('std'), metric=metric, low=-KEPT)
    yield claims.Claim(
      f'Distillation keeps the clean Dice ({_region(metric)}, {arm})',
      'Fig. 5',
      dataclasses.replace(test, reason=reason),
    )


def _defended(arms, kinds, dimension):
  clean = claims.Cell('std')
  for arm in (*kinds['distil'], *kinds['at'], *(['noise'] if 'noise' in arms else [])):
    cells = clean, claims.Cell(arm, 'fgsm', EPS)
    yield claims.Claim(
      f'{arm} under FGSM stays below std on clean images',
      TABLES[dimension],
      _cells(*cells, metric='dice_wt'),
    )
  at = {'metric': 'dice_wt', 'attack': 'fgsm', 'eps': EPS}
  yield claims.Claim(
    'Noise augmentation helps against FGSM',
    TRAINED[dimension],
    claims.greater('noise', 'std', **at),
  )
  for arm in kinds['at']:
    yield claims.Claim(
      f'{arm} helps more than noise augmentation',
      TRAINED[dimension],
      claims.greater(arm, 'noise', **at),
    )


def _budgets(trained, dimension):
  """Core at eps 0.1: 0.629 and 0.588 in Table 2, 0.601 and 0.593 in Table 3."""
  statement = 'A larger training eps is not always better'
  if len(trained) < 3:
    reason = 'fewer than three training levels of adversarial training'
    yield claims.Claim(statement, TABLES[dimension], Missing(reason))
    return
  _, better, worse = trained[:3]
  test = claims.greater(better, worse, metric='dice_tc', attack='fgsm', eps=HIGH)
  yield claims.Claim(f'{statement}: {better} above {worse}', TABLES[dimension], test)


def _enhancing(kinds, dimension):
  if not kinds['distil'] or not kinds['at']:
    return
  for arm, eps in itertools.product(kinds['at'], (EPS, HIGH)):
    best = kinds['distil'][-1]
    yield claims.Claim(
      f'{best} is better than {arm} for enhancing tumour under FGSM {eps:g}',
      TABLES[dimension],
      claims.greater(best, arm, metric='dice_et', attack='fgsm', eps=eps),
    )


def _dimensions(rows, other, dimension, unpaired):
  statement = 'The 3D network is better than the 2D network on clean images'
  place = 'Tables 2 and 3'
  if other is None:
    reason = unpaired or ('no run of the other dimension: name its workdir in config.report.other')
    yield claims.Claim(statement, place, Missing(reason))
    return
  names = {dimension: rows, 5 - dimension: other}
  both = [
    frame[frame['arm'] == 'std'].assign(arm=f'std {number}D') for number, frame in names.items()
  ]
  frame = pd.concat(both, ignore_index=True)
  for metric in METRICS:
    cells = claims.Cell('std 3D'), claims.Cell('std 2D')
    yield claims.Claim(
      f'{statement} ({_region(metric)})',
      place,
      claims.Elsewhere(_cells(*cells, metric=metric), frame),
    )


def _cost(kinds, training):
  table = cost_ratios(training, kinds)
  statement = 'Adversarial training is cheaper than distillation (seconds per step)'
  if table.empty:
    yield claims.Claim(statement, TEXT, Missing('no training log with both in it'))
    return
  test = claims.measured(claims.Cell('at'), metric='ratio', high=1.0, reason='1: as many seconds')
  yield claims.Claim(statement, TEXT, claims.Elsewhere(test, table))


def cost_ratios(training: pd.DataFrame | None, kinds) -> pd.DataFrame:
  """Seconds per step of adversarial training over those of teacher and student together, by
  interval of the log."""
  table = inputs.seconds_per_step(training)
  keys = ['seed', 'step']
  per = lambda names: table[table['arm'].isin(names)].groupby(keys)['per_step'].mean()
  teachers = [name.replace('distil_', 'teacher_') for name in kinds['distil']]
  found = per(kinds['at']) / (per(teachers) + per(kinds['distil']))
  found = found.dropna().rename('ratio').reset_index()
  return found.assign(arm='at', attack='none', eps=0.0, group=found['step'], index=found['step'])


def _masked(rows, distilled, adaptive):
  names = [name for name in adaptive if (rows['attack'] == name).any()]
  lowest = brats_rows.lowest(rows, attacks=names, eps=EPS, metrics=['dice_wt'])
  frame = pd.concat([rows[rows['attack'] == brats_rows.SHOWN], lowest], ignore_index=True)
  for arm in distilled:
    test = claims.share_left(
      arm,
      'std',
      metric='dice_wt',
      shown=claims.Cell(arm, brats_rows.SHOWN, EPS),
      worst=claims.Cell(arm, brats_rows.LOWEST, EPS),
      share=brats_rows.LITTLE,
      above=False,
    )
    yield claims.Claim(
      f'Of the gain of {arm} under FGSM less than a third is left under the worst attack',
      OURS,
      claims.Elsewhere(test, frame),
    )


def _region(metric: str) -> str:
  return REGIONS[metric.removeprefix('dice_')]

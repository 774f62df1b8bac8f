"""What Liu et al. 2021 say of attacks on brain tumour networks, as tests on our rows."""

import dataclasses
import itertools
from collections.abc import Sequence

import pandas as pd

from robustmed.evaluation import claims
from robustmed.papers.brats import rows as brats_rows
from robustmed.report import inputs

REGIONS = {'wt': 'whole tumour', 'tc': 'core', 'et': 'enhancing tumour'}
METRICS = tuple(f'dice_{name}' for name in REGIONS)
ATTACKS = {'fgsm': 'FGSM', 'ifgsm': 'i-FGSM', 'tifgsm': 'ti-FGSM'}
EPS, HIGH = 0.05, 0.1
FEWEST_SEEDS = 3  # of a claim about T: of fewer trainings luck could be the difference
SATURATED = 0.05  # Dice by which temperatures above 100 may differ
BACK = 0.1  # Dice within which a masked network is as bad as the undefended one
TABLE_1, TABLES, TEXT = 'Table 1', 'Tables 2 and 3', 'Text of the discussion'
OURS = 'Carlini and Wagner 2016, not in the paper'


@dataclasses.dataclass(frozen=True)
class Missing(claims.Kind):
  """A claim that this run cannot decide, and why."""

  reason: str

  estimand = 'nothing'

  def __str__(self):
    return 'not tested'

  def __call__(self, rows: pd.DataFrame) -> claims.Outcome:
    del rows
    return claims.not_run(self.reason)


@dataclasses.dataclass(frozen=True)
class Repeated(claims.Kind):
  """`test`, left undecided where too few trainings of each arm stand behind its rows."""

  test: claims.Kind
  seeds: int

  @property
  def estimand(self):
    return self.test.estimand

  def __str__(self):
    return str(self.test)

  def __call__(self, rows: pd.DataFrame) -> claims.Outcome:
    found = self.test(rows)
    if found.reason or self.seeds >= FEWEST_SEEDS:
      return found
    reason = f'{self.seeds} training(s) per temperature, at least {FEWEST_SEEDS} are needed'
    return found._replace(numbers=f'{found.numbers}; {reason}', p=1.0, opposite=1.0)


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
  adaptive: Sequence[str],
  training: pd.DataFrame | None,
  other: pd.DataFrame | None,
) -> tuple[claims.Claim, ...]:
  """All claims; `adaptive` are the attacks of the worst case, `other` the rows of the run in the
  other dimension, `training` the log of losses and seconds."""
  kinds = arms_of(arms)
  made = [
    *_attacks(),
    *_temperature(kinds['distil'], rows['seed'].nunique()),
    *_defended(arms, kinds),
  ]
  made += _budgets(kinds['at'])
  if dimension == 3:
    made += _enhancing(kinds)
  made += [*_dimensions(rows, other, dimension), *_cost(kinds, training)]
  made += _masked(rows, kinds['distil'], adaptive)
  return tuple(made)


def _cells(first, second, *, metric, low=0.0):
  return claims.inside(first, second, metric=metric, low=low)


def _attacks():
  clean = claims.Cell('std')
  for metric, (name, shown) in itertools.product(METRICS, ATTACKS.items()):
    attacked = claims.Cell('std', name, EPS)
    yield claims.Claim(
      f'{shown} lowers {_region(metric)} Dice', TABLE_1, _cells(clean, attacked, metric=metric)
    )
  for metric, other in itertools.product(METRICS, ('fgsm', 'tifgsm')):
    cells = claims.Cell('std', other, EPS), claims.Cell('std', 'ifgsm', EPS)
    yield claims.Claim(
      f'i-FGSM lowers {_region(metric)} Dice more than {ATTACKS[other]}',
      TABLE_1,
      _cells(*cells, metric=metric),
    )


def _temperature(distilled: Sequence[str], seeds: int):
  if distilled:
    low, high = distilled[0], distilled[-1]
    for metric in METRICS:
      test = claims.greater(high, low, metric=metric, attack='fgsm', eps=EPS)
      yield claims.Claim(
        f'Robustness to FGSM grows with T ({_region(metric)}, {high} against {low})',
        TEXT,
        Repeated(test, seeds),
      )
  above = [name for name in distilled if int(name.rsplit('_', 1)[1]) >= 100]
  for low, high in itertools.pairwise(above):
    test = claims.close(
      high, low, metric='dice_wt', attack='fgsm', eps=EPS, tolerance=SATURATED, reason='ours'
    )
    yield claims.Claim(f'Above T = 100 it saturates for whole tumour ({high}, {low})', TEXT, test)


def _defended(arms, kinds):
  clean = claims.Cell('std')
  for arm in (*kinds['distil'], *kinds['at'], *(['noise'] if 'noise' in arms else [])):
    cells = clean, claims.Cell(arm, 'fgsm', EPS)
    yield claims.Claim(
      f'{arm} under FGSM stays below std on clean images', TEXT, _cells(*cells, metric='dice_wt')
    )
  at = {'metric': 'dice_wt', 'attack': 'fgsm', 'eps': EPS}
  yield claims.Claim(
    'Noise augmentation helps against FGSM', 'Figs. 7 and 8', claims.greater('noise', 'std', **at)
  )
  for arm in kinds['at']:
    yield claims.Claim(
      f'{arm} helps more than noise augmentation',
      'Figs. 7 and 8',
      claims.greater(arm, 'noise', **at),
    )


def _budgets(trained):
  """Core at eps 0.1, Table 2: 0.556, 0.629, 0.588."""
  if len(trained) < 3:
    reason = 'fewer than three training levels of adversarial training'
    yield claims.Claim('A larger training eps is not always better', TABLES, Missing(reason))
    return
  at = {'metric': 'dice_tc', 'attack': 'fgsm', 'eps': HIGH}
  first, second, third = trained[:3]
  for better, worse in ((second, first), (second, third)):
    yield claims.Claim(
      f'A larger training eps is not always better: {better} above {worse}',
      TABLES,
      claims.greater(better, worse, **at),
    )


def _enhancing(kinds):
  if not kinds['distil'] or not kinds['at']:
    return
  for arm, eps in itertools.product(kinds['at'], (EPS, HIGH)):
    best = kinds['distil'][-1]
    yield claims.Claim(
      f'{best} is better than {arm} for enhancing tumour under FGSM {eps:g}',
      'Table 2',
      claims.greater(best, arm, metric='dice_et', attack='fgsm', eps=eps),
    )


def _dimensions(rows, other, dimension):
  statement = 'The 3D network is better than the 2D network on clean images'
  if other is None:
    reason = 'no run of the other dimension: name its workdir in config.report.other'
    yield claims.Claim(statement, TABLES, Missing(reason))
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
      TABLES,
      claims.Elsewhere(_cells(*cells, metric=metric), frame),
    )


def _cost(kinds, training):
  table = cost_ratios(training, kinds)
  statement = 'Adversarial training is cheaper than distillation (seconds per step)'
  if table.empty:
    yield claims.Claim(statement, TEXT, Missing('no training log with both in it'))
    return
  test = claims.measured(claims.Cell('at'), metric='ratio', high=1.0)
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
  worst = brats_rows.worst(rows, attacks=names, eps=EPS, metrics=['dice_wt'])
  for arm in distilled:
    test = claims.inside(
      claims.Cell(arm, brats_rows.WORST, EPS),
      claims.Cell('std', brats_rows.WORST, EPS),
      metric='dice_wt',
      high=BACK,
    )
    yield claims.Claim(
      f'Under the worst attack {arm} is less than {BACK:g} better than no defense',
      OURS,
      claims.Elsewhere(test, worst),
    )


def _region(metric: str) -> str:
  return REGIONS[metric.removeprefix('dice_')]

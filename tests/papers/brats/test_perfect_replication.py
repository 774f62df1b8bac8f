"""The claims of Liu et al. 2021 on rows whose means are its printed Tables 1 to 3.

Residuals of Table 2 are correlated so that the paper's paired test gives its printed p values.
Those of Table 3 are not correlated: its p values are those of 42 subjects against 42 others.
"""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from robustmed.evaluation import claims, paired, statistics
from robustmed.papers.brats import claims as brats_claims
from robustmed.papers.brats import published
from support import replication

SUBJECTS = {2: 42, 3: 57}
# Without bounds: no distribution on [0, 1] has the deviations and the p values of enhancing tumour.
SPREAD = dict.fromkeys(brats_claims.METRICS, replication.Spread(0.1))


def signed_rank(effect: float, n: int) -> float:
  """The statistic of the signed-rank test where Gaussian differences have this effect."""
  mean = n * (n - 1) / 2 * stats.norm.cdf(np.sqrt(2) * effect) + n * stats.norm.cdf(effect)
  return (mean - n * (n + 1) / 4) / np.sqrt(n * (n + 1) * (2 * n + 1) / 24)


def effect_of(p: float, n: int) -> float:
  wanted = min(stats.norm.isf(p / 2), signed_rank(2.5, n))
  return optimize.brentq(lambda effect: signed_rank(effect, n) - wanted, 0.0, 3.0)


@functools.cache
def table(dimension: int) -> pd.DataFrame:
  """The printed cells; 'correlation' is the square of that with the cell of the undefended network,
  which is the one that all share."""
  found = published.defenses(dimension)
  found['correlation'] = 0.0
  if dimension == 2:
    return found
  std = found[found['arm'] == 'std'].set_index(['metric', 'eps'])
  for place, line in found.iterrows():
    base = std.loc[(line['metric'], line['eps'])]
    if line['arm'] == 'std':
      found.loc[place, 'correlation'] = 1.0
      continue
    spread = abs(line['mean'] - base['mean']) / max(effect_of(line['p'], SUBJECTS[3]), 1e-3)
    both = line['std'] ** 2 + base['std'] ** 2
    with_std = (both - spread**2) / (2 * line['std'] * base['std'])
    found.loc[place, 'correlation'] = np.clip(with_std, 0.0, 0.99) ** 2
  return found


def defended(dimension: int, **options) -> pd.DataFrame:
  sizes = (1,) * SUBJECTS[dimension]
  return replication.rows(table(dimension), sizes=sizes, spread=SPREAD, **options)


@functools.cache
def attacked() -> pd.DataFrame:
  """Table 1, whose undefended network is not that of Table 2 (whole tumour 0.748, not 0.890)."""
  cells = published.attacks()
  cells = cells[cells['metric'].isin(brats_claims.METRICS)].dropna(subset='mean')
  cells = cells.assign(arm='std', eps=np.where(cells['attack'] == 'none', 0.0, brats_claims.EPS))
  return replication.rows(cells, sizes=(1,) * SUBJECTS[3], spread=SPREAD)


def made(dimension: int, frame: pd.DataFrame):
  arms = table(dimension)['arm'].unique()
  other = defended(5 - dimension)
  found = brats_claims.of_paper(frame, dimension=dimension, arms=arms, adaptive=(), other=other)
  return [claim for claim in found if claim.place != 'Table 1']


STUDENTS = ('distil_20', 'distil_100', 'distil_500', 'distil_5000')
TRAINED = ('at_01', 'at_05', 'at_10')
GAIN = '{} is better than no defense under FGSM 0.05 and 0.1 ({})'.format
KEEPS = 'Distillation keeps the clean Dice ({}, {})'.format
BELOW = '{} under FGSM stays below std on clean images'.format
RIVAL = 'distil_5000 is better than {} for enhancing tumour under FGSM {:g}'.format
CUBES = 'The 3D network is better than the 2D network on clean images ({})'.format
GROWS = 'Robustness to FGSM grows with T ({}, distil_5000 against distil_20)'.format
REGIONS = ('whole tumour', 'core', 'enhancing tumour')
# No means are printed: Figs. 3, 7 and 8, the seconds of a step, attacks that are ours.
WITHOUT_TABLE = [
  'Noise augmentation helps against FGSM',
  *(f'{arm} helps more than noise augmentation' for arm in TRAINED),
  'Adversarial training is cheaper than distillation (seconds per step)',
  *(
    f'Of the gain of {arm} under FGSM less than a third is left under the worst attack'
    for arm in STUDENTS
  ),
]
CURVES = [
  f'Dice falls with the iterations of {name} ({region})'
  for name in ('i-FGSM', 'ti-FGSM')
  for region in REGIONS
]
HOLDS = {
  3: [
    *(GAIN(arm, region) for arm in (*STUDENTS, *TRAINED) for region in REGIONS),
    *(BELOW(arm) for arm in (*STUDENTS, *TRAINED)),
    *(KEEPS('whole tumour', arm) for arm in STUDENTS),
    KEEPS('core', 'distil_20'),
    *(KEEPS('enhancing tumour', arm) for arm in ('distil_20', 'distil_100', 'distil_5000')),
    CUBES('whole tumour'),
    CUBES('core'),
  ],
  2: [
    'FGSM lowers whole tumour Dice',
    'FGSM lowers core Dice',
    *(GAIN(arm, 'whole tumour') for arm in ('distil_5000', *TRAINED)),
    *(GAIN(arm, 'core') for arm in ('distil_5000', 'at_01', 'at_05')),
    CUBES('whole tumour'),
    CUBES('core'),
  ],
}
UNDECIDED = {
  3: [
    *map(GROWS, REGIONS),  # the paper trained each network once
    'Above T = 100 it saturates for whole tumour (distil_500, distil_100)',
    'Above T = 100 it saturates for whole tumour (distil_5000, distil_500)',
    *(KEEPS('core', arm) for arm in STUDENTS[1:]),  # 0.003 to 0.025 lost, deviations of 0.17
    KEEPS('enhancing tumour', 'distil_500'),
    # 0.05 to 0.08 beside deviations of 0.28, and Holm's correction over 53 claims
    *(RIVAL(arm, eps) for arm in TRAINED for eps in (0.05, 0.1)),
    'A larger training eps is not always better: at_05 above at_10',
    CUBES('enhancing tumour'),  # 0.670 and 0.629, deviations of 0.29
  ],
  # Printed p values of 0.004 to 0.04 do not survive the correction over 36 claims.
  2: [
    'FGSM lowers enhancing tumour Dice',
    *(GAIN(arm, 'whole tumour') for arm in STUDENTS[:3]),
    *(GAIN(arm, 'core') for arm in (*STUDENTS[:3], 'at_10')),
    *(GAIN(arm, 'enhancing tumour') for arm in STUDENTS[:2]),
    *(BELOW(arm) for arm in (*STUDENTS, *TRAINED)),
    *(RIVAL(arm, eps) for arm in TRAINED for eps in (0.05, 0.1)),
    'A larger training eps is not always better: at_05 above at_10',
    CUBES('enhancing tumour'),
  ],
}
# No Gaussian differences of the printed means and deviations have p values as small as these.
OUT_OF_REACH = {('distil_20', 'dice_et', 0), ('distil_100', 'dice_et', 0), ('at_05', 'dice_et', 0)}


@pytest.mark.parametrize('dimension', [3, 2])
def test_every_claim_has_the_verdict_of_the_printed_tables(dimension):
  frame = defended(dimension)
  replication.check(
    made(dimension, frame),
    frame,
    holds=HOLDS[dimension],
    undecided=UNDECIDED[dimension],
    not_run=[*WITHOUT_TABLE, *(CURVES if dimension == 3 else [])],
  )


def test_table_1_has_what_is_said_of_it():
  frame = attacked()
  found = brats_claims.of_paper(frame, dimension=3, arms=['std'], adaptive=())
  statements = [
    f'{attack} lowers {region} Dice'
    for attack in ('FGSM', 'i-FGSM', 'ti-FGSM')
    for region in REGIONS
  ]
  statements += [
    f'i-FGSM lowers {region} Dice more than {attack}'
    for attack in ('FGSM', 'ti-FGSM')
    for region in REGIONS
  ]
  replication.check([claim for claim in found if claim.place == 'Table 1'], frame, holds=statements)


def test_temperatures_of_three_trainings_are_compared():
  frame = pd.concat(
    [defended(3, seed=seed).assign(seed=seed) for seed in range(3)], ignore_index=True
  )
  table = claims.decide(made(3, frame), frame).set_index('statement')['verdict']
  # 0.583 against 0.506 beside deviations of 0.28 is too little after the correction.
  expected = ('holds', 'holds', 'undecided')
  assert [table[GROWS(region)] for region in REGIONS] == [*expected]


def test_slices_of_enhancing_tumour_say_the_reverse():
  cells = published.defenses(2).set_index(['arm', 'metric', 'eps'])['mean']
  assert cells['distil_5000', 'dice_et', 0.05] < cells['distil_20', 'dice_et', 0.05]
  assert not any('grows with T' in claim.statement for claim in made(2, defended(2)))


@pytest.mark.parametrize('dimension', [3, 2])
def test_the_printed_p_values_come_out(dimension):
  frame = statistics.prepare(defended(dimension))
  cells = table(dimension)
  for line in cells[cells['arm'] != 'std'].to_dict('records'):
    eps, metric = line['eps'], line['metric']
    first, second = (
      statistics.select(frame, arm=arm, attack='fgsm', eps=eps)[metric].to_numpy()
      for arm in (line['arm'], 'std')
    )
    assert first.mean() == pytest.approx(line['mean'])
    assert first.std(ddof=1) == pytest.approx(line['std'])
    if dimension == 3:
      p = paired.signed_rank(first - second)
    else:
      p = stats.ranksums(first, second).pvalue
    if dimension == 3 and (line['arm'], metric, eps) in OUT_OF_REACH:
      assert p > line['p']
    else:
      assert abs(np.log10(p / line['p'])) < 0.7, line


@pytest.mark.slow
def test_nothing_is_better_in_rows_without_effect():
  found = {}
  for seed, dimension in itertools.product(range(4), (2, 3)):
    frame = replication.without_effect(
      table(dimension).drop(columns='correlation'),
      seed=seed,
      sizes=(1,) * SUBJECTS[dimension],
      spread=SPREAD,
    )
    arms = table(dimension)['arm'].unique()
    of = brats_claims.of_paper(frame, dimension=dimension, arms=arms, adaptive=(), other=frame)
    found[seed, dimension] = replication.held(of, frame)
  assert not any(found.values()), found


@pytest.mark.parametrize('dimension', [2, 3])
def test_every_threshold_prints_its_reason(dimension):
  assert not replication.unexplained(made(dimension, defended(dimension)))

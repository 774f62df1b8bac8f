"""The claims of Ma & Liang 2022 on its printed tables, and on curves that meet its sentences.

Its Figs. 2 to 7 are curves without numbers. What is printed of what is claimed: Table 2 (costs) and
Table 3 (landmarks of STD(Dice) and STD(BCE)). Table 1 has a level, of which nothing is claimed.
"""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustmed.papers.amat import claims as amat_claims
from robustmed.papers.amat import experiment, published
from robustmed.runs import commandline
from support import replication

SEGMENTATION = ('heart', 'hippocampus', 'prostate')
CONFIG = {'landmarks': 'ceph', 'cells': 'bccd'}
# Test groups of the paper, and slices of each.
SIZES = {
  'heart': (10,) * 3,
  'hippocampus': (6,) * 35,
  'prostate': (8,) * 5,
  'landmarks': (1,) * 100,
  'cells': (1,) * 37,
}
TRAINED = {'heart': 16, 'hippocampus': 208, 'prostate': 25, 'landmarks': 150, 'cells': 294}
SAT = {
  'heart': (5, 15, 25),
  'hippocampus': (1, 5, 10, 15),
  'prostate': (10, 20, 40),
  'landmarks': (1, 2, 3, 5),
  'cells': (1, 5, 10, 15),
}
# Made up: {arm: the metric on clean images and at each level}, as the sentences of Section 4 say.
CURVES = {
  'heart': {
    'levels': (5, 10, 15),
    'std': (0.88, 0.50, 0.20, 0.02),
    'sat_5': (0.86, 0.75, 0.45, 0.20),
    'sat_15': (0.80, 0.74, 0.66, 0.50),
    'sat_25': (0.70, 0.68, 0.64, 0.58),
    'amat': (0.89, 0.82, 0.75, 0.66),
  },
  'hippocampus': {
    'levels': (2, 4, 6, 8, 10),
    'std': (0.87, 0.60, 0.35, 0.15, 0.05, 0.01),
    'sat_1': (0.85, 0.68, 0.45, 0.25, 0.12, 0.05),
    'sat_5': (0.80, 0.74, 0.64, 0.50, 0.35, 0.22),
    'sat_10': (0.72, 0.69, 0.63, 0.55, 0.45, 0.35),
    'sat_15': (0.62, 0.60, 0.57, 0.53, 0.48, 0.42),
    'amat': (0.89, 0.81, 0.73, 0.64, 0.56, 0.49),
  },
  'prostate': {
    'levels': (10, 20, 40),
    'std': (0.80, 0.40, 0.15, 0.01),
    'sat_10': (0.70, 0.60, 0.40, 0.10),
    'sat_20': (0.66, 0.60, 0.48, 0.25),
    'sat_40': (0.58, 0.54, 0.47, 0.35),
    'amat': (0.77, 0.68, 0.58, 0.42),
  },
  'cells': {
    'levels': (5, 10, 15),
    'std': (0.85, 0.02, 0.00, 0.00),
    'sat_1': (0.80, 0.40, 0.10, 0.02),
    'sat_5': (0.76, 0.66, 0.52, 0.38),
    'sat_10': (0.68, 0.62, 0.52, 0.42),
    'sat_15': (0.60, 0.56, 0.50, 0.44),
    'amat': (0.83, 0.69, 0.54, 0.40),
  },
}
COST = 'AMAT takes about as long as SAT'
NORMAL = 'The clean losses V of STD are approximately normal'
NORMAL_TERMS = [
  f'The clean losses V of STD, term {term}, are approximately normal' for term in (1, 2, 3)
]


def statements(task, *, standards=('std',)) -> list[str]:
  """What is claimed of every task, and of segmentation."""
  sat = [f'sat_{level}' for level in SAT[task]]
  found = [f'AMAT has a better average over all levels than {one}' for one in (*standards, *sat)]
  found += [f'AMAT beats {rival} on clean images' for rival in sat]
  found += [
    f'A larger training level is better at the highest level ({sat[-1]} against {sat[0]})',
    f'A larger training level is worse on clean images ({sat[-1]} against {sat[0]})',
  ]
  if task in SEGMENTATION:
    *most, highest = CURVES[task]['levels']
    count = len(most) + 2
    found += [
      f'AMAT is the best at almost all levels (at least {count - 1} of {count}, clean among them)',
      f'STD falls to almost nothing at level {highest}',
      'Dice of whole volumes (TVDI) is above that of slices (ADI) for std',
      'Dice of whole volumes (TVDI) is above that of slices (ADI) for amat',
    ]
  return found


def made(task, rows, *, losses=True):
  config = commandline.load_config(f'configs/amat_{CONFIG.get(task, task)}.py:paper')
  part = experiment.PARTS[config.part]
  terms = len(part.CRITERIA['loss'].terms)
  values, groups = np.zeros((0, terms)), np.zeros(0, int)
  if losses:
    each = 5 if task in SEGMENTATION else 1
    scores = stats.norm.ppf((np.arange(each * TRAINED[task]) + 0.5) / (each * TRAINED[task]))
    groups = np.random.default_rng(0).permutation(len(scores)) // each
    values = 0.2 + 0.05 * np.repeat(scores[:, None], terms, axis=1)
  cost = published.costs(task)
  seconds = {'arm': 'amat', 'seed': 0, 'attack': 'none', 'eps': 0.0, 'group': 0, 'index': 0}
  return amat_claims.of_paper(
    rows,
    metric=part.METRIC,
    sat=tuple(f'sat_{level}' for level in SAT[task]),
    levels=tuple(sorted(set(rows['eps']) - {0.0})),
    clean=amat_claims.Clean(values, groups),
    seconds=pd.DataFrame([{**seconds, 'ratio': cost['AMAT'] / cost['SAT']}]),
    saying=part.saying(config),
  )


def curves(task):
  """The made-up curves as a table of cells."""
  levels = (0, *CURVES[task]['levels'])
  metric = 'IOU' if task == 'cells' else 'DICE'
  lines = [
    (arm, 'pgd' if eps else 'none', float(eps), metric, mean)
    for arm, means in CURVES[task].items()
    if arm != 'levels'
    for eps, mean in zip(levels, means, strict=True)
  ]
  return pd.DataFrame(lines, columns=[*replication.KEYS, 'metric', 'mean'])


def counted(rows):
  """Rows with pixel counts: of a volume's slices the larger have the larger Dice."""
  keys = ['arm', 'attack', 'eps', 'group']
  size = 50 + 20 * rows.groupby(keys)['DICE'].rank()
  wrong = (1 - rows['DICE']) * size
  return rows.assign(_tp1=rows['DICE'] * size, _fp1=wrong, _fn1=wrong)


def rows_of(task, make=replication.rows, *, sizes=None, **options):
  spread = {'DICE': replication.DICE, 'IOU': replication.DICE}
  rows = make(curves(task), sizes=sizes or SIZES[task], spread=spread, **options)
  return rows if task == 'cells' else counted(rows)


def test_table_3_and_the_claims_that_have_figures_alone():
  table = published.landmarks(attack='pgd')
  table = table.assign(std=0.5 * table['mean'])
  spread = {'MRE': replication.Spread(0.0, bounds=(0.0, math.inf))}
  rows = replication.rows(table, sizes=SIZES['landmarks'], spread=spread)
  without_table = statements('landmarks', standards=('std', 'std_bce'))
  replication.check(
    made('landmarks', rows, losses=False),
    rows,
    holds=['std has a better average over all levels than std_bce'],
    measured=[COST],  # Table 2 has one run
    not_run=[*without_table, *NORMAL_TERMS],
  )


def test_curves_of_the_hippocampus_hold():
  rows = rows_of('hippocampus')
  holds = [*statements('hippocampus'), NORMAL]
  replication.check(made('hippocampus', rows), rows, holds=holds, measured=[COST])


def test_curves_of_cells_hold():
  rows = rows_of('cells')
  replication.check(
    made('cells', rows),
    rows,
    holds=[
      *statements('cells'),
      'STD falls to almost nothing at level 5',
      'sat_5 is close to amat on average over all levels',
      *NORMAL_TERMS,
    ],
    measured=[COST],
  )


@pytest.mark.parametrize('task', ['heart', 'prostate'])
def test_three_and_five_volumes_cannot_decide(task):
  rows = rows_of(task)
  undecided = statements(task)
  if task == 'prostate':
    undecided.append('std is better than AMAT on clean images')
  # V is of the 16 and 25 training volumes.
  expected = {'undecided': undecided, 'holds': [NORMAL], 'measured': [COST]}
  replication.check(made(task, rows), rows, **expected)


@pytest.mark.parametrize(('task', 'volumes'), [('heart', 20), ('prostate', 32)])
def test_all_folds_as_one_run_decide_them(task, volumes):
  each = SIZES[task][0]
  rows = rows_of(task, sizes=(each,) * volumes)
  rows = rows.assign(fold=rows['group'] % 5)
  holds = [*statements(task), NORMAL]
  if task == 'prostate':
    holds.append('std is better than AMAT on clean images')
  replication.check(made(task, rows), rows, holds=holds, measured=[COST])


def test_every_task_of_the_paper_is_here():
  assert SIZES.keys() == SAT.keys() == TRAINED.keys() == CURVES.keys() | {'landmarks'}
  for task in SIZES:
    config = commandline.load_config(f'configs/amat_{CONFIG.get(task, task)}.py:paper')
    assert {name for name in config.arms if name.startswith('sat_')} == {
      f'sat_{level}' for level in SAT[task]
    }
    assert config.data.task == task and published.costs(task)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['hippocampus', 'cells'])
def test_nothing_is_better_in_rows_without_effect(task):
  replication.check_without_effect(
    lambda rows: made(task, rows, losses=False),
    lambda seed: rows_of(task, replication.without_effect, seed=seed),
  )


@pytest.mark.parametrize('task', [*CURVES])
def test_every_threshold_prints_its_reason(task):
  assert not replication.unexplained(made(task, rows_of(task)))

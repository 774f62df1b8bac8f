"""The claims of Chen et al. 2021 on rows whose means are its printed Tables 1 to 3."""

import math
import types

import numpy as np
import pandas as pd
import pytest

from robustmed.evaluation import claims
from robustmed.papers import quickstart
from robustmed.papers.spine import claims as spine_claims
from robustmed.papers.spine import published
from robustmed.runs import commandline
from support import replication

SHAPES = ('P03', 'P05', 'P10')
PATIENTS = (5,) * 20  # of 5 disks each
# The deviation of Dice is 0.3 (1 - mean), at most 0.3 sqrt(mean (1 - mean)), that of contour errors
# 0.3 mean: on clean images a network of the demo has 0.02 at 0.93 and 0.42 pixels at 1.48.
SPREAD = {
  'DICE_seg': replication.DICE,
  'DICE_reg': replication.DICE,
  'Error_reg': replication.Spread(0.0, bounds=(0.0, math.inf)),
}


def table():
  """The printed cells with their deviations."""
  paper = published.tables()
  mean = paper['mean']
  away = (1 - mean).clip(lower=0)
  of_dice = 0.3 * np.minimum(away, np.sqrt(mean * away))
  std = of_dice.where(paper['metric'] != 'Error_reg', 0.3 * mean)
  return paper.assign(std=std)[paper['eps'].isin([0, 0.01, 0.03, 0.07])]


def made():
  return spine_claims.inside_attacks(SHAPES)


def outside():
  """The claims on attacks from outside, of which there are no rows."""
  config = commandline.load_config('configs/spine.py:paper')
  return spine_claims.outside_attacks(config, pd.DataFrame())


HOLDS = [
  f'{p}{statement}'
  for p in SHAPES
  for statement in (
    '_std collapses at 0.03 (segmentation)',
    ': random noise in training does not help the segmentation',
    ': random noise in training does not help the contour',
    ': adv_rs improves the segmentation',
    ': adv_rs improves the contour',
    ': adv_rs improves the contour error',
    ': adv_s improves the segmentation',
    ': adv_s improves the contour',
    ': adv_s improves the contour error',
    ': adv_r improves the contour',
    ': adv_r improves the contour error',
    ': adv_r gains less than adv_s in the segmentation',
    '_adv_s holds at 0.07',
    '_adv_rs holds at 0.07',
  )
]
HOLDS += [
  'With adv_rs, P10 is better than P03 at 0.01 (segmentation)',
  'With adv_rs, P10 is better than P03 at 0.01 (contour)',
  'With adv_rs, P10 is better than P03 at 0.01 (contour error)',
  'With adv_s, P10 is better than P03 at 0.01 (segmentation)',
  'With adv_s, P10 is better than P03 at 0.01 (contour)',
  'With adv_s, P10 is better than P03 at 0.01 (contour error)',
  'With adv_r, P10 is better than P03 at 0.01 (contour)',
  'With adv_r, P10 is better than P03 at 0.01 (contour error)',
  'P10: adv_rs costs clean accuracy (segmentation)',
  'P10: adv_rs costs clean accuracy (contour error)',
  'P10: adv_s costs clean accuracy (segmentation)',
  'P10: adv_s costs clean accuracy (contour error)',
  'P10: adv_r costs clean accuracy (segmentation)',
  'P10: adv_r costs clean accuracy (contour)',
  'P10: adv_r costs clean accuracy (contour error)',
]
# 0.9315 against 0.9224 and 0.9247 beside deviations of 0.02: too little for 20 patients.
UNDECIDED = [
  'P10: adv_rs costs clean accuracy (contour)',
  'P10: adv_s costs clean accuracy (contour)',
]
# Figs. 10 to 12 print no means.
WITHOUT_TABLE = [
  'An attacked lung slice and a disk get the same segmentations from P10_std (Dice above 0.95)',
  'An attacked lung slice and a disk get the same contours from P10_std (Dice above 0.95)',
  'Under attack, the reconstruction error of P10_std_rec detects nothing (AUROC below 0.5)',
  'Under attack, the reconstruction error of P10_adv_rs_rec detects nothing (AUROC below 0.5)',
  'The attacked image of P10_adv_rs_rec contains the disk as an object',
  'It does so more than that of P10_std_rec',
]


def test_every_claim_has_the_verdict_of_the_printed_tables():
  rows = replication.rows(table(), sizes=PATIENTS, spread=SPREAD)
  expected = {'holds': HOLDS, 'undecided': UNDECIDED, 'not_run': WITHOUT_TABLE}
  replication.check((*made(), *outside()), rows, **expected)


@pytest.mark.parametrize('statement', [
  # Fig. 4: Dice below 0.5 at 0.03; Table 2: 0.71, 0.59 and 0.54.
  claims.below('P03_std', metric='DICE_reg', attack='pgd_reg', eps=0.03, threshold=0.5),
  # Fig. 6: P10_adv_r better than P3_adv_r for small noise; Table 3: 0.8245 against 0.8598 at 0.01.
  claims.greater('P10_adv_r', 'P03_adv_r', metric='DICE_seg', attack='pgd_seg', eps=0.01),
])  # fmt: skip
def test_what_the_text_says_against_its_tables_would_fail(statement):
  rows = replication.rows(table(), sizes=PATIENTS, spread=SPREAD)
  replication.check([claims.Claim('contradicted', '', statement)], rows, fails=['contradicted'])
  assert statement not in [claim.test for claim in made()]


@pytest.mark.slow
def test_nothing_is_better_in_rows_without_effect():
  options = {'sizes': PATIENTS, 'spread': SPREAD}
  replication.check_without_effect(
    lambda rows: made(), lambda seed: replication.without_effect(table(), seed=seed, **options)
  )
  assert len(replication.superiority(made())) == 3 * 9 + 17


def test_every_threshold_prints_its_reason():
  assert not replication.unexplained((*made(), *outside()))


def test_the_quickstart_meets_the_claims_with_the_printed_p10():
  arms = {'P10_std': 'std', 'P10_rand': 'rand', 'P10_adv_s': 'adv'}
  paper = table()
  paper = paper[paper['arm'].isin(arms)].assign(arm=lambda frame: frame['arm'].map(arms))
  rows = replication.rows(paper, sizes=PATIENTS, spread=SPREAD)
  task = types.SimpleNamespace(units='')
  config = commandline.load_config('configs/quickstart.py')
  of_quickstart = quickstart.report_spec(task, config).claims
  replication.check(
    of_quickstart,
    rows,
    holds=[
      'The standard network collapses',
      'Adversarial training keeps the segmentation',
      'Random noise in training does not help',
      'Adversarial training helps more than random noise',
      'Adversarial training costs clean accuracy',
    ],
  )
  assert not replication.unexplained(of_quickstart)

"""The claims of Chen et al. 2019 on subjects whose means are its printed Table 1.

The paper prints no deviations. Those of Dice are stated below; X is xi, which the paper's largest
strengths reach.
"""

import itertools

import numpy as np
import pandas as pd

from robustmed.data.abdomen import ct_slices
from robustmed.papers.synthesis import claims as synthesis_claims
from robustmed.papers.synthesis import published
from support import replication

SUBJECTS = 75
LEVELS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
ORGANS = ct_slices.ORGANS
KINDS = {'I_0': 'none', 'I_DV': 'dv', 'I_D': 'd', 'I_V': 'v'}
SPREAD = {
  **{f'DICE_{organ}': replication.Spread(0.1, bounds=(0.0, 1.0)) for organ in ORGANS},
  'p': replication.Spread(0.01, bounds=(0.0, np.inf)),
}


def table() -> pd.DataFrame:
  found = published.table()
  found = found[found['image'].isin(KINDS)]
  keys = {'arm': 'unet', 'attack': found['image'].map(KINDS), 'eps': found['xi'].fillna(0.0)}
  parts = [
    pd.DataFrame({**keys, 'metric': f'DICE_{organ}', 'mean': found[organ] / 100})
    for organ in ORGANS
  ]
  parts.append(pd.DataFrame({**keys, 'metric': 'p', 'mean': found['p'].fillna(0.0)}))
  return pd.concat(parts, ignore_index=True)


def subjects(make=replication.rows, **options) -> pd.DataFrame:
  made = make(table(), sizes=(1,) * SUBJECTS, spread=SPREAD, **options)
  dice = made[[f'DICE_{organ}' for organ in ORGANS]].mean(axis=1)
  return made.assign(DICE=dice, MOVED=dice, X=made['eps'])


def claims_of(frame):
  own = synthesis_claims.of_paper(frame, target='unet', levels=LEVELS, single=2.0)
  ours = synthesis_claims.beyond(
    frame.assign(moved_gain=0.0), target='unet', hardened='hardened', single=2.0, fresh=2.0
  )
  pgd = synthesis_claims.hardened_under_pgd(target='unet', hardened='hardened', eps=0.05)
  return [*own, *ours, pgd]


LINES = [
  f'At xi {xi:g} Dice of the {organ} falls by '
  + ('30 % or more' if xi >= synthesis_claims.FROM[organ] else 'less than 30 %')
  for xi, organ in itertools.product(LEVELS, ORGANS)
]
# 66.97 against 0.7 x 94.74 = 66.32: 0.65 points beside deviations of 10.
UNDECIDED = ['At xi 1.5 Dice of the kidneys falls by less than 30 %']
HOLDS = [
  'Dice falls with xi (3 against 0.5)',
  'Perceptibility grows with xi (3 against 0.5)',
  'V alone hurts the pancreas more than the other field alone',
  'D alone hurts the kidneys more than the other field alone',
  'V alone hurts the liver more than the other field alone',
  'V alone hurts the spleen more than the other field alone',
  *(
    f'{name} alone does not bring the {organ} below the line of 30 %'
    for name in 'DV'
    for organ in ('pancreas', 'kidneys')
  ),
  *(line for line in LINES if line not in UNDECIDED),
]
# Controls and hardening are ours; the paper trained no xi above 3.
WITHOUT_TABLE = [
  'A very large xi, above 3, is not reached: training collapses',
  'A generator at xi 2 does more harm than a random smooth change of the same p',
  'Hardening helps against the generator that it was trained with (xi 2)',
  'Hardening helps against a fresh generator (xi 2)',
  'Hardening helps under PGD at 0.05',
]
OURS = 'The harm is not honest displacement: Dice against the truth moved with D is as low'


def test_every_claim_has_the_verdict_of_the_printed_table():
  frame = subjects()
  replication.check(
    [claim for claim in claims_of(frame) if claim.statement != OURS],
    frame,
    holds=HOLDS,
    undecided=UNDECIDED,
    not_run=WITHOUT_TABLE,
  )


def test_the_printed_means_come_out():
  frame = subjects()
  cell = frame[(frame['attack'] == 'dv') & (frame['eps'] == 1.5)]
  np.testing.assert_allclose(cell['DICE_kidneys'].mean(), 0.6697)
  np.testing.assert_allclose(cell['p'].mean(), 0.075)


def test_nothing_is_worse_in_subjects_without_effect():
  found = {}
  for seed in range(6):
    frame = subjects(replication.without_effect, seed=seed)
    held = replication.held(claims_of(frame), frame)
    # Nothing falls, so that everything stays above the line of a fall of 30 %.
    found[seed] = [
      one for one in held if 'less than 30 %' not in one and 'below the line' not in one
    ]
  assert not any(found.values()), found


def test_every_threshold_prints_its_reason():
  assert not replication.unexplained(claims_of(subjects()))

import dataclasses

import numpy as np
import pandas as pd
import pytest

from robustmed.evaluation import claims
from robustmed.metrics import froc
from robustmed.papers.nodules import claims as nodules_claims
from robustmed.papers.nodules import scan_kinds, scans
from support import nodule_rows

RESAMPLES = 400
HELP = 'Synthetic nodules of searched codes help (CPM)'


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
  folder = nodule_rows.submissions(tmp_path_factory.mktemp('froc'))
  return scans.read_scored(folder, min_diameter=6.0)


def decide(scored, stress, made):
  options = {'baseline': 'beta_finetune', 'control': 'longer'}
  options |= {'eps': 0.15, 'code_eps': 0.15, 'resamples': RESAMPLES}
  own = nodules_claims.of_paper(scored, stress, made, **options)
  more = nodules_claims.beyond(stress, eps=0.15)
  return claims.decide([*own, *more], nodule_rows.rows()).set_index('statement')


def test_stress_claims_hold_where_the_numbers_are_those_of_the_paper(scored):
  decided = decide(scored, nodule_rows.stress(), nodule_rows.made())
  paper = decided[~decided['place'].isin([nodules_claims.TABLE_3, nodules_claims.STAGE])]
  missing = paper[paper['verdict'] == 'not run']
  # Made-up rows have neither arm that combines, nor a candidate stage of two kinds.
  assert missing['numbers'].str.contains('_syn').all() and len(missing) == 4
  assert set(paper.drop(index=missing.index)['verdict']) == {'holds'}, paper['verdict']
  assert len(paper) == 29
  table = decided[decided['place'] == nodules_claims.TABLE_3]['verdict']
  assert len(table) == 12
  assert table['Synthetic nodules of searched codes help (CPM)'] == 'holds'
  # equal networks: nothing is better, and 12 scans are too few to call them equal
  assert table['Fine-tuning with the beta loss is better than training with it'] == 'undecided'


def test_claims_fail_where_the_numbers_say_the_opposite(scored):
  cells = {
    **nodule_rows.CELLS,
    ('noise_pgd', 0.15): (0.10, 0.10, 0.90, 0.90),
    ('codes', 0.15): (0.95, 0.30, 0.9, 0.9),
  }
  made = nodule_rows.made()
  made['attack'] = made['attack'].map({'codes': 'random', 'random': 'codes'})
  decided = decide(scored, nodule_rows.stress(cells), made)['verdict']
  for statement in (
    'Attacked noise fools the baseline',
    '... and not the network trained with it',
    'Searched codes lower the confidence of the baseline more than random ones',
    'Training with searched codes restores the confidence on them',
    'Searched nodules are smaller than random ones',
  ):
    assert decided[statement] == 'fails', statement


def test_longer_training_alone_is_no_help_of_synthetic_nodules(scored):
  as_good = {**scored, ('longer', 0): scored['syn', 0]}
  decided = decide(as_good, nodule_rows.stress(), nodule_rows.made())
  assert decided.loc[HELP, 'verdict'] == 'undecided'
  assert 'CPM(syn) - CPM(longer) > 0' in decided.loc[HELP, 'test']


def test_what_is_missing_was_not_run(scored):
  only = {key: value for key, value in scored.items() if key[0] == 'beta_finetune'}
  decided = decide(only, pd.DataFrame(), pd.DataFrame())
  assert (decided['verdict'] == 'not run').all()
  text = decided.loc['Synthetic nodules of searched codes help (CPM)', 'numbers']
  assert text == 'no submission of syn (seed 0)'


def test_differences_of_the_cpm_are_those_of_the_froc_tool(scored):
  one, two = scored['syn', 0], scored['beta_finetune', 0]
  expected = froc.compare(one, two, resamples=RESAMPLES)
  test = scan_kinds.Cpm('syn', 'beta_finetune', scored, low=0.0, resamples=RESAMPLES)
  found = test(nodule_rows.rows())
  assert found.effect == pytest.approx(expected.value)
  # Student's t beside the share of the draws never makes it smaller.
  assert expected.p_value - 2 / RESAMPLES <= 2 * found.p < 0.01
  assert str(test) == 'CPM(syn) - CPM(beta_finetune) > 0'
  few = dataclasses.replace(test, rates=nodules_claims.LOW_RATES)
  assert str(few).startswith('sensitivity at 0.125 and 0.25 (syn) - ')
  swapped = scan_kinds.Cpm('beta_finetune', 'syn', scored, low=0.0, resamples=RESAMPLES)
  other = swapped(nodule_rows.rows())
  assert other.effect == pytest.approx(-expected.value)
  assert other.opposite == pytest.approx(found.p) and other.p > 0.9


def test_whether_variants_help_is_decided_against_the_control(scored):
  # A baseline that was trained on is as good as the variant.
  more = {**scored, ('longer', 0): scored['syn', 0]}
  options = {'baseline': 'beta_finetune', 'eps': 0.15, 'code_eps': 0.15, 'resamples': RESAMPLES}
  verdicts = {}
  for control in ('beta_finetune', 'longer'):
    own = nodules_claims.of_paper(
      more, nodule_rows.stress(), nodule_rows.made(), control=control, **options
    )
    helps = [claim for claim in own if ' help (CPM)' in claim.statement]
    assert len(helps) == 4 and {claim.test.second for claim in helps} == {control}
    decided = claims.decide(own, nodule_rows.rows()).set_index('statement')['verdict']
    verdicts[control] = decided['Synthetic nodules of searched codes help (CPM)']
  assert verdicts == {'beta_finetune': 'holds', 'longer': 'undecided'}


def submission(found, *, nodules=3, scans=20):
  """The first `found[s % len(found)]` nodules of every scan have a mark."""
  hits = np.resize(found, scans)
  scan = np.repeat(np.arange(scans), hits)
  return froc.Scored(
    np.full(len(scan), 0.5), scan, np.ones(len(scan), bool), np.full(scans, nodules), {}
  )


def test_the_kinds_of_candidate_networks_are_compared_by_the_nodules_that_they_find():
  few, more, all_of_them = submission([2, 2, 1]), submission([3, 2, 3]), submission([3])
  named = {scans.BOXES: few, scans.HEAT: more, scans.FOUND: all_of_them}
  scored = {(name, 0): one for name, one in named.items()}
  empty = pd.DataFrame()
  options = {'baseline': 'b', 'control': 'b', 'eps': 0.15, 'code_eps': 0.15}
  own = nodules_claims.of_paper(scored, empty, empty, **options)
  own = [claim for claim in own if claim.place == nodules_claims.STAGE]
  decided = claims.decide(own, nodule_rows.rows())
  assert decided['verdict'].tolist() == ['holds', 'holds']
  assert decided['numbers'][1].startswith('100.0% and 88.3% of 60 nodules in 20 scans')
  reverse = scan_kinds.Found(scans.BOXES, scans.HEAT, scored)
  assert claims.decide([claims.Claim('', '', reverse)], nodule_rows.rows())['verdict'][0] == 'fails'


def test_the_smallest_p_that_scans_and_draws_allow(scored):
  test = scan_kinds.Cpm('syn', 'beta_finetune', scored, low=0.0, resamples=50)
  assert test(nodule_rows.rows()).least == test.least(len(scored['syn', 0].nodules)) == 1 / 51
  assert test.least(4) == 1 / 16


def test_noise_begins_with_no_scan(scored):
  """Its groups are numbered from 0, as scans are, and are none of the scans."""
  stress, rng = nodule_rows.stress(), np.random.default_rng(9)
  noise = stress['attack'] == 'noise_pgd'
  own = rng.normal(size=nodule_rows.SCANS)[stress['group']]
  stress['uncertainty'] = own + 0.3 * rng.normal(size=len(stress)) + noise
  renamed = stress['group'] + 1000 * noise
  numbers = [
    decide(scored, frame, nodule_rows.made())
    .filter(like='Uncertainty alone', axis=0)['numbers']
    .iloc[0]
    for frame in (stress, stress.assign(group=renamed))
  ]
  assert numbers[0] == numbers[1] and numbers[0].startswith('AUROC 0.')


def test_equal_networks_are_equal_within_a_tolerance(scored):
  same = {('a', 0): scored['syn', 0], ('b', 0): scored['syn', 0]}
  equal = scan_kinds.Cpm('a', 'b', same, low=-0.02, high=0.02, resamples=50)
  found = equal(nodule_rows.rows())
  assert found.effect == pytest.approx(0.02) and found.p == pytest.approx(1 / 51)
  assert str(equal) == '-0.02 < CPM(a) - CPM(b) < 0.02'
  apart = {('a', 0): scored['syn', 0], ('b', 0): scored['beta_finetune', 0]}
  found = scan_kinds.Cpm('a', 'b', apart, low=-0.02, high=0.02, resamples=50)(nodule_rows.rows())
  assert found.effect < 0 and found.p == 1 and found.opposite == pytest.approx(2 / 51)

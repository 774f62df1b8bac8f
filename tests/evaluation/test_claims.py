"""Verdicts on rows whose truth is known, and the rules of the correction."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustmed.evaluation import claims, statistics

AT = {'metric': 'dice', 'attack': 'pgd', 'eps': 0.07}


def make_rows(means, *, groups=12, per_group=2, noise=0.02, seeds=(0,), draw=0):
  """means: {(arm, attack, eps): mean}, patients shared by the cells."""
  random = np.random.default_rng(draw)
  count = groups * per_group
  patient = np.repeat(random.normal(scale=noise, size=groups), per_group)
  parts = []
  for (arm, attack, eps), mean in means.items():
    for seed in seeds:
      shift = mean[seed] if isinstance(mean, tuple) else mean
      dice = shift + patient + random.normal(scale=noise / 4, size=count)
      fixed = {'arm': arm, 'attack': attack, 'eps': eps, 'seed': seed}
      index = np.arange(count)
      parts.append(pd.DataFrame({'index': index, 'group': index // per_group, 'dice': dice}))
      parts[-1] = parts[-1].assign(**fixed)
  return pd.concat(parts, ignore_index=True)


@pytest.fixture
def rows():
  return make_rows(
    {('std', 'none', 0.0): 0.9, ('std', 'pgd', 0.07): 0.1, ('rand', 'pgd', 0.07): 0.1,
     ('adv', 'none', 0.0): 0.88, ('adv', 'pgd', 0.07): 0.7}
  )  # fmt: skip


def verdict(test, rows):
  table = claims.decide([claims.Claim('it is so', 'Table 1', test)], rows)
  assert [*table.columns] == [*claims.COLUMNS]
  return table.loc[0, 'verdict']


@pytest.mark.parametrize(
  ('test', 'expected'),
  [
    (claims.greater('adv', 'std', **AT), 'holds'),
    (claims.greater('adv', 'std', margin=0.5, **AT), 'holds'),
    (claims.greater('adv', 'std', margin=0.7, **AT), 'fails'),
    (claims.greater('std', 'adv', **AT), 'fails'),
    (claims.greater('std', 'rand', margin=0.05, **AT), 'fails'),
    (claims.below('std', threshold=0.3, **AT), 'holds'),
    (claims.below('adv', threshold=0.3, **AT), 'fails'),
    (claims.above('adv', threshold=0.6, **AT), 'holds'),
    (claims.above('std', threshold=0.6, **AT), 'fails'),
    (claims.close('rand', 'std', tolerance=0.05, reason='ours', **AT), 'holds'),
    (claims.close('adv', 'std', tolerance=0.05, reason='ours', **AT), 'fails'),
    (claims.close('std', 'adv', tolerance=0.05, reason='ours', **AT), 'fails'),
    (claims.above('std', metric='dice', attack='pgd', eps=0, threshold=0.8), 'holds'),
    (claims.inside(claims.Cell('adv'), claims.Cell('adv', 'pgd', 0.07), metric='dice', low=0.1),
     'holds'),
    (claims.inside(claims.Cell('adv', 'pgd', 0.07), metric='dice', low=0.6, high=0.8), 'holds'),
  ],
)  # fmt: skip
def test_verdicts(rows, test, expected):
  assert verdict(test, rows) == expected


def test_noise_leaves_a_claim_undecided():
  """Equal arms: each wrong verdict comes up in about 5 % of the draws, not more."""
  found = []
  for draw in range(60):
    rows = make_rows({('a', 'pgd', 0.07): 0.5, ('b', 'pgd', 0.07): 0.5}, draw=draw)
    outcome = claims.greater('a', 'b', **AT)(statistics.prepare(rows))
    found.append((outcome.p < 0.05, outcome.opposite < 0.05))
  holds, fails = np.mean(found, axis=0)
  assert 0 < holds < 0.12 and 0 < fails < 0.12
  assert verdict(claims.close('a', 'b', tolerance=1e-4, reason='ours', **AT), rows) == 'undecided'


def test_the_p_value_is_the_signed_rank_test_on_patients(rows):
  outcome = claims.greater('adv', 'std', **AT)(statistics.prepare(rows))
  by_patient = rows[rows['eps'] == 0.07].pivot_table(index='group', columns='arm', values='dice')
  reference = stats.wilcoxon(by_patient['adv'] - by_patient['std'], alternative='greater')
  assert outcome.p == pytest.approx(reference.pvalue) == pytest.approx(2**-12)
  assert outcome.opposite == pytest.approx(1.0)
  assert outcome.effect == pytest.approx((by_patient['adv'] - by_patient['std']).mean())
  assert '12 groups' in outcome.numbers


def test_few_patients_cannot_decide():
  rows = make_rows({('a', 'pgd', 0.07): 0.9, ('b', 'pgd', 0.07): 0.1}, groups=4)
  table = claims.decide([claims.Claim('', '', claims.greater('a', 'b', **AT))], rows)
  assert table.loc[0, 'p'] == pytest.approx(2**-4)
  assert table.loc[0, 'verdict'] == 'undecided'


def test_holm_goes_over_all_claims_that_were_run(rows):
  listed = [
    claims.Claim('one', 'T1', claims.greater('adv', 'std', **AT)),
    claims.Claim('two', 'T1', claims.below('std', threshold=0.3, **AT)),
    claims.Claim('three', 'T1', claims.greater('gone', 'std', **AT)),
  ]
  table = claims.decide(listed, rows)
  np.testing.assert_allclose(table['p_holm'][:2], 2 * table['p'][:2])
  assert table['verdict'].tolist() == ['holds', 'holds', 'not run']
  # as many claims as it takes to lose a p of 2^-12
  outcome = listed[0].test(statistics.prepare(rows))
  table = claims.decide([claims.Claim('', '', lambda part: outcome)] * 250, rows)
  assert set(table['verdict']) == {'undecided'}


def test_missing_pieces_are_named(rows):
  listed = [
    claims.greater('gone', 'std', **AT),
    claims.above('std', metric='dice', attack='pgd', eps=0.5, threshold=0),
    claims.above('std', metric='auroc', attack='pgd', eps=0.07, threshold=0),
  ]
  table = claims.decide([claims.Claim('', '', test) for test in listed], rows)
  assert table['verdict'].tolist() == ['not run'] * 3
  assert table['p'].isna().all() and table['p_holm'].isna().all()
  assert table['numbers'].tolist() == [
    'no rows for gone, pgd 0.07', 'no rows for std, pgd 0.5', 'no metric auroc',
  ]  # fmt: skip


def test_only_unknown_values_are_not_run(rows):
  rows.loc[rows['arm'] == 'std', 'dice'] = np.nan
  table = claims.decide([claims.Claim('', '', claims.greater('adv', 'std', **AT))], rows)
  assert table.loc[0, 'verdict'] == 'not run' and 'no finite value' in table.loc[0, 'numbers']


@pytest.mark.parametrize(
  ('second', 'expected'),
  [((0.5, 0.5, 0.5), 'holds'), ((0.5, 0.5, 0.9), 'undecided'), ((0.9, 0.9, 0.9), 'fails')],
)
def test_every_seed_must_agree(second, expected):
  means = {('a', 'pgd', 0.07): (0.7, 0.7, 0.7), ('b', 'pgd', 0.07): second}
  rows = make_rows(means, seeds=(0, 1, 2))
  table = claims.decide([claims.Claim('', '', claims.greater('a', 'b', **AT))], rows)
  assert table.loc[0, 'verdict'] == expected
  assert all(f'seed {seed}:' in table.loc[0, 'numbers'] for seed in (0, 1, 2))
  weakest = max(
    claims.greater('a', 'b', **AT)(statistics.prepare(rows[rows['seed'] == seed])).p
    for seed in (0, 1, 2)
  )
  assert table.loc[0, 'p'] == weakest


def test_a_missing_seed_prevents_holds():
  rows = make_rows({('a', 'pgd', 0.07): (0.7, 0.7), ('b', 'pgd', 0.07): (0.5, 0.5)}, seeds=(0, 1))
  rows = rows[(rows['seed'] == 0) | (rows['arm'] == 'a')]
  table = claims.decide([claims.Claim('', '', claims.greater('a', 'b', **AT))], rows)
  assert table.loc[0, 'verdict'] == 'undecided'
  assert 'seed 0:' in table.loc[0, 'numbers'] and 'no rows for b' in table.loc[0, 'numbers']


def test_any_callable_is_a_test(rows):
  def shown(part):
    return claims.Outcome(f'{len(part)} rows', effect=1.0, p=0.001, opposite=1.0)

  assert verdict(shown, rows) == 'holds'


def test_no_claims_make_an_empty_table(rows):
  table = claims.decide([], rows)
  assert table.empty and [*table.columns] == [*claims.COLUMNS]


def test_tests_print_themselves():
  assert str(claims.greater('adv', 'std', margin=0.1, **AT)) == (
    'dice(adv, pgd 0.07) - dice(std, pgd 0.07) > 0.1'
  )
  assert str(claims.below('std', threshold=0.3, **AT)) == 'dice(std, pgd 0.07) < 0.3'
  clean = claims.close('a', 'b', metric='dice', attack='none', eps=0, tolerance=0.02, reason='ours')
  assert str(clean) == '-0.02 < dice(a, clean) - dice(b, clean) < 0.02'


@pytest.mark.parametrize('bounds', [{}, {'low': 1.0, 'high': 0.0}, {'low': 0.5, 'high': 0.5}])
def test_a_claim_needs_an_interval(bounds):
  with pytest.raises(ValueError, match='finite bound'):
    claims.inside(claims.Cell('std'), metric='dice', **bounds)


def test_equivalence_is_never_easier_than_its_sides(rows):
  rows = statistics.prepare(rows)
  cells = claims.Cell('rand', 'pgd', 0.07), claims.Cell('std', 'pgd', 0.07)
  both = claims.inside(*cells, metric='dice', low=-0.02, high=0.02)(rows)
  sides = [claims.inside(*cells, metric='dice', **side)(rows)
           for side in ({'low': -0.02}, {'high': 0.02})]  # fmt: skip
  assert both.p == max(side.p for side in sides)
  assert math.isclose(both.effect, min(side.effect for side in sides))

"""Verdicts on rows whose truth is known, and the rules of the correction."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from robustmed.evaluation import claims, hypotheses, statistics

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


@dataclasses.dataclass(frozen=True)
class Fixed(claims.Kind):
  found: claims.Outcome

  estimand = 'nothing'

  def __call__(self, rows):
    return self.found


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
    (claims.close('rand', 'std', tolerance=0.05, reason='ours', **AT, above_only=True), 'holds'),
    (claims.close('std', 'adv', tolerance=0.05, reason='ours', **AT, above_only=True), 'holds'),
    (claims.close('adv', 'std', tolerance=0.05, reason='ours', **AT, above_only=True), 'fails'),
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


def test_the_p_value_is_that_of_the_means_of_patients(rows):
  test = claims.greater('adv', 'std', margin=0.597, **AT)
  found = test(statistics.prepare(rows))
  by_patient = rows[rows['eps'] == 0.07].pivot_table(index='group', columns='arm', values='dice')
  means = (by_patient['adv'] - by_patient['std']).to_numpy()
  assert found.p == pytest.approx(hypotheses.mean_test(means, low=0.597).p)
  assert 2**-12 < found.p < 1
  outcome = claims.greater('adv', 'std', **AT)(statistics.prepare(rows))
  assert outcome.p == outcome.least == 2**-12
  assert outcome.opposite == pytest.approx(1.0)
  assert outcome.effect == pytest.approx((by_patient['adv'] - by_patient['std']).mean())
  assert '12 groups' in outcome.numbers


def test_few_patients_cannot_decide():
  rows = make_rows({('a', 'pgd', 0.07): 0.9, ('b', 'pgd', 0.07): 0.1}, groups=4)
  table = claims.decide([claims.Claim('', '', claims.greater('a', 'b', **AT))], rows)
  assert table.loc[0, 'p'] == pytest.approx(2**-4)
  assert table.loc[0, 'verdict'] == 'undecided'
  assert table.loc[0, 'numbers'].endswith('; too few groups: no p below 0.0625')


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
  table = claims.decide([claims.Claim('', '', Fixed(outcome))] * 250, rows)
  assert set(table['verdict']) == {'undecided'}
  assert table['numbers'].str.endswith('no p below 0.061 after Holm over 250 claims').all()


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


def test_any_kind_is_a_test(rows):
  assert verdict(Fixed(claims.Outcome('', effect=1.0, p=0.001, opposite=1.0)), rows) == 'holds'


def test_no_claims_make_an_empty_table(rows):
  table = claims.decide([], rows)
  assert table.empty and [*table.columns] == [*claims.COLUMNS]


def test_tests_print_themselves():
  assert str(claims.greater('adv', 'std', margin=0.1, **AT)) == (
    'dice(adv, pgd 0.07) - dice(std, pgd 0.07) > 0.1'
  )
  assert str(claims.below('std', threshold=0.3, **AT)) == 'dice(std, pgd 0.07) < 0.3'
  clean = claims.close('a', 'b', metric='dice', attack='none', eps=0, tolerance=0.02, reason='ours')
  assert str(clean) == ('-0.02 < dice(a, clean) - dice(b, clean) < 0.02 (tolerance 0.02: ours)')
  reason = {'threshold': 0.5, 'reason': 'as the paper'}
  assert str(claims.above('std', **reason, **AT)) == 'dice(std, pgd 0.07) > 0.5 (as the paper)'
  assert str(claims.below('std', **reason, **AT)) == 'dice(std, pgd 0.07) < 0.5 (as the paper)'
  bounded = claims.close('a', 'b', tolerance=0.05, reason='ours', **AT, above_only=True)
  assert str(bounded) == 'dice(a, pgd 0.07) - dice(b, pgd 0.07) < 0.05 (tolerance 0.05: ours)'
  cost = claims.measured(claims.Cell('a'), metric='ratio', high=1.25, reason='ours')
  assert str(cost) == 'ratio(a, clean) < 1.25 (ours)'


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


@pytest.mark.parametrize('groups', [1, 2, 3, 5])
def test_few_patients_crash_nothing(groups):
  cells = {('a', 'pgd', 0.07): 0.9, ('b', 'pgd', 0.07): 0.1, ('a', 'none', 0.0): 0.95}
  rows = make_rows(cells, groups=groups)
  tests = [
    claims.greater('a', 'b', **AT),
    claims.above('a', threshold=0.5, **AT),
    claims.close('a', 'b', tolerance=0.1, reason='ours', **AT),
    claims.best_of('a', ['b'], **AT),
    claims.at_least(1, [claims.greater('a', 'b', **AT), claims.greater('b', 'a', **AT)]),
    claims.auroc_below(
      claims.Cell('a', 'pgd', 0.07), ['none'], metric='dice', threshold=0.5, shared=True
    ),
  ]
  table = claims.decide([claims.Claim('', '', test) for test in tests], rows)
  assert set(table['verdict']) == {'undecided'} and table['p'].between(0, 1).all()
  assert table['numbers'].str.contains('too few groups').all()


def test_the_best_beats_every_rival():
  at = lambda *means: {(arm, 'pgd', 0.07): mean for arm, mean in zip('abcd', means)}
  best = claims.best_of('a', ['b', 'c', 'd'], **AT)
  assert verdict(best, make_rows(at(0.8, 0.5, 0.7, 0.1))) == 'holds'
  assert verdict(best, make_rows(at(0.8, 0.5, 0.9, 0.1))) == 'fails'
  equal = make_rows(at(0.8, 0.5, 0.8, 0.1))
  assert verdict(best, equal) == 'undecided'
  assert verdict(claims.best_of('d', 'abc', higher=False, **AT), equal) == 'holds'
  assert verdict(claims.best_of('a', ['b', 'gone'], **AT), equal) == 'not run'
  outcome = best(statistics.prepare(equal))
  alone = [claims.greater('a', b, **AT)(statistics.prepare(equal)) for b in 'bcd']
  assert outcome.p == max(one.p for one in alone)
  assert outcome.opposite == min(1, 3 * min(one.opposite for one in alone))
  assert outcome.numbers.startswith('next best c: ')
  with pytest.raises(ValueError, match='no rivals'):
    claims.best_of('a', [], **AT)


def test_almost_all_is_at_least_a_number():
  cells = {(arm, 'pgd', 0.07): mean for arm, mean in zip('abcd', (0.8, 0.5, 0.7, 0.9))}
  rows = make_rows(cells)
  tests = [claims.greater('a', rival, **AT) for rival in 'bcd']
  verdicts = [verdict(claims.at_least(number, tests), rows) for number in (1, 2, 3)]
  assert verdicts == ['holds', 'holds', 'fails']
  numbers = claims.at_least(2, tests)(statistics.prepare(rows)).numbers
  assert numbers.startswith('2 of 3 lie so: a, pgd 0.07: 0.7996, 0.5022; difference')
  with pytest.raises(ValueError, match='at least 4 of 3'):
    claims.at_least(4, tests)(statistics.prepare(rows))


def test_the_share_of_a_gain_that_is_left():
  means = {('std', 'fgsm', 0.07): 0.2, ('arm', 'fgsm', 0.07): 0.8,
           ('std', 'pgd', 0.07): 0.1, ('arm', 'pgd', 0.07): 0.4}  # fmt: skip
  rows = make_rows(means)
  cell = lambda attack: claims.Cell('', attack, 0.07)

  def left(share, *, above):
    return claims.share_left(
      'arm', 'std', metric='dice', shown=cell('fgsm'), worst=cell('pgd'), share=share, above=above
    )

  assert verdict(left(1 / 3, above=True), rows) == 'holds'
  assert verdict(left(2 / 3, above=True), rows) == 'fails'
  assert verdict(left(2 / 3, above=False), rows) == 'holds'
  assert str(left(0.5, above=True)) == (
    'dice(arm, pgd 0.07) - dice(std, pgd 0.07) - 0.5 dice(arm, fgsm 0.07) '
    '+ 0.5 dice(std, fgsm 0.07) > 0'
  )
  outcome = left(1 / 3, above=True)(statistics.prepare(rows))
  assert outcome.effect == pytest.approx(0.1, abs=0.02)


def ratios(seeds, value=1.1):
  lines = [(seed, step, value + 0.001 * step + 0.01 * seed) for seed in seeds for step in range(9)]
  frame = pd.DataFrame(lines, columns=['seed', 'index', 'ratio'])
  return frame.assign(arm='amat', attack='none', eps=0.0, group=frame['index'])


def test_costs_of_one_training_are_measured(rows):
  test = claims.Elsewhere(
    claims.measured(claims.Cell('amat'), metric='ratio', high=1.3), ratios([0])
  )
  table = claims.decide([claims.Claim('', '', test)], rows)
  assert table.loc[0, 'verdict'] == 'measured' and np.isnan(table.loc[0, 'p'])
  assert table.loc[0, 'numbers'] == '1.104 (1.1 to 1.108 over 9 intervals of 1 run)'


@pytest.mark.parametrize(('high', 'expected'), [(1.3, 'holds'), (1.0, 'fails')])
def test_costs_of_many_trainings_are_tested_over_them(high, expected):
  seeds = tuple(range(6))
  means = {('std', 'pgd', 0.07): (0.5,) * 6}
  test = claims.measured(claims.Cell('amat'), metric='ratio', high=high)
  test = claims.Elsewhere(test, ratios(seeds))
  table = claims.decide([claims.Claim('', '', test)], make_rows(means, seeds=seeds))
  assert table.loc[0, 'verdict'] == expected and table.loc[0, 'p'] >= 2**-6


def test_every_line_names_what_it_estimates(rows):
  tests = [claims.greater('adv', 'std', **AT), claims.below('std', threshold=0.3, **AT)]
  table = claims.decide([claims.Claim('', '', test) for test in tests], rows)
  assert table['test'].tolist() == [
    'dice(adv, pgd 0.07) - dice(std, pgd 0.07) > 0; mean of group means, skewness-corrected t test',
    'dice(std, pgd 0.07) < 0.3; median of group means, sign test',
  ]


def test_auroc_claims_tell_patients_from_strangers():
  rng = np.random.default_rng(0)
  group = np.arange(30)
  fixed = {'arm': 'a', 'seed': 0, 'index': group, 'group': group}
  rows = pd.concat(
    [
      pd.DataFrame({**fixed, 'attack': 'ind', 'eps': 0.0, 'score': rng.normal(size=30)}),
      pd.DataFrame({**fixed, 'attack': 'ood', 'eps': 2.0, 'score': rng.normal(1, 1, size=30)}),
    ]
  )
  cell = claims.Cell('a', 'ood', 2.0)
  make = lambda threshold, **more: claims.auroc_below(
    cell, ['ind'], metric='score', threshold=threshold, **more
  )
  assert verdict(make(0.5, shared=True), rows) == 'fails'
  assert verdict(make(0.97, shared=True), rows) == 'holds'
  assert verdict(make(0.8, shared=False), rows) == 'undecided'
  above = claims.auroc_above(cell, ['ind'], metric='score', threshold=0.6, shared=False)
  assert verdict(above, rows) == 'holds'
  assert str(above) == 'AUROC of score, a, ood 2 against ind > 0.6'
  assert verdict(dataclasses.replace(above, negatives=('gone',)), rows) == 'not run'


def test_what_is_said_of_a_setting_takes_several_trainings():
  cells = {('adv', 'pgd', 0.07): 0.7, ('std', 'pgd', 0.07): 0.1}
  better = claims.greater('adv', 'std', **AT)
  for seeds, expected in (((0,), 'undecided'), ((0, 1), 'undecided'), ((0, 1, 2), 'holds')):
    rows = make_rows(cells, seeds=seeds)
    both = [claims.Claim('', '', claims.repeated(better, rows, needed=3)),
            claims.Claim('', '', better)]  # fmt: skip
    table = claims.decide(both, rows)
    assert table['verdict'].tolist() == [expected, 'holds']
    few = f'too few trainings: {len(seeds)} of at least 3 trainings (config.seeds)'
    assert (few in table.loc[0, 'numbers']) == (expected == 'undecided')
    # What cannot be decided is not in the family.
    assert table.loc[1, 'p_holm'] == table.loc[1, 'p'] * (1 if len(seeds) < 3 else 2)
  only = claims.repeated(claims.greater('gone', 'std', **AT), rows, needed=3)
  assert verdict(only, rows) == 'not run'


@pytest.mark.parametrize(
  ('groups', 'decidable', 'least'),
  [(3, 0, 0.125), (5, 0, 1 / 32), (6, 0, 1 / 64), (7, 4, 1 / 128), (20, 4, 2**-20)],
)
def test_the_number_of_groups_alone_says_what_can_be_decided(groups, decidable, least):
  tests = [
    claims.greater('adv', 'std', **AT),
    claims.below('std', **AT, threshold=0.3),
    claims.best_of('adv', ('std', 'rand'), **AT),
    claims.Elsewhere(claims.greater('adv', 'rand', **AT), pd.DataFrame()),
    claims.measured(claims.Cell('adv'), metric='ratio', high=1.2),  # not over these groups
  ]
  found = claims.reach([claims.Claim('it is so', 'Table 1', test) for test in tests], groups)
  assert found == claims.Reach(groups, 4, decidable, least)


def test_the_smallest_p_is_the_one_that_tests_report():
  rows = make_rows(
    {('std', 'pgd', 0.07): 0.1, ('rand', 'pgd', 0.07): 0.3, ('adv', 'pgd', 0.07): 0.7}, groups=5
  )
  better = [claims.greater('adv', arm, **AT) for arm in ('std', 'rand')]
  almost = claims.at_least(1, better)
  best = claims.best_of('adv', ('std', 'rand'), **AT)
  for test in (*better, claims.above('adv', **AT, threshold=0.3), almost, best):
    assert test(rows).least == test.least(5) > 0

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustmed.evaluation import claims, paired

SHIFT = {'std': 0.0, 'adv': 0.1, 'noise': 0.01}


def rows(groups=20, seed=0):
  rng = np.random.default_rng(seed)
  base = rng.uniform(0.4, 0.7, groups)
  lines = []
  for arm, shift in SHIFT.items():
    for attack, eps in (('none', 0.0), ('fgsm', 0.05)):
      for group in range(groups):
        value = base[group] + shift * (eps > 0) - 3 * eps + rng.normal(scale=0.02)
        lines.append((arm, attack, eps, group, 0, group, value, 1 - value))
  columns = ['arm', 'attack', 'eps', 'index', 'seed', 'group', 'dice_wt', 'dice_tc']
  return pd.DataFrame(lines, columns=columns)


def value(frame, arm, attack, metric='dice_wt'):
  chosen = frame[(frame['arm'] == arm) & (frame['attack'] == attack)].sort_values('index')
  return chosen[metric].to_numpy()


def test_against_scipy_and_by_hand():
  frame = rows()
  family = paired.against(
    ['std', 'adv', 'noise'], 'std', metrics=['dice_wt'], attack='fgsm', levels=[0, 0.05]
  )
  assert [str(one.first) for one in family] == [
    'adv, clean', 'noise, clean', 'adv, fgsm 0.05', 'noise, fgsm 0.05',
  ]  # fmt: skip
  table = paired.table(family, frame, family='2 defenses x 2 levels')
  assert tuple(table.columns) == paired.COLUMNS
  assert set(table['family']) == {'2 defenses x 2 levels: 4 tests'}
  for line, (arm, attack) in zip(
    table.itertuples(), [(a, k) for k in ('none', 'fgsm') for a in ('adv', 'noise')]
  ):
    first, second = value(frame, arm, attack), value(frame, 'std', attack)
    assert line.p == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert line.difference == pytest.approx((first - second).mean())
    assert line.mean_first == pytest.approx(first.mean())
    assert line.mean_second == pytest.approx(second.mean())
    ranks = stats.rankdata(np.abs(first - second))
    effect = (np.sign(first - second) * ranks).sum() / ranks.sum()
    assert line.effect == pytest.approx(effect) and line.low < line.difference < line.high
  np.testing.assert_allclose(table['p_bonferroni'], np.minimum(1, 4 * table['p']))
  order = np.argsort(table['p'].to_numpy())
  holm = np.maximum.accumulate(table['p'].to_numpy()[order] * [4, 3, 2, 1])
  np.testing.assert_allclose(table['p_holm'].to_numpy()[order], np.minimum(1, holm))
  assert table['p_holm'][2] < 0.001 and table['effect'][2] > 0.9


def test_missing_cells_are_not_counted():
  cells = claims.Cell('adv', 'fgsm', 0.05), claims.Cell('std', 'fgsm', 0.05)
  gone = claims.Cell('distilled', 'fgsm', 0.05)
  family = [paired.Comparison(*cells, 'dice_tc'), paired.Comparison(gone, cells[1], 'dice_tc')]
  table = paired.table(family, rows())
  assert list(table['family']) == ['1 tests'] * 2
  assert table['p_holm'][0] == table['p'][0] < 0.01 and table['effect'][0] < -0.9
  assert table.loc[1, ['difference', 'effect', 'p', 'p_holm', 'p_bonferroni']].isna().all()
  assert table['groups'][1] == 0


@pytest.mark.parametrize('alternative', ['two-sided', 'greater', 'less'])
def test_signed_rank_without_zeros_is_scipys_exact_test(alternative):
  differences = np.random.default_rng(4).normal(0.4, size=11)
  reference = stats.wilcoxon(differences, alternative=alternative, method='exact').pvalue
  assert paired.signed_rank(differences, alternative=alternative) == pytest.approx(reference)


def test_signed_rank_by_enumeration_with_zeros_and_ties():
  """All 2^5 signs of the non-zero ranks, one-sided."""
  differences = np.array([0.0, 0.0, 1.0, 1.0, 2.0, -1.0, 3.0])
  ranks = stats.rankdata(np.abs(differences))[2:]
  observed = ranks[[0, 1, 2, 4]].sum()
  sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=5)]
  expected = np.mean([total >= observed - 1e-9 for total in sums])
  assert paired.signed_rank(differences, alternative='greater') == pytest.approx(expected)


def test_degenerate_tests_are_defined():
  assert paired.signed_rank(np.zeros(5)) == 1.0
  assert paired.signed_rank(np.array([])) == 1.0
  assert paired.rank_biserial(np.zeros(5)) == 0.0
  assert paired.signed_rank(np.array([1.0]), alternative='greater') == 0.5
  # rounding is no difference
  assert paired.rank_biserial(np.array([1.0, 1.0, -1e-15])) == 1.0


def test_rank_biserial_by_hand():
  assert paired.rank_biserial(np.array([1.0, 2.0, 3.0])) == 1.0
  assert paired.rank_biserial(np.array([-1.0, -2.0])) == -1.0
  assert paired.rank_biserial(np.array([1.0, 2.0, -3.0])) == 0.0
  assert paired.rank_biserial(np.array([1.0, -2.0, 4.0])) == pytest.approx((1 + 3 - 2) / 6)


@pytest.mark.parametrize('alternative', ['two-sided', 'greater', 'less'])
def test_signed_rank_with_zeros_and_ties_is_scipys_permutation_test(alternative):
  rng = np.random.default_rng(5)
  for number in (1, 2, 3, 5, 8):
    differences = rng.integers(-2, 4, number) / 10
    if differences.any():
      reference = stats.wilcoxon(differences, zero_method='pratt', alternative=alternative)
      assert paired.signed_rank(differences, alternative=alternative) == reference.pvalue


def test_signed_rank_of_few_groups_is_no_loop_over_the_patterns_of_signs(monkeypatch):
  monkeypatch.setattr(stats, 'permutation_test', None)
  differences = np.array([0.0, *[0.1] * 9, -0.1, 0.2, 0.3])
  # Of 12 signs: no negative one, or that of one of the ten smallest.
  assert paired.signed_rank(differences, alternative='greater') == (1 + 10) / 2**12

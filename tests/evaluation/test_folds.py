"""The fold effect: by hand, against SciPy, and its error rate."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustmed.evaluation import folds, statistics
from support import simulated


def test_by_hand_and_as_scipy_says():
  # Means 1 and 3 around 2: between (2 + 2) / 1, within (2 + 2) / 2.
  f, p = folds.effect([np.array([0.0, 2.0]), np.array([2.0, 4.0])])
  assert f == pytest.approx(2.0) and p == pytest.approx(stats.f.sf(2.0, 1, 2))
  rng = np.random.default_rng(0)
  parts = [rng.normal(size=(7, size)) for size in (4, 6, 9)]
  want = stats.f_oneway(*parts, axis=-1)
  got = folds.effect(parts)
  np.testing.assert_allclose(got.f, want.statistic)
  np.testing.assert_allclose(got.p, want.pvalue)


@pytest.mark.parametrize('parts', [([1.0, 1.0], [1.0, 1.0]), ([1.0], [2.0]), ([1.0, 1.0], [2.0])])
def test_without_variation_within_folds_nothing_is_said(parts):
  found = folds.effect([np.array(values) for values in parts])
  assert np.isnan(found.f) and np.isnan(found.p)


@pytest.mark.parametrize('groups', [20, 32, 60])
@pytest.mark.parametrize('kind', ['normal', 'Dice'])
def test_five_folds_that_are_alike_are_told_apart_in_5_percent(groups, kind):
  rng = np.random.default_rng(groups)
  shape = (simulated.RUNS, groups)
  # Dice: left-skewed, some volumes lost entirely.
  dice = lambda: np.where(rng.uniform(size=shape) < 0.1, 0.0, rng.beta(9, 2, size=shape))
  values = rng.normal(size=shape) if kind == 'normal' else dice()
  parts = np.array_split(values, 5, axis=1)
  rate = np.mean(folds.effect(parts).p < 0.05)
  # Two standard errors of 4,000 runs are 0.7 %.
  assert 0.03 < rate < 0.06
  deviation = values.std()
  # Networks whose means differ by 1.5 deviations of the groups.
  shifts = 1.5 * deviation * rng.normal(size=(5, simulated.RUNS, 1))
  moved = [part + shift for part, shift in zip(parts, shifts)]
  assert np.mean(folds.effect(moved).p < 0.05) > 0.8


def _rows(better=0.0):
  """Ten groups of two slices in two folds, two seeds; the networks of fold 1 are `better`."""
  rng, lines = np.random.default_rng(1), []
  for group in range(10):
    fold, level = group % 2, rng.normal()
    for index, seed in ((index, seed) for index in (0, 1) for seed in (0, 1)):
      for attack, eps in (('none', 0.0), ('pgd', 0.1)):
        value = level + better * fold - eps + 0.5 * index + seed
        lines.append(('std', attack, eps, 2 * group + index, seed, group, fold, value))
  names = ['arm', 'attack', 'eps', 'index', 'seed', 'group', 'fold', 'DICE']
  return statistics.prepare(pd.DataFrame(lines, columns=names))


def test_a_line_per_arm_and_level_with_the_means_of_the_groups():
  found = {better: folds.table(_rows(better), arms=['std', 'gone'], metric='DICE', attack='pgd',
                               levels=[0.0, 0.1]) for better in (0.0, 9.0)}  # fmt: skip
  table = found[9.0]
  assert list(table.columns) == ['arm', 'level', 'fold 0', 'fold 1', 'F', 'p']
  assert table['level'].tolist() == [0.0, 0.1] and set(table['arm']) == {'std'}
  rows = _rows(9.0)
  for eps, line in zip((0.0, 0.1), table.itertuples(index=False)):
    for fold in (0, 1):
      here = rows[(rows['eps'] == eps) & (rows['fold'] == fold)]
      assert line[2 + fold] == pytest.approx(here['DICE'].mean())
  assert (table['p'] < 1e-4).all() and (found[0.0]['p'] > 0.05).all()

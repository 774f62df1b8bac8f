"""Statistics against scipy and against numbers worked out by hand."""

import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustmed import errors
from robustmed.evaluation import statistics


def make_rows(*, arms=('std', 'adv'), levels=(0.03, 0.07), groups=6, per_group=3, seeds=(0,)):
  random = np.random.default_rng(0)
  cells = [('none', 0.0), *itertools.product(('fgsm', 'pgd'), levels)]
  lines = [
    (arm, attack, np.float32(eps), index, seed, index // per_group)
    for arm in arms
    for attack, eps in cells
    for seed in seeds
    for index in range(groups * per_group)
  ]
  rows = pd.DataFrame(lines, columns=['arm', 'attack', 'eps', 'index', 'seed', 'group'])
  return rows.assign(dice=random.uniform(size=len(rows)), error=random.normal(size=len(rows)))


def cell(table, **wanted):
  for name, value in wanted.items():
    table = table[table[name] == value]
  assert len(table) == 1
  return table.iloc[0]


def test_level_undoes_float32():
  for eps in (0.0, 0.01, 0.03, 0.07, 0.1, 0.2, 0.5, 20.0, 2000.0):
    assert statistics.level(np.float32(eps)) == eps == statistics.level(eps)


def test_summary_by_hand():
  rows = pd.DataFrame(
    {
      'arm': 'std', 'attack': 'none', 'eps': 0.0, 'index': [0, 1, 2, 3], 'seed': 0,
      'group': [0, 0, 1, 1], 'dice': [1.0, 2.0, 3.0, 6.0],
    }
  )  # fmt: skip
  table = statistics.summary(rows, metrics=['dice'])
  assert [*table.columns] == ['arm', 'attack', 'eps', 'metric', 'mean', 'std', 'n', 'low', 'high']
  line = cell(table)
  assert line['mean'] == 3.0 and line['n'] == 4
  assert line['std'] == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3))
  # two groups with means 1.5 and 4.5: a quarter of the resamples is either group twice
  assert (line['low'], line['high']) == (1.5, 4.5)


def test_summary_does_not_depend_on_order_or_neighbours():
  rows = make_rows()
  table = statistics.summary(rows, metrics=['dice', 'error'])
  shuffled = rows.sample(frac=1, random_state=3)
  pd.testing.assert_frame_equal(
    table, statistics.summary(shuffled, metrics=['dice', 'error']), check_exact=True
  )
  alone = statistics.summary(rows[rows['arm'] == 'adv'], metrics=['error'])
  kept = table[(table['arm'] == 'adv') & (table['metric'] == 'error')].reset_index(drop=True)
  pd.testing.assert_frame_equal(alone, kept, rtol=1e-12)
  assert set(table['eps']) == {0.0, 0.03, 0.07}
  other = statistics.summary(rows, metrics=['dice'], seed=1)
  assert not other['low'].equals(table.loc[table['metric'] == 'dice', 'low'])


def test_groups_are_resampled_not_rows():
  """Copies of a patient's rows carry no information: the interval must not shrink."""
  values = np.random.default_rng(0).normal(size=8)
  once = statistics.bootstrap_interval(values, np.arange(8))
  copied = statistics.bootstrap_interval(np.repeat(values, 50), np.repeat(np.arange(8), 50))
  np.testing.assert_allclose(copied, once, rtol=1e-12)
  naive = statistics.bootstrap_interval(np.repeat(values, 50), np.arange(400))
  assert naive.high - naive.low < 0.3 * (once.high - once.low)


def test_interval_agrees_with_scipy_for_single_rows():
  values = np.random.default_rng(1).gamma(2.0, size=60)
  ours = statistics.bootstrap_interval(values, np.arange(60), resamples=20000)
  reference = stats.bootstrap(
    (values,), np.mean, n_resamples=20000, method='percentile', rng=np.random.default_rng(5)
  ).confidence_interval
  np.testing.assert_allclose(ours, reference, atol=0.03)


def test_interval_with_unequal_groups_is_of_the_row_mean():
  """Two groups of 1 and 3 rows: the possible means are 0, 3/4 (both groups) and 1."""
  values, groups = np.array([0.0, 1.0, 1.0, 1.0]), np.array([7, 9, 9, 9])
  assert statistics.bootstrap_interval(values, groups) == (0.0, 1.0)
  narrow = statistics.bootstrap_interval(values, groups, level=0.2)
  assert narrow == (0.75, 0.75)


def test_blocks_of_resamples_change_nothing(monkeypatch):
  values = np.random.default_rng(2).normal(size=30)
  whole = statistics.bootstrap_interval(values, np.arange(30))
  monkeypatch.setattr(statistics, '_BLOCK', 100)
  assert statistics.bootstrap_interval(values, np.arange(30)) == pytest.approx(whole, rel=1e-12)


def test_one_group_has_no_interval():
  interval = statistics.bootstrap_interval(np.array([1.0, 2.0]), np.array([4, 4]))
  assert math.isnan(interval.low) and math.isnan(interval.high)


def test_unknown_values_are_left_out_and_counted():
  rows = make_rows(arms=('std',))
  clean = rows['attack'] == 'none'
  rows.loc[clean & rows['index'].isin([0, 5]), 'dice'] = [np.nan, np.inf]
  line = cell(statistics.summary(rows, metrics=['dice']), attack='none')
  kept = rows.loc[clean & ~rows['index'].isin([0, 5]), 'dice']
  assert line['n'] == 16 and line['mean'] == pytest.approx(kept.mean())
  rows.loc[clean, 'dice'] = np.nan
  line = cell(statistics.summary(rows, metrics=['dice']), attack='none')
  assert line['n'] == 0 and line[['mean', 'std', 'low', 'high']].isna().all()


def test_seeds_are_averaged_within_an_example():
  rows = make_rows(arms=('std',), seeds=(0, 1))
  line = cell(statistics.summary(rows, metrics=['dice']), attack='none')
  clean = rows[rows['attack'] == 'none']
  means = clean.groupby('index')['dice'].mean()
  assert line['n'] == 18
  assert line['mean'] == pytest.approx(means.mean()) and line['std'] == pytest.approx(means.std())


def test_prepare_refuses_missing_columns_and_repeated_rows():
  rows = make_rows()
  with pytest.raises(errors.UserError, match=r'lack.*group, dice'):
    statistics.prepare(rows.drop(columns=['group', 'dice']), metrics=['dice'])
  with pytest.raises(ValueError, match='occur twice'):
    statistics.prepare(pd.concat([rows, rows.head(1)]))


def test_select_takes_clean_rows_for_level_zero():
  rows = statistics.prepare(make_rows())
  clean = statistics.select(rows, arm='std', attack='pgd', eps=0)
  assert set(clean['attack']) == {'none'} and len(clean) == 18
  attacked = statistics.select(rows, arm='std', attack='pgd', eps=0.07)
  assert set(attacked['attack']) == {'pgd'} and len(attacked) == 18


def test_paired_difference_uses_only_shared_examples():
  rows = statistics.prepare(make_rows())
  first = statistics.select(rows, arm='adv', attack='pgd', eps=0.07)
  second = statistics.select(rows, arm='std', attack='pgd', eps=0.07)
  second = second[second['index'] < 15]
  found = statistics.paired_difference(first, second, metric='dice')
  difference = first['dice'].to_numpy()[:15] - second['dice'].to_numpy()
  assert found.n == 15
  assert found.mean == pytest.approx(difference.mean())
  means = difference.reshape(5, 3).mean(axis=1)
  np.testing.assert_allclose(found.by_group, means)
  assert found.low < found.mean < found.high
  swapped = statistics.paired_difference(second, first, metric='dice')
  assert swapped.mean == pytest.approx(-found.mean)


def test_paired_difference_of_strangers():
  rows = statistics.prepare(make_rows())
  clean = statistics.select(rows, arm='std', attack='none', eps=0)
  found = statistics.paired_difference(
    clean[clean['index'] < 5], clean[clean['index'] > 5], metric='dice'
  )
  assert found.n == len(found.by_group) == 0 and math.isnan(found.mean)


def test_holm_and_bonferroni_by_hand():
  p = [0.01, 0.04, 0.03, 0.5]
  np.testing.assert_allclose(statistics.holm(p), [0.04, 0.09, 0.09, 0.5])
  np.testing.assert_allclose(statistics.bonferroni(p), [0.04, 0.16, 0.12, 1.0])
  missing = [0.01, np.nan, 0.03]
  np.testing.assert_allclose(statistics.holm(missing), [0.02, np.nan, 0.03])
  np.testing.assert_allclose(statistics.bonferroni(missing), [0.02, np.nan, 0.06])
  assert statistics.holm([]).shape == (0,)


def test_holm_corrects_many_families_at_once():
  families = np.random.default_rng(8).uniform(size=(5, 4, 6))
  families[1, 2, 3] = np.nan
  expected = [[statistics.holm(p) for p in line] for line in families]
  np.testing.assert_array_equal(statistics.holm(families), expected)


def test_a_contrast_is_summed_over_shared_examples():
  rows = statistics.prepare(make_rows())
  cell = lambda arm, eps: statistics.select(rows, arm=arm, attack='pgd', eps=eps)
  parts = [(1.0, cell('adv', 0.07)), (-2.0, cell('std', 0.07)), (1.0, cell('std', 0))]
  parts[1] = (-2.0, parts[1][1][parts[1][1]['index'] < 15])
  found = statistics.contrast(parts, metric='dice')
  assert len(found) == 15 and found['group'].nunique() == 5
  values = [part['dice'].to_numpy()[:15] for _, part in parts]
  np.testing.assert_allclose(found['value'], values[0] - 2 * values[1] + values[2])


def test_holm_lies_between_raw_and_bonferroni():
  random = np.random.default_rng(6)
  for size in (1, 2, 7):
    p = random.uniform(size=size) ** 2
    adjusted = statistics.holm(p)
    assert np.all(p <= adjusted) and np.all(adjusted <= statistics.bonferroni(p))
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


def test_interval_covers_the_truth_as_often_as_it_says():
  random = np.random.default_rng(7)
  hits = 0
  for _ in range(200):
    values = random.normal(size=(30, 1)) + 0.3 * random.normal(size=(30, 4))
    interval = statistics.bootstrap_interval(
      values.ravel(), np.repeat(np.arange(30), 4), resamples=400
    )
    hits += interval.low < 0 < interval.high
  assert 175 <= hits <= 199


def test_a_whole_grid_takes_seconds():
  rows = make_rows(arms='abc', levels=(0.01, 0.03, 0.05, 0.07, 0.1, 0.2), groups=20, per_group=5)
  start = time.process_time()
  statistics.summary(rows, metrics=['dice', 'error'])
  assert time.process_time() - start < 3


def test_worst_rows_by_hand():
  """Lower levels and the clean image count; ties and unknown values; other columns come along."""
  lines = [
    # arm, attack, eps, index, DICE, other
    ('a', 'none', 0.0, 0, 0.9, 1),
    ('a', 'none', 0.0, 1, 0.2, 2),
    ('a', 'p', 0.1, 0, 0.5, 3),
    ('a', 'q', 0.1, 0, 0.4, 4),
    ('a', 'p', 0.2, 0, 0.6, 5),
    ('a', 'q', 0.2, 0, np.nan, 6),
    ('a', 'p', 0.1, 1, 0.3, 7),
    ('a', 'q', 0.1, 1, 0.3, 8),
    ('a', 'p', 0.2, 1, 0.1, 9),
    ('a', 'q', 0.2, 1, 0.1, 10),
    ('a', 'blur', 0.1, 0, 0.0, 11),
  ]
  frame = pd.DataFrame(lines, columns=['arm', 'attack', 'eps', 'index', 'DICE', 'other'])
  frame = frame.assign(seed=0, group=frame['index'])
  found = statistics.worst(frame, attacks=['p', 'q'], metric='DICE', higher_is_better=True)
  shown = ['eps', 'index', 'DICE', 'other', '_member', '_member_eps']
  assert found[shown].to_numpy().tolist() == [
    [0.1, 0, 0.4, 4, 'q', 0.1],
    [0.1, 1, 0.2, 2, 'none', 0.0],
    [0.2, 0, 0.4, 4, 'q', 0.1],
    [0.2, 1, 0.1, 9, 'p', 0.2],
  ]
  assert set(found['attack']) == {statistics.WORST}
  lower = frame.assign(DICE=-frame['DICE'])
  again = statistics.worst(lower, attacks=['p', 'q'], metric='DICE', higher_is_better=False)
  assert again['other'].tolist() == found['other'].tolist()
  assert statistics.worst(frame, attacks=['r'], metric='DICE', higher_is_better=True).empty


def test_worst_rows_are_those_of_each_network():
  rng = np.random.default_rng(0)
  keys = [(a, s, i) for a in 'ab' for s in (0, 1) for i in range(5)]
  frame = pd.concat(
    pd.DataFrame(keys, columns=['arm', 'seed', 'index']).assign(
      attack=attack, eps=eps, DICE=rng.uniform(size=len(keys))
    )
    for attack, eps in [('none', 0.0), ('p', 0.1), ('q', 0.1), ('p', 0.3)]
  ).assign(group=0)
  found = statistics.worst(frame, attacks=['p', 'q'], metric='DICE', higher_is_better=True)
  assert len(found) == 2 * len(keys)
  keys = ['arm', 'seed', 'index']
  for line in found.to_dict('records'):
    mine = frame[(frame[keys] == [line[key] for key in keys]).all(axis=1)]
    assert line['DICE'] == mine.loc[mine['eps'] <= line['eps'], 'DICE'].min()


def test_the_worst_of_a_subject_is_never_better_than_an_attack_on_all_its_slices():
  """An empty slice has a Dice of 0 however much is marked in it, so that of slices misleads."""
  lines = [
    # attack, eps, index, intersection, sizes of both
    ('none', 0.0, 0, 50, 100),
    ('none', 0.0, 1, 0, 1),
    ('p', 0.1, 0, 40, 100),
    ('p', 0.1, 1, 0, 80),
    ('q', 0.1, 0, 30, 100),
    ('q', 0.1, 1, 0, 2),
  ]
  frame = pd.DataFrame(lines, columns=['attack', 'eps', 'index', '_both', '_size'])
  frame = frame.assign(arm='a', seed=0, group=0, DICE=2 * frame['_both'] / frame['_size'])

  def volumes(rows):
    made = rows.groupby(['arm', 'attack', 'eps', 'seed', 'group'], as_index=False)
    made = made[['_both', '_size']].sum()
    return made.assign(index=made['group'], DICE=2 * made['_both'] / made['_size'])

  judge = {'metric': 'DICE', 'higher_is_better': True, 'attacks': ['p', 'q']}
  worst = lambda subjects: statistics.worst_of_subjects(
    frame, subjects(frame), subjects=subjects, **judge
  )
  (found,) = worst(volumes).to_dict('records')
  assert found['DICE'] == 80 / 180 and found['_member'] == 'p'  # slice by slice: 60 / 101
  # where both attacks of the slices are worst together
  frame.loc[frame['index'] == 1, ['_both', '_size', 'DICE']] = [
    [5, 50, 0.2],
    [0, 50, 0],
    [5, 50, 0.2],
  ]
  (found,) = worst(volumes).to_dict('records')
  assert found['DICE'] == 60 / 150 and found['_member'] == statistics.MIXED
  same = worst(lambda rows: rows)
  pd.testing.assert_frame_equal(same, statistics.worst(frame, **judge))

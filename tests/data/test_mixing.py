import collections

import numpy as np
import pytest

from robustmed import errors
from robustmed.data import mixing, pipeline, store

SECTION = {
  'positive': {'real': 0.5, 'synthetic': 0.25, 'attacked': 0.25},
  'negative': {'real': 0.5, 'attacked': 0.5},
}


def split(size, *, first=0, value=0.0):
  examples = [
    {
      'image': np.full((2,), value, np.float32),
      'label': np.float32(value),
      'index': first + i,
      'group': first + i,
      'name': str(first + i),
    }
    for i in range(size)
  ]
  return store.Split(examples, list(range(first, first + size)))


PARTS = {
  'positive/real': split(5, first=0, value=1),
  'positive/synthetic': split(3, first=100, value=2),
  'positive/attacked': split(4, first=200, value=3),
  'negative/real': split(7, first=300, value=4),
  'negative/attacked': split(2, first=400, value=5),
}


def draws(parts, shares, *, start=0, steps=8, host=0, hosts=1, batch=8, **more):
  joined, sampling = mixing.mix(parts, shares, **more)
  batches = pipeline.train_batches(
    joined,
    batch_size=batch // hosts,
    seed=3,
    shard_index=host,
    shard_count=hosts,
    start_step=start,
    sampling=sampling,
  )
  return [next(batches) for _ in range(steps)]


def indices(batches):
  return np.concatenate([batch['index'] for batch in batches])


def test_joined_splits_keep_order_groups_and_ends():
  joined = mixing.Concatenated([split(2), split(0), split(3, first=10)])
  assert [example['index'] for example in joined] == [0, 1, 10, 11, 12] == list(joined.groups)
  with pytest.raises(IndexError):
    joined[5]
  with pytest.raises(IndexError):
    joined[-1]


def test_shares_come_out_exactly_in_every_period():
  shares = mixing.resolve(SECTION, PARTS)
  assert shares == {
    'positive/real': 0.25,
    'positive/synthetic': 0.125,
    'positive/attacked': 0.125,
    'negative/real': 0.25,
    'negative/attacked': 0.25,
  }
  for batch in draws(PARTS, shares, steps=4, batch=8):  # the period is 8 draws
    assert np.bincount(batch['index'] // 100, minlength=5).tolist() == [2, 1, 1, 2, 2]
    np.testing.assert_array_equal(batch['target']['label'], 1 + batch['index'] // 100)


def test_every_pass_over_a_part_shows_each_example_once():
  seen = collections.defaultdict(list)
  for index in indices(draws(PARTS, mixing.resolve(SECTION, PARTS), steps=30)):
    seen[index // 100].append(index)
  for kind, length in enumerate(map(len, PARTS.values())):
    for first in range(0, len(seen[kind]) - length + 1, length):
      assert len(set(seen[kind][first : first + length])) == length
  orders = {tuple(seen[0][i : i + 5]) for i in range(0, 50, 5)}
  assert len(orders) > 1


def test_draws_depend_on_neither_hosts_nor_a_resume_but_on_the_seed():
  shares = mixing.resolve(SECTION, PARTS)
  whole = indices(draws(PARTS, shares))
  parts = [draws(PARTS, shares, host=host, hosts=2) for host in range(2)]
  joined = np.concatenate([np.concatenate([a['index'], b['index']]) for a, b in zip(*parts)])
  np.testing.assert_array_equal(whole, joined)
  np.testing.assert_array_equal(whole[24:], indices(draws(PARTS, shares, start=3, steps=5)))
  _, sampling = mixing.mix(PARTS, shares)
  other = [sampling.choose(i, seed=4, batch_size=8, size=21)[0] for i in range(64)]
  assert other != [sampling.choose(i, seed=3, batch_size=8, size=21)[0] for i in range(64)]


def test_shares_below_0_or_that_do_not_add_up_are_one_line():
  for kinds in ({'real': 1.5, 'synthetic': -0.5}, {'real': 0.5}, {'real': float('nan')}):
    with pytest.raises(errors.UserError, match='shares of positive must be at least 0 and add up'):
      mixing.check({'positive': kinds})


def test_a_missing_kind_leaves_its_share_to_the_first_of_its_class():
  there = {name: part for name, part in PARTS.items() if name != 'positive/synthetic'}
  shares = mixing.resolve(SECTION, there)
  assert shares['positive/real'] == 0.375 and shares['positive/attacked'] == 0.125
  real = {name: part for name, part in PARTS.items() if name.endswith('/real')}
  assert mixing.resolve(SECTION, real) == {'positive/real': 0.5, 'negative/real': 0.5}
  with pytest.raises(errors.UserError, match='positive/real, of which there are none'):
    mixing.resolve(SECTION, {'negative/real': split(1)})


def test_a_part_is_cropped_by_its_own_sampling_alone():
  twice = lambda example, wish: {**example, 'image': example['image'] * wish}
  choose = lambda draw, *, seed, batch_size, size: (draw % size, 10.0 + draw)
  batches = draws(
    PARTS,
    {'positive/real': 1, 'negative/real': 1},
    samplings={'positive/real': pipeline.Sampling(choose, twice)},
    steps=3,
    batch=4,
  )
  image = np.concatenate([batch['image'][:, 0] for batch in batches])
  index = indices(batches)
  np.testing.assert_array_equal(image[index >= 300], 4)
  np.testing.assert_array_equal(image[index < 300], 10 + np.arange(6))
  np.testing.assert_array_equal(index[index < 300], [0, 1, 2, 3, 4, 0])


def test_shares_may_be_counts_and_zero_leaves_a_part_out():
  counts = {'positive/real': 500, 'negative/real': 20, 'negative/attacked': 0}
  joined, sampling = mixing.mix(PARTS, counts)
  assert len(joined) == 12
  kinds = [sampling.choose(i, seed=0, batch_size=1, size=12)[0] >= 5 for i in range(26)]
  assert sum(kinds) == 1


def test_mistakes_are_told():
  with pytest.raises(errors.UserError, match='add up to 1'):
    mixing.resolve({'positive': {'real': 0.5, 'attacked': 0.6}}, PARTS)
  with pytest.raises(errors.UserError, match="unknown part of a mixture 'positive/reel'"):
    mixing.mix(PARTS, {'positive/reel': 1.0})
  with pytest.raises(errors.UserError, match='no examples of the kind a'):
    mixing.mix({'a': split(0)}, {'a': 1.0})
  with pytest.raises(errors.UserError, match='hold exactly within 10000 draws'):
    mixing.mix(PARTS, {'positive/real': 1.0, 'negative/real': 1e-6})

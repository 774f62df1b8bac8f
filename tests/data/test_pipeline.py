import itertools

import jax
import numpy as np
import pytest

from robustmed import errors
from robustmed.data import pipeline


def take(batches, count):
  return list(itertools.islice(batches, count))


def train(split, *, batch_size=4, seed=0, shard_index=0, shard_count=1, start_step=0):
  return pipeline.train_batches(
    split,
    batch_size=batch_size,
    seed=seed,
    shard_index=shard_index,
    shard_count=shard_count,
    start_step=start_step,
  )


def same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_batch_fields(small):
  batch = next(train(small.train))
  assert set(batch) == {'image', 'target', 'mask', 'index', 'group', 'draw'}
  assert set(batch['target']) == {'contour', 'mask'}
  assert batch['image'].shape == (4, 32, 32, 1) and batch['image'].dtype == np.float32
  assert batch['target']['contour'].shape == (4, 176, 2)
  assert batch['target']['mask'].shape == (4, 32, 32, 1)
  assert batch['mask'].dtype == bool and batch['mask'].all()
  assert batch['index'].dtype == batch['group'].dtype == batch['draw'].dtype == np.int32
  for k, index in enumerate(batch['index']):
    np.testing.assert_array_equal(batch['image'][k], small.train[index]['image'])
    assert batch['group'][k] == small.train.groups[index]


def test_every_pass_is_a_new_permutation(small):
  batches = take(train(small.train, batch_size=5), 9)  # three passes of fifteen
  passes = np.concatenate([batch['index'] for batch in batches]).reshape(3, 15)
  np.testing.assert_array_equal(np.sort(passes, axis=1), [list(range(15))] * 3)
  assert len({tuple(order) for order in passes}) == 3
  np.testing.assert_array_equal(np.concatenate([batch['draw'] for batch in batches]), range(45))


def test_batches_run_across_the_end_of_a_pass(small):
  indices = np.concatenate([batch['index'] for batch in take(train(small.train), 15)])
  np.testing.assert_array_equal(np.bincount(indices), [4] * 15)


def test_seed_decides_the_order(small):
  orders = [
    tuple(np.concatenate([b['index'] for b in take(train(small.train, seed=seed), 4)]))
    for seed in (0, 0, 1)
  ]
  assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize('shard_count', [2, 3, 6])
def test_global_batch_does_not_depend_on_the_hosts(small, shard_count):
  whole = take(train(small.train, batch_size=6), 7)
  hosts = [
    take(
      train(small.train, batch_size=6 // shard_count, shard_index=index, shard_count=shard_count),
      7,
    )
    for index in range(shard_count)
  ]
  for step in range(7):
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *[host[step] for host in hosts])
    same(joined, whole[step])


def test_padding_of_the_global_batch_takes_no_draws(small):
  whole = take(train(small.train, batch_size=5), 4)
  parts = [
    take(
      pipeline.train_batches(
        small.train, batch_size=3, seed=0, shard_index=index, shard_count=3, examples=5
      ),
      4,
    )
    for index in range(3)
  ]
  for step, one in enumerate(whole):
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part[step] for part in parts))
    assert joined['mask'].tolist() == [True] * 5 + [False] * 4
    same(jax.tree.map(lambda leaf: leaf[:5], joined), one)
    assert (joined['draw'][5:] == one['draw'][-1]).all()


@pytest.mark.parametrize('shard_count', [1, 2])
def test_resumes_at_any_step(small, shard_count):
  last = shard_count - 1
  batches = take(train(small.train, shard_index=last, shard_count=shard_count), 9)
  for step in (0, 1, 5, 8):
    later = train(small.train, shard_index=last, shard_count=shard_count, start_step=step)
    for expected in batches[step:]:
      same(next(later), expected)


def test_state_is_plain_and_exact(small):
  first = train(small.train)
  take(first, 3)
  state = first.get_state()
  assert state == {'step': 3}
  expected = take(first, 3)
  second = train(small.train)
  second.set_state(state)
  for one, two in zip(expected, take(second, 3)):
    same(one, two)
  first.set_state(state)
  same(next(first), expected[0])
  assert first.get_state() == {'step': 4}


@pytest.mark.parametrize(('batch_size', 'shard_count'), [(4, 1), (2, 2), (4, 2), (5, 3), (1, 1)])
def test_eval_sees_every_example_once_on_equal_numbers_of_batches(small, batch_size, shard_count):
  hosts = [
    list(
      pipeline.eval_batches(
        small.test, batch_size=batch_size, shard_index=index, shard_count=shard_count
      )
    )
    for index in range(shard_count)
  ]
  assert len({len(batches) for batches in hosts}) == 1
  in_order = [host[step] for step in range(len(hosts[0])) for host in hosts]
  assert all(batch['image'].shape == (batch_size, 32, 32, 1) for batch in in_order)
  mask = np.concatenate([batch['mask'] for batch in in_order])
  np.testing.assert_array_equal(mask, np.arange(len(mask)) < 6)
  assert len(mask) - 6 < batch_size * shard_count
  index = np.concatenate([batch['index'] for batch in in_order])
  np.testing.assert_array_equal(index[mask], range(15, 21))
  draw = np.concatenate([batch['draw'] for batch in in_order])
  np.testing.assert_array_equal(draw, range(len(mask)))
  images = np.concatenate([batch['image'] for batch in in_order])
  assert np.isfinite(images).all()


def test_eval_has_a_length_and_any_batch_can_be_had(small):
  batches = pipeline.eval_batches(small.test, batch_size=4, shard_index=0, shard_count=1)
  assert len(batches) == 2
  same(batches[1], list(batches)[1])


def test_bad_arguments(small):
  with pytest.raises(errors.UserError, match='batch size'):
    train(small.train, batch_size=0)
  with pytest.raises(ValueError, match='shard 2 of 2'):
    train(small.train, shard_index=2, shard_count=2)
  with pytest.raises(errors.UserError, match='empty'):
    pipeline.eval_batches([], batch_size=1, shard_index=0, shard_count=1)


def test_negative_seeds_work(small):
  assert next(train(small.train, seed=-1))['image'].shape[0] == 4


def test_a_sampling_chooses_and_crops(small):
  sampling = pipeline.Sampling(
    choose=lambda draw, *, seed, batch_size, size: ((draw * batch_size + seed) % size, draw),
    crop=lambda example, wish: {**example, 'image': example['image'][:2] + wish},
  )
  hosts = [
    pipeline.train_batches(
      small.train, batch_size=2, seed=1, shard_index=index, shard_count=2, sampling=sampling
    )
    for index in range(2)
  ]
  for step in range(2):
    for host, batch in enumerate(next(batches) for batches in hosts):
      for k, draw in enumerate(range(4 * step + 2 * host, 4 * step + 2 * host + 2)):
        position = (4 * draw + 1) % 15
        assert batch['draw'][k] == draw and batch['index'][k] == small.train[position]['index']
        np.testing.assert_array_equal(batch['image'][k], small.train[position]['image'][:2] + draw)


def test_evaluation_crops(small):
  batches = pipeline.eval_batches(
    small.test,
    batch_size=4,
    shard_index=0,
    shard_count=1,
    crop=lambda example: {**example, 'image': example['image'][3:5]},
  )
  np.testing.assert_array_equal(batches[1]['image'][1], small.test[5]['image'][3:5])

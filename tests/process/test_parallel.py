import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.process import parallel


def test_split_outputs_are_joined_and_others_come_once():
  def work(weight, x):
    return x * weight, parallel.psum(jnp.sum(x)), parallel.all_gather(x)

  mapped = parallel.each_device(work, split=(1,), gathered=(True, False, False))
  x = np.arange(8, dtype=np.float32).reshape(4, 2)
  doubled, total, gathered = mapped(jnp.float32(2), x)
  np.testing.assert_array_equal(doubled, 2 * x)
  assert total.shape == () and float(total) == x.sum()
  np.testing.assert_array_equal(gathered, x)


def test_one_flag_speaks_for_a_tree():
  mapped = parallel.each_device(lambda x: {'a': x + 1, 'b': {'c': x * 2}}, split=(0,))
  out = mapped(np.ones((4, 3), np.float32))
  assert out['a'].shape == out['b']['c'].shape == (4, 3)


@pytest.mark.parametrize('nothing', [{}, (), None])
def test_an_argument_without_arrays_leaves_the_others_as_they_are(nothing):
  count = parallel.local_device_count()
  add = parallel.each_device(lambda _, table, more: table['a'] + more, split=(1,))
  found = add(nothing, {'a': np.arange(2 * count), 'b': np.ones(2 * count)}, np.int32(3))
  np.testing.assert_array_equal(found, np.arange(2 * count) + 3)


def test_a_batch_that_does_not_divide_is_refused():
  assert jax.local_device_count() == 2
  with pytest.raises(ValueError, match='not a multiple of 2 devices'):
    parallel.each_device(lambda x: x, split=(0,))(np.ones(3, np.float32))


def test_pad_repeats_the_last_example_and_masks_it():
  batch = {
    'image': np.arange(3.0),
    'mask': np.array([True, True, True]),
    'deep': {'a': np.ones((3, 2))},
  }
  padded = parallel.pad(batch, 5)
  np.testing.assert_array_equal(padded['image'], [0, 1, 2, 2, 2])
  np.testing.assert_array_equal(padded['mask'], [True] * 3 + [False] * 2)
  assert padded['deep']['a'].shape == (5, 2)
  with pytest.raises(ValueError, match='does not fit'):
    parallel.pad(batch, 2)
  assert [parallel.round_up(n) for n in (1, 2, 3)] == [2, 2, 4]


def test_device_keys_differ_and_batch_norm_style_means_are_global():
  def work(key, x):
    return jax.random.key_data(parallel.device_key(key))[None], parallel.pmean(jnp.mean(x))

  keys, mean = parallel.each_device(work, split=(1,), gathered=(True, False))(
    jax.random.key(0), np.arange(4, dtype=np.float32)
  )
  assert not np.array_equal(keys[0], keys[1])
  assert float(mean) == 1.5


def test_alone_everything_is_local():
  assert parallel.is_writer() and parallel.process_count() == 1
  np.testing.assert_array_equal(parallel.gather_rows({'a': np.ones(2)})['a'], np.ones(2))
  assert parallel.any_host(True) and not parallel.any_host(False)
  np.testing.assert_array_equal(parallel.broadcast_from_writer(np.arange(3)), np.arange(3))


_TUNE = """
import os
from robustmed.process import cpu_flags
print(cpu_flags.tune())
print(os.environ['XLA_FLAGS'])
import jax
print(float(jax.numpy.ones(3).sum()))
"""


def test_cpu_flags_are_added_but_the_users_survive():
  user = '--xla_cpu_prefer_vector_width=256'
  env = {**os.environ, 'XLA_FLAGS': user}
  done = subprocess.run(
    [sys.executable, '-c', _TUNE], env=env, capture_output=True, text=True, check=True
  )
  added, flags, value = done.stdout.splitlines()
  assert 'prefer_vector_width' not in added
  assert user in flags and added in flags
  assert value == '3.0'


@pytest.mark.slow
def test_programs_are_dropped_where_they_hold_many_mappings_only(monkeypatch):
  traced = []
  double = jax.jit(lambda x: traced.append(1) or 2 * x)
  for share, expected in ((1.0, 1), (0.0, 2)):  # a worker of the suite may hold a quarter
    monkeypatch.setattr(parallel, '_MAPPINGS_SHARE', share)
    double(1.0)
    parallel.drop_compiled_programs()
    double(2.0)
    assert len(traced) == expected


def test_values_everywhere_are_those_that_come_back():
  add = parallel.each_device(lambda x, y: x + jnp.sum(y), split=(1,), gathered=False)
  value = parallel.replicate({'a': np.float32(1)})['a']
  assert add(value, np.zeros(4, np.float32)).sharding == value.sharding


def test_sums_are_joined_as_before_after_an_error():
  class Mistake(Exception):
    pass

  before = parallel._join_sums.get()
  with pytest.raises(Mistake), parallel.sums_joined_by(lambda sums: sums):
    raise Mistake
  assert parallel._join_sums.get() is before

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


def test_lowering_gives_programs_and_shapes_in_place_of_results():
  def work(weight, x):
    assert parallel.device_count() == 2
    return {'a': x @ weight}, parallel.psum(jnp.sum(x))

  mapped = parallel.each_device(work, split=(1,), gathered=(True, False))
  weight, x = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((3, 5), (4, 3)))
  with parallel.lowering(jax.local_devices()) as found:
    joined, total = mapped(weight, x)
  assert joined['a'].shape == (4, 5) and total.shape == () and total.dtype == np.float32
  (program,) = found
  assert 'tensor<2x2x3xf32>' in program.as_text() or 'tensor<1x2x3xf32>' in program.as_text()
  values = mapped(np.ones((3, 5), np.float32), np.ones((4, 3), np.float32))
  assert values[0]['a'].shape == (4, 5) and float(values[1]) == 12

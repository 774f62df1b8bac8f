import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.ops import contracts


def test_what_is_as_it_should_be_comes_back():
  np.testing.assert_array_equal(
    contracts.per_example(np.float32([1, 2]), 2, what='it'), jnp.asarray([1.0, 2.0])
  )
  half = jnp.ones(3, jnp.bfloat16)
  assert contracts.per_example(half, 3, what='it').dtype == jnp.bfloat16
  assert contracts.per_example(half > 0, 3, what='it', dtype=bool).dtype == bool
  assert contracts.per_example(jnp.arange(3), 3, what='it', dtype=None).dtype == jnp.int32
  found = contracts.columns({'dice': half, 'hits': jnp.arange(3)}, 3, what='it')
  assert list(found) == ['dice', 'hits'] and found['dice'] is half
  assert contracts.batched({'a': (jnp.ones((2, 4)), jnp.ones(2))}, 2, what='it')['a'][0].ndim == 2


def test_numbers_are_spread_over_the_examples():
  x = jnp.zeros((3, 2), jnp.bfloat16)
  for value in (0.5, 1, np.float64(0.5), jnp.float32(0.5), [0.1, 0.2, 0.3], np.ones(3)):
    found = contracts.broadcast_per_example(value, x, what='eps')
    assert found.shape == (3,) and found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), np.broadcast_to(value, 3), rtol=1e-2)


@pytest.mark.parametrize(
  ('check', 'says'),
  [
    (lambda: contracts.per_example(jnp.ones((2, 1)), 2, what='it'), r'float32 of shape \(2, 1\)'),
    (lambda: contracts.per_example(jnp.ones(3), 2, what='it'), r'\(2,\) .* of shape \(3,\)'),
    (lambda: contracts.per_example(0.5, 2, what='it'), 'returned float 0.5'),
    (lambda: contracts.per_example(jnp.arange(2), 2, what='it'), 'floating value .* int32 of'),
    (lambda: contracts.per_example(jnp.ones(2), 2, what='it', dtype=bool), 'one bool .* float32'),
    # two arrays of the same shape are not one of shape [2]
    (lambda: contracts.per_example((1.0, 2.0), 2, what='it'), r'a tuple of \[0\] float 1.0, \[1\]'),
    (lambda: contracts.columns({'dice': jnp.ones(())}, 2, what='metric'), "'dice' of metric must"),
    (lambda: contracts.columns(jnp.ones(2), 2, what='it'), r'a dict of values, .*shape \(2,\)'),
    (lambda: contracts.batched([jnp.ones(2), 1.0], 2, what='it'), r'list of .*, \[1\] float 1.0'),
    (lambda: contracts.batched([jnp.ones(3)] * 6, 2, what='it'), r'\[3\] .*, and 2 more$'),
    (
      lambda: contracts.broadcast_per_example(None, jnp.ones((2, 1)), what='eps'),
      'eps must .* but is None',
    ),
    (
      lambda: contracts.broadcast_per_example(jnp.ones(1), jnp.ones((2, 1)), what='eps'),
      r'shape \(2,\).*\(1,\)',
    ),
  ],
)
def test_mistakes_say_what_there_is_and_what_is_wanted(check, says):
  with pytest.raises(errors.UserError, match=says):
    check()


def test_checks_leave_nothing_in_the_program():
  def checked(x):
    value = contracts.per_example(jnp.sum(x, axis=1), 3, what='it')
    return contracts.columns({'v': value}, 3, what='it')['v']

  plain = jax.make_jaxpr(lambda x: jnp.sum(x, axis=1))(jnp.ones((3, 2)))
  assert str(jax.make_jaxpr(checked)(jnp.ones((3, 2)))) == str(plain)

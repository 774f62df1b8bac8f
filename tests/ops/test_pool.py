"""ops.pool against Flax, in 1, 2 and 3 dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from robustmed import errors
from robustmed.ops import pool


@pytest.mark.parametrize('window', [(2,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize(
  ('ours', 'theirs'), [(pool.average, nn.avg_pool), (pool.maximum, nn.max_pool)]
)
def test_pooling_and_its_gradient(ours, theirs, window):
  shape = (2, *(w * n for w, n in zip(window, (3, 2, 4))), 2)
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
  expected = theirs(x, window, strides=window)
  np.testing.assert_allclose(ours(x, window), expected, atol=1e-6)
  weights = jnp.arange(expected.size, dtype=jnp.float32).reshape(expected.shape)
  actual = jax.grad(lambda x: (weights * ours(x, window)).sum())(x)
  reference = jax.grad(lambda x: (weights * theirs(x, window, strides=window)).sum())(x)
  np.testing.assert_allclose(actual, reference, atol=1e-4)


def test_equal_maxima_share_the_gradient():
  gradient = jax.grad(lambda x: pool.maximum(x, 2).sum())(jnp.ones((1, 2, 2, 1)))
  np.testing.assert_allclose(gradient, np.full((1, 2, 2, 1), 0.25))


def test_grid_that_does_not_divide():
  with pytest.raises(errors.UserError, match=r'pooling by \(2, 2\).*\(4, 5\)'):
    pool.average(jnp.zeros((1, 4, 5, 1)), 2)


@pytest.mark.parametrize('shape', [(2, 7, 2), (2, 3, 6, 2)])
def test_maximum_around_every_cell_and_its_gradient(shape):
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
  window = (1, *(5,) * (len(shape) - 2), 1)
  around = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, (1,) * len(shape), 'SAME')
  np.testing.assert_array_equal(pool.maximum_around(x, 2), around(x))
  weights = jnp.asarray(np.random.default_rng(1).normal(size=shape).astype(np.float32))
  ours, theirs = (
    jax.grad(lambda x, f=f: (weights * f(x)).sum())(x)
    for f in (lambda x: pool.maximum_around(x, 2), around)
  )
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


GEOMETRIES = {
  'overlap': {'window': (3, 2), 'strides': (2, 1), 'padding': ((1, 1), (0, 1)), 'dilation': (1, 1)},
  'dilated': {'window': (2, 3), 'strides': (1, 2), 'padding': ((0, 0), (2, 1)), 'dilation': (3, 2)},
  'partition': {'window': (2, 3), 'strides': (2, 3), 'padding': ((0, 0),) * 2, 'dilation': (1, 1)},
}


@pytest.mark.parametrize('options', GEOMETRIES.values(), ids=GEOMETRIES)
def test_windows_of_any_geometry(options):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 9, 3)).astype(np.float32))
  window, strides = (1, *options['window'], 1), (1, *options['strides'], 1)
  padding, dilation = ((0, 0), *options['padding'], (0, 0)), (1, *options['dilation'], 1)
  reduced = lambda x, start, function: lax.reduce_window(
    x, start, function, window, strides, padding, window_dilation=dilation
  )
  found = pool.maximum_windows(x, **options)
  np.testing.assert_array_equal(found, reduced(x, -jnp.inf, lax.max))
  inside = reduced(x, 0.0, lax.add) / reduced(jnp.ones_like(x), 0.0, lax.add)
  np.testing.assert_allclose(pool.average_windows(x, **options), inside, atol=1e-6)
  all_of_it = reduced(x, 0.0, lax.add) / np.prod(options['window'])
  found = pool.average_windows(x, counted=options['padding'], **options)
  np.testing.assert_allclose(found, all_of_it, atol=1e-6)


def test_the_maximum_of_integers():
  x = jnp.asarray([[[-3], [-1], [-2]]], jnp.int8)
  options = {'strides': (1,), 'padding': ((1, 0),), 'dilation': (1,)}
  assert pool.maximum_windows(x, (2,), **options).reshape(-1).tolist() == [-3, -1, -1]

"""ops.norms against float64 numpy, Flax, and differentiation of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from robustmed.ops import norms


@pytest.fixture
def double():
  with jax.enable_x64(True):
    yield


def draw(seed, *shape, dtype=np.float64):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def plain(x, scale, bias, groups, leak):
  shape = x.shape
  grouped = x.reshape(shape[0], -1, groups, shape[-1] // groups)
  mean = grouped.mean((1, 3), keepdims=True)
  variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
  z = ((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(shape)
  z = z * scale.reshape((1,) * (x.ndim - 1) + (-1,)) + bias.reshape((1,) * (x.ndim - 1) + (-1,))
  return z if leak is None else jnp.where(z >= 0, z, leak * z)


@pytest.mark.slow
@pytest.mark.parametrize('leak', [None, 0.01])
@pytest.mark.parametrize(
  ('shape', 'groups'), [((2, 3, 4, 6), 2), ((2, 5, 4), 4), ((3, 8), 1), ((1, 2, 2, 2, 4), 2)]
)
def test_values_and_two_orders_of_gradients(shape, groups, leak, double):
  x, scale, bias = draw(0, *shape), draw(1, shape[-1]), draw(2, shape[-1])
  weights = draw(3, *shape)
  fast = lambda *a: jnp.sum(
    weights * jnp.sin(norms.group_norm(*a, groups=groups, eps=1e-5, leak=leak))
  )
  slow = lambda *a: jnp.sum(weights * jnp.sin(plain(*a, groups, leak)))

  def penalty(function):
    return lambda *a: sum(jnp.sum(g**2) for g in jax.grad(function, (0, 1, 2))(*a))

  def both(function):
    order = lambda f: jax.grad(f, (0, 1, 2))
    return jax.jit(lambda *a: (function(*a), order(function)(*a), order(penalty(function))(*a)))

  results = zip(
    jax.tree.leaves(both(fast)(x, scale, bias)), jax.tree.leaves(both(slow)(x, scale, bias))
  )
  for actual, expected in results:
    np.testing.assert_allclose(actual, expected, atol=1e-9 * (1 + np.abs(expected).max()))


def test_agrees_with_flax_also_far_from_zero():
  x = draw(0, 2, 16, 16, 8, dtype=np.float32) + 1000
  scale, bias = jnp.linspace(0.5, 2, 8), jnp.linspace(-1, 1, 8)
  layer = nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)
  expected = layer.apply({'params': {'scale': scale, 'bias': bias}}, x)
  np.testing.assert_allclose(norms.group_norm(x, scale, bias, groups=4), expected, atol=2e-3)


def test_instance_norm_is_one_group_per_channel():
  x = draw(0, 2, 4, 4, 3, dtype=np.float32)
  y = norms.instance_norm(x, jnp.ones(3), jnp.zeros(3))
  np.testing.assert_allclose(y.mean((1, 2)), np.zeros((2, 3)), atol=1e-5)
  np.testing.assert_allclose(y.std((1, 2)), np.ones((2, 3)), atol=1e-4)


def test_half_precision_keeps_its_type():
  x = draw(0, 2, 4, 4, 4, dtype=np.float32).astype(jnp.bfloat16)
  function = lambda x: norms.group_norm(x, jnp.ones(4), jnp.zeros(4), groups=2, leak=0.1)
  assert function(x).dtype == jnp.bfloat16
  assert jax.grad(lambda x: function(x).sum())(x).dtype == jnp.bfloat16


def test_norms_per_example():
  x = jnp.asarray([[[3.0, -4.0]], [[0.0, 0.0]]])
  np.testing.assert_array_equal(norms.l2(x), [5, 0])
  np.testing.assert_array_equal(norms.linf(x), [4, 0])
  gradient = jax.grad(lambda x: norms.l2(x).sum())(x)
  np.testing.assert_allclose(gradient, [[[0.6, -0.8]], [[0.0, 0.0]]], rtol=1e-6)


@pytest.mark.parametrize('leak', [None, 0.1])
def test_one_example_alone_is_as_in_a_batch(leak):
  """One plane is summed in another way than the planes of a batch."""
  x = jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, (2, 9, 8, 6)).astype(np.float32))
  scale, bias = jnp.linspace(0.5, 2.0, 6), jnp.linspace(-1.0, 1.0, 6)

  def value(x, scale, bias):
    y = norms.group_norm(x, scale, bias, groups=3, leak=leak)
    return jnp.sum(jnp.sin(y)), y

  both = jax.grad(value, (0, 1, 2), has_aux=True)(x, scale, bias)
  ones = [jax.grad(value, (0, 1, 2), has_aux=True)(x[i : i + 1], scale, bias) for i in range(2)]
  for i, ((by_x, _, _), y) in enumerate(ones):
    np.testing.assert_allclose(y[0], both[1][i], atol=2e-6)
    np.testing.assert_allclose(by_x[0], both[0][0][i], atol=2e-6)
  for place in (1, 2):
    found = ones[0][0][place] + ones[1][0][place]
    np.testing.assert_allclose(found, both[0][place], rtol=1e-5, atol=1e-5)

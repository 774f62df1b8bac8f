"""Folds by hand, and the monitor's price."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks
from robustmed.attacks import monitor_reductions

SEEN = np.asarray([[1, 5, -3], [4, 2, -2], [0, 9, -7]], np.float32)


@pytest.mark.parametrize(
  ('fold', 'dtype', 'want'),
  [
    ('last', jnp.float32, SEEN[-1]),
    ('max', jnp.float32, [4, 9, -2]),
    ('max', jnp.int32, [4, 9, -2]),
    ('max', jnp.bool_, [True, True, True]),
    ('any', jnp.float32, [True, True, True]),
    ('trace', jnp.float32, SEEN),
  ],
)
def test_folds_by_hand(fold, dtype, want):
  seen = jnp.asarray(SEEN).astype(dtype)
  memory = monitor_reductions.init(fold, {'a': jax.ShapeDtypeStruct((3,), dtype)}, 3)
  for index, row in enumerate(seen):
    memory = monitor_reductions.add(fold, memory, {'a': row}, index)
  np.testing.assert_array_equal(memory['a'], want)
  other = {'a': jnp.zeros_like(memory['a'])}
  merged = monitor_reductions.merge(fold, memory, other, jnp.asarray([True, False, False]))['a']
  if fold in ('last', 'trace'):
    np.testing.assert_array_equal(merged[..., 0], 0)
    np.testing.assert_array_equal(merged[..., 1:], np.asarray(want)[..., 1:])
  else:
    np.testing.assert_array_equal(merged, np.maximum(memory['a'], 0))


def test_any_is_false_where_nothing_was_seen():
  memory = monitor_reductions.init('any', jax.ShapeDtypeStruct((2,), jnp.bool_), 2)
  for row in ([False, False], [False, True]):
    memory = monitor_reductions.add('any', memory, jnp.asarray(row), 0)
  np.testing.assert_array_equal(memory, [False, True])


def test_n_steps_score_n_plus_1_points(problems):
  """Dice against iteration: point k is the k-th iterate, the start included."""
  x, objective = problems.images((2, 3)), problems.linear(jnp.ones((1, 3)))
  attack = attacks.pgd(num_steps=4, step_size=0.1, random_start=False, fold='trace')
  result = problems.call(attack, objective, x, 1.0, monitor=lambda image: image[:, 0] - x[:, 0])
  np.testing.assert_allclose(result.monitored, np.arange(5)[:, None] * [[0.1, 0.1]], atol=1e-6)


def _deep(variables, image):
  """Several layers of every kind of operation that networks are made of."""
  h = image
  for kernel in variables:
    h = jax.lax.conv_general_dilated(
      h, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    h = jnp.tanh(h - jnp.mean(h, (1, 2), keepdims=True))
  return h


def _flops(attack, x, variables, *, monitor, shared):
  def run(x, variables):
    predict = lambda image: _deep(variables, image)
    predict = attacks.Shared(predict) if shared else predict
    objective = lambda image: jnp.sum(predict(image) ** 2, (1, 2, 3))
    look = (lambda image: jnp.max(predict(image), (1, 2, 3))) if monitor else None
    result = attack(objective, x, eps=0.1, key=jax.random.key(0), monitor=look)
    return result.x, result.value, result.monitored

  compiled = jax.jit(run).lower(x, variables).compile()
  return compiled.cost_analysis()['flops'], run(x, variables)


@pytest.mark.parametrize('shared', [False, True])
def test_a_monitor_of_the_same_network_costs_no_second_forward_pass(shared):
  rng = np.random.default_rng(0)
  variables = [jnp.asarray(rng.normal(size=(3, 3, 4, 4)), jnp.float32) / 6 for _ in range(3)]
  x = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.float32)
  attack = attacks.pgd(num_steps=3, fold='trace', random_start=False)
  bare, alone = _flops(attack, x, variables, monitor=False, shared=shared)
  watched, seen = _flops(attack, x, variables, monitor=True, shared=shared)
  forward = 2 * 2 * 64 * 9 * 16 * 3  # multiply-adds of three convolutions
  assert watched - bare < 0.1 * forward
  np.testing.assert_allclose(seen[0], alone[0], atol=1e-6)


def test_shared_traces_once_per_point_and_never_remembers_values(problems):
  calls = []

  def network(image):
    calls.append(1)
    return jnp.sum(image, 1) ** 2

  predict = attacks.Shared(network)
  x = problems.images((2, 3))
  attack = attacks.pgd(num_steps=2, random_start=False)
  result = jax.jit(lambda x: attack(predict, x, eps=0.1, key=jax.random.key(0), monitor=predict))(x)
  np.testing.assert_allclose(result.monitored, result.value, rtol=1e-6)
  assert len(calls) <= 4  # loop body, last point, and the monitor's shape
  image = np.ones((1, 2), np.float32)
  first = predict(image)
  image[:] = 3
  assert first[0] == 4 and predict(image)[0] == 36

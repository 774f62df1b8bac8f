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


def _flat(x):
  return jnp.zeros(len(x))


def _unknown(x):
  return jnp.full(len(x), jnp.nan)


@pytest.mark.parametrize('monitor', [_flat, _unknown])
@pytest.mark.parametrize(
  'attack',
  [
    attacks.apgd(num_steps=6, select='monitor'),
    attacks.sea(num_steps=6, select='monitor'),
    attacks.square(num_steps=60, select='monitor'),
    attacks.pgd(num_steps=5, select='monitor', restarts=2),
  ],
  ids=['apgd', 'sea', 'square', 'restarts'],
)
def test_where_the_monitor_tells_no_iterates_apart_the_objective_chooses(problems, attack, monitor):
  """The Dice of an empty slice, a class that is right up to the last step."""
  weight = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 1)), jnp.float32)
  objective, x = problems.linear(weight), jnp.zeros((3, 4, 4, 1))
  result = problems.call(attack, objective, x, 0.1, monitor=monitor)
  np.testing.assert_array_less(0.6 * 0.1 * float(jnp.abs(weight).sum()), objective(result.x))
  np.testing.assert_allclose(result.value, objective(result.x), rtol=1e-5)


def test_of_tied_iterates_the_later_one_where_values_are_those_of_steps(problems):
  """And of the two halves the better one: the monitor sees a step at 0.25."""

  def objective(x, progress):
    return (1 - progress) * jnp.sum(x, axis=problems.axes(x))

  attack = attacks.pgd(num_steps=4, step_size=0.1, random_start=False, select='monitor')
  run = lambda monitor: problems.call(attack, objective, jnp.zeros((2, 3)), 1.0, monitor=monitor).x
  np.testing.assert_allclose(run(_flat), 0.4, atol=1e-6)
  np.testing.assert_allclose(run(_unknown), 0.4, atol=1e-6)
  early = lambda x: jnp.where(x[:, 0] < 0.25, 1.0, 0.0)
  np.testing.assert_allclose(run(early), 0.2, atol=1e-6)


def test_the_monitor_comes_before_the_objective():
  rank = jnp.asarray([1.0, 0.0, 1.0, 1.0, jnp.nan, jnp.nan, 0.0, 1.0])
  best = jnp.asarray([0.0, 1.0, 1.0, 1.0, jnp.nan, 0.0, jnp.nan, 1.0])
  value = jnp.asarray([0.0, 9.0, 2.0, 1.0, 2.0, 9.0, 0.0, jnp.nan])
  found = monitor_reductions.above(rank, best, value=value, best_value=jnp.ones(8))
  assert found.tolist() == [True, False, True, False, True, False, True, False]
  found = monitor_reductions.above(rank, best, best_value=jnp.ones(8))
  assert found.tolist() == [True, False, True, True, True, False, True, True]


@pytest.mark.parametrize('steps', [1, 2])
def test_stages_of_few_steps_end_with_one_in_the_ball(problems, steps):
  x, objective = jnp.zeros((2, 3)), problems.linear(jnp.ones(3))
  result = problems.call(attacks.sea(num_steps=steps), objective, x, 0.1)
  np.testing.assert_allclose(result.x, 0.1, atol=1e-6)
  assert not np.any(result.flags.no_gradient)

"""The loop's guarantees, whatever the solver."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import attacks, errors
from robustmed.attacks import inputs

SHAPE = (3, 4, 4, 2)
BOUNDS = {
  'free': None,
  'box': (0.0, 1.0),
  'channels': (np.asarray([0.0, 0.1], np.float32), np.asarray([0.8, 1.0], np.float32)),
}


def _region():
  region = np.zeros((3, 4, 4, 1), np.float32)
  region[:, 1:3, :2] = 1
  return region


@pytest.mark.parametrize('rule', ['plain', 'adamax'])
@pytest.mark.parametrize(
  ('bounds', 'masked'), [('free', False), ('box', False), ('channels', False), ('box', True)]
)
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_invariants(problems, norm, bounds, masked, rule):
  """Inside ball, box and region; eps = 0 is the identity; the best is never below the start."""
  objective = problems.network(SHAPE[1:])
  x = problems.images(SHAPE)
  eps = jnp.asarray([0.0, 0.1, 0.6])
  attack = attacks.pgd(
    norm=norm,
    num_steps=4,
    relative_step=0.7,
    bounds=BOUNDS[bounds],
    region=_region() if masked else None,
    rule=rule,
    select='best',
    keep='both',
    fold='trace',
  )
  result = problems.call(attack, objective, x, eps, monitor=objective)
  np.testing.assert_array_equal(result.x[0], x[0])
  for image in (result.x, result.last_x, result.best_x):
    delta = np.asarray(image, np.float64) - np.asarray(x)
    length = np.abs(delta).max((1, 2, 3)) if norm == 'linf' else np.sqrt((delta**2).sum((1, 2, 3)))
    assert np.all(length <= np.asarray(eps) * (1 + 1e-5) + 1e-6)
    if BOUNDS[bounds] is not None:
      low, high = (np.broadcast_to(side, x.shape) for side in BOUNDS[bounds])
      assert np.all(image >= np.minimum(low, x))
      assert np.all(image <= np.maximum(high, x))
    if masked:
      outside = np.broadcast_to(_region() == 0, x.shape)
      np.testing.assert_array_equal(np.asarray(image)[outside], np.asarray(x)[outside])
  delta = np.asarray(result.x, np.float64) - np.asarray(x)
  length = np.abs(delta).max((1, 2, 3)) if norm == 'linf' else np.sqrt((delta**2).sum((1, 2, 3)))
  np.testing.assert_allclose(result.distance, length, atol=1e-6)
  trace = result.monitored
  assert trace.shape == (5, 3)
  np.testing.assert_allclose(result.value, trace.max(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(result.value, objective(result.x), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(trace[-1], objective(result.last_x), rtol=1e-5, atol=1e-6)
  assert result.value[2] > trace[0, 2]


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('bounds', [None, (0.0, 1.0)])
def test_linear_model_reaches_the_exact_optimum(problems, norm, bounds):
  weights = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
  x, eps = problems.images(SHAPE), 0.3
  attack = attacks.pgd(norm=norm, num_steps=60, relative_step=0.2, bounds=bounds)
  result = problems.call(attack, problems.linear(weights), x, eps)
  w, start = np.asarray(weights, np.float64), np.asarray(x, np.float64)
  if norm == 'linf':
    best = start + eps * np.sign(w)
    best = best if bounds is None else np.clip(best, 0, 1)
    np.testing.assert_allclose(result.x, best, atol=1e-6)
  elif bounds is None:
    best = start + eps * w / np.sqrt((w**2).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(result.x, best, atol=1e-4)
  else:
    gain = ((np.asarray(result.x) - start) * w).sum((1, 2, 3))
    assert np.all(gain > 0.8 * eps * np.sqrt((w**2).sum((1, 2, 3))))


def test_same_key_same_bits_and_another_key_another_start(problems):
  objective, x = problems.network(SHAPE[1:]), problems.images(SHAPE)
  run = functools.partial(problems.call, attacks.pgd(num_steps=2), objective, x, 0.1)
  one, two, other = run(key=3), run(key=3), run(key=4)
  chex.assert_trees_all_equal(one, two)
  assert np.any(np.asarray(one.x) != np.asarray(other.x))


def test_neighbours_do_not_change_me(problems):
  """Nor does padding: rows are alone, whatever stands beside them."""
  objective, x = problems.network(SHAPE[1:]), problems.images(SHAPE)
  attack = attacks.pgd(num_steps=5, norm='l2', rule=optax.clip_by_global_norm(0.5), restarts=2)
  one = problems.call(attack, objective, x, 0.5)
  two = problems.call(attack, objective, x.at[1:].set(7.0), 0.5)
  np.testing.assert_array_equal(one.x[0], two.x[0])
  np.testing.assert_array_equal(one.value[0], two.value[0])
  assert np.any(np.asarray(one.x[1]) != np.asarray(two.x[1]))


def test_example_keys_belong_to_examples_not_positions(problems):
  objective, x = problems.network(SHAPE[1:]), problems.images(SHAPE)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(3))
  attack = attacks.pgd(num_steps=3)
  straight = problems.call(attack, objective, x, 0.1, key=keys)
  order = jnp.asarray([2, 0, 1])
  turned = problems.call(attack, objective, x[order], 0.1, key=keys[order])
  np.testing.assert_array_equal(straight.x[order], turned.x)
  # One key means fold_in(key, i), and the number of examples does not matter.
  folded = problems.call(attack, objective, x, 0.1, key=jax.random.key(5))
  np.testing.assert_array_equal(straight.x, folded.x)
  start = attacks.noise()
  few = problems.call(start, objective, x[:2], 0.1, key=5)
  np.testing.assert_array_equal(few.x, problems.call(start, objective, x, 0.1, key=5).x[:2])


def test_raw_keys_are_understood(problems):
  x, objective = problems.images(SHAPE), problems.network(SHAPE[1:])
  typed = problems.call(attacks.noise(), objective, x, 0.1, key=jax.random.key(2))
  raw = problems.call(attacks.noise(), objective, x, 0.1, key=jax.random.PRNGKey(2))
  np.testing.assert_array_equal(typed.x, raw.x)


def test_one_trace_for_levels_margins_and_step_sizes(problems):
  objective, x = problems.network(SHAPE[1:]), problems.images(SHAPE)

  @jax.jit
  @chex.assert_max_traces(1)
  def run(x, eps, step, key):
    attack = attacks.pgd(num_steps=3, relative_step=step)
    return attack(objective, x, eps=jnp.broadcast_to(eps, (3,)), key=key).value

  values = [run(x, eps, 0.25, jax.random.key(0)) for eps in (0.0, 0.01, 0.03, 0.05, 0.1, 0.2)]
  run(x, 0.2, 0.5, jax.random.key(1))
  assert np.all(np.diff(np.stack(values), axis=0) > 0)


def test_scalar_eps_equals_the_same_eps_for_each(problems):
  objective, x = problems.network(SHAPE[1:]), problems.images(SHAPE)
  attack = attacks.pgd(num_steps=3, norm='l2')
  one = problems.call(attack, objective, x, 0.4)
  each = problems.call(attack, objective, x, jnp.full(3, 0.4))
  chex.assert_trees_all_equal(one, each)


def test_2d_is_3d_with_depth_one(problems):
  flat, deep = (2, 4, 3, 2), (2, 1, 4, 3, 2)
  x, objective = problems.images(flat), problems.network(flat[1:])
  for name, norm in (('pgd', 'l2'), ('apgd', 'linf')):
    attack = attacks.make(name, norm=norm, num_steps=4, bounds=(0.0, 1.0))
    two = problems.call(attack, objective, x, 0.2)
    three = problems.call(attack, objective, x.reshape(deep), 0.2)
    np.testing.assert_allclose(three.x.reshape(flat), two.x, atol=1e-6)


def test_any_array_is_an_x(problems):
  for shape in ((3, 5), (3,), (2, 2, 2, 2, 2, 2)):
    x = problems.images(shape)
    goal = x + 0.05
    result = problems.call(attacks.pgd(num_steps=30), problems.bowl(goal), x, 0.2)
    np.testing.assert_allclose(result.x, goal, atol=0.02)


def test_start_radius_is_separate_from_eps(problems):
  x, objective = problems.images(SHAPE), problems.network(SHAPE[1:])
  attack = attacks.pgd(norm='l2', num_steps=0, random_start=False)
  assert np.all(problems.call(attack, objective, x, 0.5).distance == 0)
  radius = jnp.asarray([0.0, 0.2, 9.0])
  result = problems.call(attack, objective, x, 0.5, start_radius=radius)
  np.testing.assert_allclose(result.distance, [0.0, 0.2, 0.5], rtol=1e-5)


def test_restarts_keep_the_best_run_of_each_example(problems):
  weights = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  x, objective = problems.images(SHAPE), problems.linear(weights)
  noise = {count: attacks.noise(restarts=count, fold='max') for count in (1, 2, 6)}
  values = {
    count: problems.call(attack, objective, x, 0.3, monitor=objective)
    for count, attack in noise.items()
  }
  # The first run is the run without restarts, so more restarts are never worse.
  assert np.all(values[2].value >= values[1].value)
  assert np.all(values[6].value >= values[2].value)
  assert np.any(values[6].value > values[1].value)
  for count in noise:
    np.testing.assert_allclose(values[count].value, objective(values[count].x), rtol=1e-5)
    np.testing.assert_allclose(values[count].monitored, values[count].value, rtol=1e-5)
  # By hand: run r > 0 of example i draws from fold_in(fold_in(key, i), r).
  keys = inputs.example_keys(jax.random.key(0), 3)
  draws = []
  for restart in range(6):
    fresh = jax.vmap(jax.random.fold_in, (0, None))(keys, restart) if restart else keys
    draws.append(objective(attacks.Threat().start(fresh, x, 0.3)))
  np.testing.assert_allclose(values[6].value, np.max(draws, axis=0), rtol=1e-5)


@pytest.mark.parametrize('fold', ['last', 'max', 'any', 'trace'])
def test_restarted_monitors_and_both_iterates(problems, fold):
  x, objective = problems.images(SHAPE), problems.network(SHAPE[1:])
  attack = attacks.pgd(num_steps=3, relative_step=2.0, restarts=3, fold=fold, keep='both')
  look = lambda image: {'high': objective(image) > 0, 'mean': jnp.mean(image, (1, 2, 3))}
  result = problems.call(attack, objective, x, 0.2, monitor=look)
  lead = (4, 3) if fold == 'trace' else (3,)
  assert result.monitored['high'].shape == result.monitored['mean'].shape == lead
  last = result.monitored['mean'][-1] if fold == 'trace' else result.monitored['mean']
  if fold in ('last', 'trace'):
    np.testing.assert_allclose(last, np.mean(result.x, (1, 2, 3)), rtol=1e-6)
  np.testing.assert_array_equal(result.last_x, result.x)
  assert np.all(objective(result.best_x) >= result.value - 1e-6)


def test_without_scoring_the_last_point(problems):
  x, objective = problems.images(SHAPE), problems.network(SHAPE[1:])
  settings = {'num_steps': 3, 'fold': 'trace', 'keep': 'both'}
  full = problems.call(attacks.pgd(**settings), objective, x, 0.1, monitor=objective)
  short = attacks.pgd(**settings, score_last=False)
  less = problems.call(short, objective, x, 0.1, monitor=objective)
  np.testing.assert_array_equal(full.x, less.x)
  np.testing.assert_array_equal(full.monitored[:-1], less.monitored)
  np.testing.assert_array_equal(less.value, less.monitored[-1])
  np.testing.assert_allclose(objective(less.best_x), less.monitored.max(0), rtol=1e-5)
  assert short.num_forwards == 0
  assert short.num_gradients == 3


def test_minimise_goes_down_and_reports_the_objective(problems):
  x = problems.images(SHAPE)
  up = lambda image: -problems.bowl(x + 0.05)(image) + 2.0
  attack = attacks.pgd(num_steps=40, minimise=True, select='best', random_start=False)
  result = problems.call(attack, up, x, 0.2)
  np.testing.assert_allclose(result.value, 2.0, atol=0.02)
  assert np.all(result.value <= up(x))


def test_half_precision_keeps_its_dtype_and_is_attacked_in_float32(problems):
  x = problems.images(SHAPE).astype(jnp.bfloat16)
  seen = []
  weights = jnp.ones(SHAPE[1:])

  def objective(image):
    seen.append(image.dtype)
    return problems.linear(weights[None])(image)

  result = problems.call(attacks.pgd(num_steps=10), objective, x, 0.001)
  assert result.x.dtype == jnp.bfloat16
  assert set(seen) == {jnp.dtype('float32')}
  moved = np.asarray(result.x, np.float32) - np.asarray(x, np.float32)
  np.testing.assert_allclose(result.distance, np.abs(moved).max(axis=(1, 2, 3)))


def test_result_is_constant_to_differentiation(problems):
  objective, x = problems.network(SHAPE[1:]), problems.images(SHAPE)
  attack = attacks.pgd(num_steps=2, norm='l2')

  def loss(scale):
    result = attack(lambda image: scale * objective(image), x, eps=0.1, key=jax.random.key(0))
    return scale * jnp.sum(objective(result.x))

  value, grad = jax.value_and_grad(loss)(jnp.float32(2.0))
  np.testing.assert_allclose(grad, value / 2.0, rtol=1e-5)


def test_a_nan_example_harms_only_itself(problems):
  x = problems.images(SHAPE)
  objective = lambda image: (
    jnp.where(jnp.arange(3) == 1, jnp.nan, 1.0) * problems.linear(jnp.ones((1, *SHAPE[1:])))(image)
  )
  result = problems.call(attacks.pgd(num_steps=3, restarts=2, select='best'), objective, x, 0.1)
  assert np.all(np.isfinite(result.x[jnp.asarray([0, 2])]))
  assert np.all(np.isfinite(result.value[jnp.asarray([0, 2])]))


def test_runs_under_vmap_and_pmap(problems):
  objective = problems.network(SHAPE[1:])
  x = problems.images((2, *SHAPE))
  attack = attacks.pgd(num_steps=2, relative_step=0.5)
  keys = jax.random.split(jax.random.key(0), (2, 3))
  run = lambda x, key: attack(objective, x, eps=0.1, key=key).x
  each = jnp.stack([jax.jit(run)(x[i], keys[i]) for i in range(2)])
  np.testing.assert_allclose(jax.jit(jax.vmap(run))(x, keys), each, atol=1e-6)
  np.testing.assert_array_equal(jax.pmap(run)(x, keys), each)


@pytest.mark.parametrize(
  ('wrong', 'says'),
  [
    ({'objective': lambda x: jnp.sum(x)}, r'shape \(3,\) .*returned float32 of shape \(\)'),
    ({'objective': lambda x: x}, r'but returned float32 of shape \(3, 4, 4, 2\)'),
    ({'objective': lambda x: jnp.sum(x, (1, 2, 3)) > 0}, 'floating value .* returned bool of'),
    ({'objective': lambda x: (jnp.sum(x, (1, 2, 3)), x)}, r'a tuple of \[0\] float32 of shape \(3'),
    ({'objective': lambda x: None}, 'returned None'),
    ({'x': jnp.zeros(SHAPE, jnp.uint8)}, 'uint8'),
    ({'x': jnp.float32(1.0)}, r'shape \[b, ...\]'),
    ({'eps': jnp.zeros(2)}, r'eps must be a number or have shape \(3,\)'),
    ({'eps': jnp.zeros((3, 1))}, r'but is float32 of shape \(3, 1\)'),
    ({'eps': '8/255'}, "but is str '8/255'"),
    ({'start_radius': jnp.zeros(4)}, 'start_radius'),
    ({'key': jax.random.split(jax.random.key(0), 2)}, '3 keys'),
    ({'key': 3}, 'jax.random.key'),
    ({'monitor': lambda x: {'mean': jnp.mean(x)}}, r"axis is 3, but .*\['mean'\] float32 of"),
    ({'monitor': lambda x: 'no'}, "leading axis is 3, but returned str 'no'"),
  ],
)
def test_mistakes_at_call(problems, wrong, says):
  given = {
    'objective': problems.network(SHAPE[1:]),
    'x': problems.images(SHAPE),
    'eps': 0.1,
    'key': jax.random.key(0),
  }
  given |= wrong
  with pytest.raises(errors.UserError, match=says):
    attacks.pgd(num_steps=1)(given.pop('objective'), given.pop('x'), **given)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_the_distance_is_that_of_the_image_that_is_returned(problems, norm, dtype):
  x = problems.images(SHAPE).astype(dtype)
  attack = attacks.pgd(norm=norm, num_steps=2, keep='both')
  objective = lambda image: jnp.sum(image, axis=(1, 2, 3))
  run = jax.jit(lambda x, eps: attack(objective, x, eps=eps, key=jax.random.key(1)))
  result = run(x, jnp.float32(0.1))
  moved = np.asarray(result.x, np.float64) - np.asarray(x, np.float64)
  flat = np.abs(moved).reshape(len(moved), -1)
  true = flat.max(axis=1) if norm == 'linf' else np.sqrt((flat**2).sum(axis=1))
  np.testing.assert_allclose(result.distance, true, rtol=1e-5)
  assert (np.abs(true - 0.1) > 1e-5).any()  # rounding shows, so the test can fail
  np.testing.assert_array_equal(result.x, result.last_x)


def test_the_iterate_that_the_monitor_likes_best_is_selected(problems):
  """Objective and monitor pull apart: the monitor wants x near 0.05 above the start."""
  x = problems.images(SHAPE)
  monitor = problems.bowl(x + 0.05)
  attack = attacks.pgd(
    num_steps=8, step_size=0.02, random_start=False, select='monitor', keep='both', fold='trace'
  )
  result = problems.call(attack, problems.linear(jnp.ones(SHAPE)), x, 0.5, monitor=monitor)
  # of 0, 0.02, ..., 0.16 the nearest to 0.05 are 0.04 and 0.06; of equals the objective chooses
  best = np.argmax(np.asarray(result.monitored), axis=0)
  np.testing.assert_array_less(np.abs(best - 2.5), 0.6)
  np.testing.assert_allclose(result.x - x, np.broadcast_to(0.02 * best[0], SHAPE), atol=1e-5)
  np.testing.assert_allclose(result.value, jnp.sum(result.x, (1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(result.last_x - x, 0.16, atol=1e-5)
  np.testing.assert_array_equal(result.x, result.best_x)


def test_restarts_keep_the_run_that_the_monitor_likes_best(problems):
  x, objective = problems.images(SHAPE), problems.network(SHAPE[1:])
  monitor = problems.network(SHAPE[1:], seed=5)
  run = lambda restarts: problems.call(
    attacks.pgd(num_steps=2, select='monitor', restarts=restarts),
    objective,
    x,
    0.3,
    monitor=monitor,
  )
  one, many = run(1), run(6)
  assert np.all(monitor(many.x) >= monitor(one.x) - 1e-6)
  assert np.any(monitor(many.x) > monitor(one.x) + 1e-3)
  np.testing.assert_allclose(many.value, objective(many.x), rtol=1e-4, atol=1e-5)


def test_selection_by_a_monitor_needs_one_value_per_example(problems):
  x, objective = problems.images(SHAPE), problems.network(SHAPE[1:])
  attack = attacks.pgd(num_steps=1, select='monitor')
  with pytest.raises(errors.UserError, match="select='monitor' needs a monitor"):
    problems.call(attack, objective, x, 0.1)
  with pytest.raises(errors.UserError, match='one floating value per example'):
    problems.call(attack, objective, x, 0.1, monitor=lambda x: x)


def test_an_objective_may_depend_on_the_progress(problems):
  """Up in the first half of four steps, down in the second."""
  x = jnp.zeros(SHAPE)

  def objective(x, progress):
    return jnp.where(progress < 0.5, 1.0, -1.0) * jnp.sum(x, axis=problems.axes(x))

  attack = attacks.pgd(num_steps=4, step_size=0.1, random_start=False, fold='trace')
  result = problems.call(attack, objective, x, 1.0, monitor=lambda x: x[:, 0, 0, 0])
  np.testing.assert_allclose(result.monitored[:, 0], [0, 0.1, 0.2, 0.1, 0.0], atol=1e-6)
  with pytest.raises(errors.UserError, match='changes with the steps'):
    problems.call(attacks.pgd(num_steps=4, select='best'), objective, x, 1.0)


def _flagged(problems, objective, eps=0.1, **settings):
  attack = attacks.pgd(num_steps=3, random_start=False, **settings)
  return problems.call(attack, objective, problems.images(SHAPE), jnp.asarray(eps)).flags


def test_flags_say_where_an_attack_could_not_search(problems):
  """One example each: steps as usual, an objective without a gradient, one that is NaN."""
  which = jnp.arange(3)

  def objective(x):
    value = problems.linear(jnp.ones(SHAPE))(x)
    value = jnp.where(which == 1, jax.lax.stop_gradient(value), value)
    return value * jnp.where(which == 2, jnp.nan, 1.0)

  flags = _flagged(problems, objective)
  assert flags.no_gradient.tolist() == [False, True, True]
  assert flags.not_finite.tolist() == [False, False, True]
  assert flags.not_moved.tolist() == [False, True, True]
  assert flags.wrong_eps.tolist() == [False] * 3
  again = _flagged(problems, objective, restarts=1, select='best')
  assert again.no_gradient.tolist() == [False, True, True]


def test_outside_of_jit_an_attack_warns_of_what_its_flags_mark():
  x = jnp.ones((2, 3))
  deaf = lambda image: jax.lax.stop_gradient(image.sum(1))
  attack = lambda x: attacks.fgsm()(deaf, x, eps=0.1, key=jax.random.key(0)).x
  with pytest.warns(
    RuntimeWarning, match='of 2 .* no gradient in 2, the image stayed as it was in 2'
  ) as told:
    attack(x)
  assert told[0].filename == __file__
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    jax.jit(attack)(x)
    attacks.fgsm()(lambda image: image.sum(1), x, eps=0.1, key=jax.random.key(0))


def test_the_best_of_no_value_is_unknown(problems):
  x = problems.images(SHAPE)
  nowhere = lambda x: jnp.full(3, jnp.nan)
  for restarts in (1, 2):
    attack = attacks.pgd(num_steps=2, select='best', restarts=restarts)
    result = problems.call(attack, nowhere, x, 0.1)
    assert np.isnan(result.value).all()
    assert result.flags.not_finite.all()


def test_a_traced_eps_that_is_wrong_changes_nothing_and_is_flagged(problems):
  objective, x = problems.network(SHAPE[1:]), problems.images(SHAPE)
  result = problems.call(attacks.pgd(num_steps=2), objective, x, jnp.asarray([-0.1, jnp.nan, 0.1]))
  np.testing.assert_array_equal(result.x[:2], x[:2])
  assert result.flags.wrong_eps.tolist() == [True, True, False]
  assert result.flags.not_moved.tolist() == [False] * 3
  assert np.isfinite(result.x).all()


@pytest.mark.parametrize(
  ('make', 'call', 'message'),
  [
    ({'num_steps': 2.0}, {}, 'num_steps must be a whole number'),
    ({'restarts': 1.5}, {}, 'restarts must be a whole number'),
    ({'step_size': float('nan')}, {}, 'step_size must be a number of 0 or more'),
    ({'relative_step': -0.5}, {}, 'relative_step must be a number of 0 or more'),
    ({'bounds': (float('nan'), 1.0)}, {}, 'low < high'),
    ({}, {'eps': 1 + 2j}, 'eps must be a number'),
    ({}, {'key': None}, 'needs a key'),
    ({}, {'start_radius': -1.0}, 'start_radius must be 0 or more'),
    ({}, {'x': jnp.zeros((3, 0, 4, 2))}, 'images with pixels'),
  ],
)
def test_settings_that_mean_nothing_are_refused(problems, make, call, message):
  given = {'x': problems.images(SHAPE), 'eps': 0.1, 'key': jax.random.key(0), **call}
  x = given.pop('x')
  with pytest.raises(errors.UserError, match=message):
    attacks.pgd(**{'num_steps': 2, **make})(problems.network(SHAPE[1:]), x, **given)

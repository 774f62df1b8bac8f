import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import errors, types
from robustmed.defenses import standard, weighted
from robustmed.models import layers
from robustmed.process import parallel
from robustmed.training import optimisers, step
from robustmed.training import state as train_state
from support import toys

SGD = {'main': optax.sgd(0.1)}


def _state(task, defense, rules=None, **kwargs):
  rules = step.for_phases(defense, rules or SGD)
  return train_state.create(
    task, defense, rules, key=jax.random.key(0), num_examples=8, average=False, **kwargs
  )


def _step(defense, rules=None, **kwargs):
  return step.make(defense, optimisers=rules or SGD, num_steps=10, **kwargs)


def test_one_step_is_plain_gradient_descent_on_the_mean_loss():
  task = toys.task()
  defense = standard.make(task)
  state, batch = _state(task, defense), toys.batch(6)
  new, scalars = _step(defense)(state, batch, jax.random.key(1))

  def loss(params):
    return jnp.mean(task.losses(task.predict({'params': params}, batch['image']), batch)['bce'])

  value, gradient = jax.value_and_grad(loss)(state.params)
  want = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, want)
  assert float(scalars['main/loss']) == pytest.approx(float(value), rel=1e-6)
  assert float(scalars['main/bce']) == pytest.approx(float(value), rel=1e-6)
  assert float(scalars['main/gradient_norm']) == pytest.approx(
    float(optax.tree.norm(gradient)), rel=1e-5
  )
  assert int(new.step) == 1 and int(new.bad_step) == -1


def test_decay_of_some_parameters_leaves_the_others_alone():
  task, batch = toys.task(), toys.batch(4)
  defense = standard.make(task)
  rule = {'name': 'sgd', 'lr': 0.1, 'momentum': 0.0, 'weight_decay': 0.5, 'decay_of': 'kernel$'}
  found = {}
  for name, fields in (('some', rule), ('none', {**rule, 'weight_decay': 0.0})):
    rules = {'main': optimisers.make(fields, num_steps=10)}
    state = _state(task, defense, rules)
    found[name] = _step(defense, rules)(state, batch, jax.random.key(1))[0].params

  def check(path, start, some, none):
    decays = path[-1].key == 'kernel'
    np.testing.assert_allclose(some, none - decays * 0.05 * start, atol=1e-6)
    return decays

  seen = jax.tree_util.tree_map_with_path(check, state.params, found['some'], found['none'])
  assert set(jax.tree.leaves(seen)) == {True, False}
  rules = {'main': optimisers.make({**rule, 'decay_of': 'weight'}, num_steps=10)}
  with pytest.raises(ValueError, match='no parameter path'):
    _step(defense, rules)(_state(task, defense, rules), batch, jax.random.key(1))


def test_padding_is_ignored_whatever_finite_values_it_holds():
  task = toys.task()
  defense = standard.make(task)
  batch = toys.batch(4)
  padded = parallel.pad(batch, 6)
  dirty = {**padded, 'image': np.array(padded['image'])}
  dirty['image'][4:] = 7.0
  results = [
    _step(defense)(_state(task, defense), one, jax.random.key(1))[0].params
    for one in (batch, padded, dirty)
  ]
  for other in results[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), results[0], other)


def test_a_non_finite_loss_freezes_the_state_and_names_the_step():
  task = toys.task()
  defense = standard.make(task)
  run, key = _step(defense), jax.random.key(1)
  state, _ = run(_state(task, defense), toys.batch(6), key)
  bad = toys.batch(6)
  bad['image'][0] = np.inf
  after, _ = run(state, bad, key)
  assert int(after.bad_step) == 1 and int(after.step) == 2
  toys.assert_equal_trees(after.params, state.params)
  later, _ = run(after, toys.batch(6), key)
  assert int(later.bad_step) == 1
  toys.assert_equal_trees(later.params, state.params)


def _phase(task, name, optimiser, subset, sign=1.0):
  inner = weighted.phase(task, [weighted.CLEAN], name=name, subset=subset, optimiser=optimiser)

  def loss(params, context):
    values, aux = inner.loss(params, context)
    return sign * values, aux

  return inner._replace(loss=loss)


def test_phases_update_their_own_parameters_in_turn():
  task = toys.task()
  defense = types.Defense(
    phases=(
      _phase(task, 'body', 'slow', '^hidden/'),
      _phase(task, 'critic', 'fast', '^out/', sign=-1.0)._replace(repeat=2),
    )
  )
  rules = {'slow': optax.adam(0.1), 'fast': optax.sgd(0.5)}
  state, batch = _state(task, defense, rules), toys.batch(6)
  new, scalars = _step(defense, rules)(state, batch, jax.random.key(1))
  loss = lambda params: jnp.mean(
    task.losses(task.predict({'params': params}, batch['image']), batch)['bce']
  )
  hidden = jax.grad(loss)(state.params)['hidden']
  updates, _ = optax.adam(0.1).update(hidden, optax.adam(0.1).init(state.params['hidden']))
  params = {**state.params, 'hidden': optax.apply_updates(state.params['hidden'], updates)}
  for _ in range(2):  # the critic climbs, twice, and sees the body's update
    gradient = jax.grad(loss)(params)['out']
    params = {**params, 'out': jax.tree.map(lambda p, g: p + 0.5 * g, params['out'], gradient)}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), new.params, params)
  assert set(scalars) >= {'body/loss', 'critic/loss'}


def test_phases_may_share_an_optimiser_only_with_the_same_subset():
  task = toys.task()
  both = types.Defense(phases=(_phase(task, 'a', 'main', None), _phase(task, 'b', 'main', '^out/')))
  with pytest.raises(ValueError, match='must share their subset'):
    _step(both)
  nothing = types.Defense(phases=(_phase(task, 'a', 'main', '^typo/'),))
  with pytest.raises(ValueError, match='no parameter path matches'):
    _state(task, nothing)


def test_memory_is_updated_once_from_all_devices():
  task = toys.task()
  plain = standard.make(task).phases[0]

  def loss(params, context):
    values, aux = plain.loss(params, context)
    return values, {**aux, 'seen': context.batch['image'][:, 0, 0, 0]}

  defense = types.Defense(
    phases=(plain._replace(loss=loss),),
    init=lambda count: jnp.zeros(count),
    update=lambda memory, aux, batch: memory.at[batch['index']].add(aux['main']['seen']),
  )
  batch = toys.batch(6)
  new, _ = _step(defense)(_state(task, defense), batch, jax.random.key(1))
  np.testing.assert_allclose(new.memory[:6], batch['image'][:, 0, 0, 0], rtol=1e-6)
  np.testing.assert_array_equal(new.memory[6:], 0)


def test_augmentation_follows_the_draw_not_the_place():
  task = toys.task()
  defense = standard.make(task)

  def augment(keys, batch):
    noise = jax.vmap(lambda key: jax.random.normal(key, batch['image'].shape[1:]))(keys)
    return {**batch, 'image': batch['image'] + noise}

  batch = toys.batch(6)
  order = np.array([3, 1, 5, 0, 4, 2])
  shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
  run = _step(defense, augment=augment)
  first, _ = run(_state(task, defense), batch, jax.random.key(1))
  second, _ = run(_state(task, defense), shuffled, jax.random.key(1))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first.params, second.params
  )
  plain, _ = _step(defense)(_state(task, defense), batch, jax.random.key(1))
  assert not np.allclose(first.params['hidden']['kernel'], plain.params['hidden']['kernel'])


def test_batch_statistics_are_those_of_the_global_batch():
  task = toys.task(toys.Net(norm=True, axis_name=parallel.AXIS))
  defense = standard.make(task)
  batch = toys.batch(8)
  new, _ = _step(defense)(_state(task, defense), batch, jax.random.key(1))
  alone = toys.task(toys.Net(norm=True))
  state = _state(task, defense)

  def loss(params):
    outputs, _ = alone.forward({'params': params, **state.state}, batch['image'], jax.random.key(0))
    return jnp.mean(alone.losses(outputs, batch)['bce'])

  want = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.grad(loss)(state.params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, want)
  assert not np.allclose(new.state['batch_stats']['BatchNorm_0']['mean'], 0)


class Normed(nn.Module):
  @nn.compact
  def __call__(self, image, *, train=False):
    x = layers.BatchNorm()(nn.Dense(5)(image.reshape(image.shape[0], -1)), train=train)
    return {'logit': nn.Dense(1)(jnp.tanh(x))}


@pytest.mark.parametrize('joined', [False, True])
def test_padding_is_no_part_of_batch_statistics(joined):
  task = toys.task(Normed())
  defense = standard.make(task)
  if joined:  # two versions of the batch in one pass
    mixed = lambda params, context: (context.batch['image'], context.batch['image'] ** 2)
    defense = _of_both(task, mixed)
  batch = toys.batch(5)
  padded = parallel.pad(batch, 8)  # the second device has one example, the rest is padding
  with parallel.on_devices(0, 1):
    want, _ = _step(defense)(_state(task, defense), batch, jax.random.key(1))
  new, _ = _step(defense, padded=True)(_state(task, defense), padded, jax.random.key(1))
  for field in ('params', 'state'):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, getattr(new, field), getattr(want, field))
  assert not np.allclose(new.state['batch_stats']['BatchNorm_0']['mean'], 0)


def _of_both(task, versions):
  def loss(params, context):
    images = jnp.concatenate(versions(params, context))
    outputs, state = task.forward({'params': params, **context.state}, images, context.key)
    both = {'target': jax.tree.map(lambda leaf: jnp.tile(leaf, (2, 1)), context.batch['target'])}
    values = task.losses(outputs, both)['bce'].reshape(2, -1).sum(0)
    return values, {'state': state, 'scalars': {}}

  return types.Defense((types.Phase('main', loss),))


def test_moving_average_is_what_is_evaluated():
  task = toys.task()
  defense = standard.make(task)
  rules = step.for_phases(defense, SGD)
  state = train_state.create(
    task, defense, rules, key=jax.random.key(0), num_examples=8, average=True
  )
  new, _ = _step(defense, ema=0.75)(state, toys.batch(6), jax.random.key(1))
  want = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, state.params, new.params)
  got = train_state.variables(new)['params']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)


def test_the_moving_average_settles_with_a_ramp():
  task = toys.task()
  defense = standard.make(task)
  rules = step.for_phases(defense, SGD)
  state = train_state.create(
    task, defense, rules, key=jax.random.key(0), num_examples=8, average=True
  )
  new, _ = _step(defense, ema=0.75, ema_ramp=4)(state, toys.batch(6), jax.random.key(1))
  keep = 0.75 * (1 - np.exp(-1 / 4))
  want = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, state.params, new.params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), new.average['params'], want
  )


def test_the_moving_average_has_the_statistics_of_norm_layers_too():
  task = toys.task(toys.Net(norm=True, axis_name=parallel.AXIS))
  defense = standard.make(task)
  rules = step.for_phases(defense, SGD)
  state = train_state.create(
    task, defense, rules, key=jax.random.key(0), num_examples=8, average=True
  )
  new, _ = _step(defense, ema=0.75)(state, toys.batch(6), jax.random.key(1))
  mean = lambda variables: np.asarray(variables['batch_stats']['BatchNorm_0']['mean'])
  assert np.abs(mean(new.state)).max() > 0 and not mean(state.state).any()
  np.testing.assert_allclose(mean(train_state.variables(new)), 0.25 * mean(new.state), rtol=1e-5)


def test_standard_training_on_an_objective_of_the_task():
  task = toys.task()
  defense = standard.make(task, objective='bce')
  new, scalars = _step(defense)(_state(task, defense), toys.batch(6), jax.random.key(1))
  plain = standard.make(task)
  same, _ = _step(plain)(_state(task, plain), toys.batch(6), jax.random.key(1))
  toys.assert_equal_trees(new.params, same.params)
  assert 'main/bce' in scalars
  with pytest.raises(errors.UserError, match='unknown objective'):
    standard.make(task, objective='luck')


def test_updates_of_a_step_are_counted_by_optimiser():
  phases = [types.Phase('critic', None, optimiser='critic', repeat=5)]
  phases += [types.Phase('first', None), types.Phase('second', None)]
  assert step.updates_per_step(types.Defense(tuple(phases))) == {'critic': 5, 'main': 2}

"""What batch statistics training attacks see: by hand on a network with one norm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import attacks, errors, types
from robustmed.defenses import adversarial, amat, batch_statistics
from robustmed.models import layers
from robustmed.process import shared_statistics
from robustmed.training import state as train_state
from robustmed.training import step
from support import toys

POINTS = 3


class Net(nn.Module):
  @nn.compact
  def __call__(self, image, *, train=False):
    x = nn.Dense(5, name='hidden')(image.reshape(image.shape[0], -1))
    x = layers.BatchNorm(momentum=0.25, name='norm')(x, train=train)
    return {'logit': nn.Dense(1, name='out')(jnp.tanh(x))}


def attack(**more):
  return attacks.pgd(num_steps=POINTS - 1, relative_step=0.5, score_last=True, **more)


def met(mode, batch, **more):
  task = toys.task(Net())
  variables = task.init(jax.random.key(0))
  keys = jax.vmap(jax.random.key)(batch['draw'])
  context = types.LossContext({}, (), batch, keys, jax.random.key(1), jnp.float32(0))
  network = batch_statistics.AttackedNetwork(task, variables, context, mode)
  objective = lambda image: task.objectives['bce'](network.predict(image), batch)
  result, changed = network.run_attack(
    attack(**more), objective, batch['image'], eps=0.2, key=keys, monitor=lambda image: image
  )
  return task, variables, result, changed


def test_running_statistics_keep_examples_apart_and_are_left_alone():
  batch = toys.batch(4)
  *_, whole, changed = met('running', batch)
  *_, alone, _ = met('running', jax.tree.map(lambda leaf: leaf[1:], batch))
  assert changed == {}
  np.testing.assert_allclose(whole.x[1:], alone.x, atol=1e-6)


def test_batch_statistics_are_seen_and_forgotten():
  batch = toys.batch(4)
  task, variables, result, changed = met('batch', batch)
  assert changed == {}
  outputs, _ = task.forward(variables, result.x, jax.random.key(1))
  np.testing.assert_allclose(task.objectives['bce'](outputs, batch), result.value, rtol=1e-5)
  *_, running, _ = met('running', batch)
  assert not np.allclose(result.value, running.value, rtol=1e-3)


def test_updates_follow_every_point_of_the_attack():
  batch = toys.batch(4)
  task, variables, result, changed = met('update', batch)
  *_, traced, _ = met('batch', batch, fold='trace')
  np.testing.assert_allclose(result.x, traced.x, atol=1e-6)
  np.testing.assert_allclose(result.monitored, traced.monitored[-1], atol=1e-6)
  want = {name: value for name, value in variables.items() if name != 'params'}
  assert traced.monitored.shape[0] == POINTS
  for image in traced.monitored:
    _, want = task.forward({'params': variables['params'], **want}, image, jax.random.key(1))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), changed['state'], want)


@pytest.mark.slow
@pytest.mark.parametrize('make', ['adversarial', 'amat'])
def test_a_train_step_goes_on_from_the_updated_statistics(make):
  task, batch = toys.task(Net()), toys.batch(4)
  found = {}
  for mode in ('running', 'update'):
    more = {'attack': attack(), 'attack_bn': mode}
    if make == 'amat':
      defense = amat.make(task, step=0.1, thresholds=(0.5,), when='immediate', **more)
    else:
      defense = adversarial.make(task, objectives={'bce': 0.5}, eps=0.1, **more)
    rules = {'main': optax.sgd(0.1)}
    state = train_state.create(
      task,
      defense,
      step.for_phases(defense, rules),
      key=jax.random.key(0),
      num_examples=4,
      average=False,
    )
    run = step.make(defense, optimisers=rules, num_steps=2)
    found[mode], scalars = run(state, batch, jax.random.key(1))
    assert np.isfinite(scalars['main/loss']) and 'main/state' not in scalars
  # clean and attacked pass move it by 1 - 0.75^2, the points of the attack by more
  at = lambda mode: np.asarray(found[mode].state['batch_stats']['norm']['mean'])
  assert np.abs(at('update')).sum() > 1.3 * np.abs(at('running')).sum()
  assert shared_statistics.devices() == 1


def test_unknown_modes_are_refused():
  with pytest.raises(errors.UserError, match=r"unknown attack_bn 'frozen'.*running"):
    adversarial.make(
      toys.task(), attack=attack(), objectives={'bce': 0.5}, eps=0.1, attack_bn='frozen'
    )
  with pytest.raises(errors.UserError, match="'update' needs an attack"):
    met('update', toys.batch(4), fold='max')

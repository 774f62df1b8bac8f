"""Two updates per batch: on the disturbed images first, then on the clean ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import attacks
from robustmed.defenses import adversarial, noise
from robustmed.training import state as train_state
from robustmed.training import step
from support import toys

RULES = {'main': optax.sgd(0.5)}


def _one_step(defense, task, batch):
  state = train_state.create(
    task,
    defense,
    step.for_phases(defense, RULES),
    key=jax.random.key(0),
    num_examples=8,
    average=False,
  )
  new, scalars = step.make(defense, optimisers=RULES, num_steps=1)(state, batch, jax.random.key(1))
  return state.params, new.params, scalars


def _descend(task, params, image, batch, rate):
  loss = lambda p: jnp.mean(task.losses(task.predict({'params': p}, image), batch)['bce'])
  gradient = jax.grad(loss)(params)
  return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


@pytest.mark.slow
@pytest.mark.parametrize('in_turn', [True, False])
def test_adversarial_updates_by_hand(in_turn):
  task, batch, eps = toys.task(), toys.batch(6), 0.1
  defense = adversarial.make(
    task,
    attack=attacks.fgsm(bounds=(0.0, 1.0)),
    objectives={'bce': 0.4},
    eps=eps,
    clean_weight=0.6,
    in_turn=in_turn,
  )
  start, end, scalars = _one_step(defense, task, batch)
  total = lambda x: jnp.sum(task.losses(task.predict({'params': start}, x), batch)['bce'])
  found = np.clip(batch['image'] + eps * np.sign(jax.grad(total)(batch['image'])), 0, 1)
  first = _descend(task, start, found, batch, 0.5 * 0.4)
  if in_turn:
    want = _descend(task, first, batch['image'], batch, 0.5 * 0.6)
    assert [phase.name for phase in defense.phases] == ['bce', 'main']
  else:
    clean = _descend(task, start, batch['image'], batch, 0.5 * 0.6)
    want = jax.tree.map(lambda a, b, s: a + b - s, first, clean, start)
    assert [phase.name for phase in defense.phases] == ['main']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, want)
  assert float(scalars['main/loss']) > 0 and ('bce/loss' in scalars) == in_turn


def test_noise_in_turn_is_near_the_joint_update_and_not_the_same():
  task, batch = toys.task(), toys.batch(6)
  make = lambda **more: noise.make(task, eps=0.01, bounds=(0.0, 1.0), **more)
  _, joint, _ = _one_step(make(), task, batch)
  start, turned, _ = _one_step(make(in_turn=True), task, batch)
  assert [phase.name for phase in make(in_turn=True).phases] == ['noisy', 'main']
  flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
  moved, apart = flat(joint) - flat(start), flat(turned) - flat(joint)
  assert 1e-6 < np.abs(apart).max() < 0.5 * np.abs(moved).max()

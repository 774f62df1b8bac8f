"""Every defense through the same suite: it builds, learns, costs what it says, keeps its word."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import attacks, errors, types
from robustmed.defenses import DEFENSES, adversarial
from robustmed.training import state as train_state
from robustmed.training import step
from support import toys

ATTACK = attacks.pgd(num_steps=3, relative_step=0.5, bounds=(0.0, 1.0))
# One that is sure of itself: the loss cannot fall below the entropy of the teacher's labels.
TEACHER = jax.tree.map(lambda leaf: 8 * leaf, toys.variables())
FIELDS = {
  'distillation': {'temperature': 2.0, 'teacher': TEACHER},
  'standard': {},
  'noise': {'eps': 0.1, 'bounds': (0.0, 1.0)},
  'adversarial': {'attack': ATTACK, 'objectives': {'bce': 0.5}, 'eps': 0.1},
  'amat': {'attack': ATTACK, 'step': 0.02, 'thresholds': (0.6,), 'when': 'immediate'},
}


def _make(name, **more):
  return DEFENSES[name](toys.task(), **{**FIELDS[name], **more})


def _train(defense, *, steps=1, batch=None):
  rules = {'main': optax.adam(0.02)}
  state = train_state.create(
    toys.task(),
    defense,
    step.for_phases(defense, rules),
    key=jax.random.key(0),
    num_examples=8 * steps,
    average=False,
  )
  run = step.make(defense, optimisers=rules, num_steps=steps)
  losses = []
  for number in range(steps):
    state, scalars = run(state, batch or toys.batch(8, start=8 * number), jax.random.key(1))
    losses.append(float(scalars['main/loss']))
  return state, losses


def test_every_defense_is_in_this_suite():
  assert set(FIELDS) == set(DEFENSES)


@pytest.mark.slow
@pytest.mark.parametrize('name', DEFENSES)
def test_the_loss_goes_down(name):
  _, losses = _train(_make(name), steps=200)
  assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.02


@pytest.mark.parametrize('name', DEFENSES)
def test_order_within_the_batch_does_not_matter(name):
  batch, order = toys.batch(8), np.array([5, 0, 7, 2, 1, 6, 3, 4])
  shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
  first, _ = _train(_make(name), batch=batch)
  second, _ = _train(_make(name), batch=shuffled)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
  jax.tree.map(close, first.params, second.params)


@pytest.mark.parametrize('name', DEFENSES)
def test_costs_count_the_passes(name):
  cost = _make(name).cost
  want = {
    'standard': (0, 1),
    'distillation': (0, 1),
    'noise': (0, 2),
    'adversarial': (3, 2),
    'amat': (3, 2),
  }[name]
  assert (cost.gradients, cost.passes) == want


def _matrix_products(jaxpr):
  total = 0
  for eqn in jaxpr.eqns:
    inner = [v for v in jax.tree.leaves(list(eqn.params.values())) if hasattr(v, 'jaxpr')]
    total += sum(_matrix_products(part.jaxpr) for part in inner)
    total += eqn.primitive.name == 'dot_general'
  return total


def test_adaptive_margins_take_no_pass_of_their_own():
  task, batch = toys.task(), toys.batch(8)
  params = task.init(jax.random.key(0))['params']
  found = []
  for name in ('adversarial', 'amat'):
    defense = _make(name)
    context = _context(batch)._replace(memory=defense.init(8))
    loss = lambda params, d=defense, c=context: d.phases[0].loss(params, c)
    found.append(_matrix_products(jax.make_jaxpr(loss)(params).jaxpr))
  # two layers: forward and input gradient in the loop, the last point, the training pass
  assert found == [4 + 2 + 2] * 2


def test_an_attack_without_budget_is_standard_training():
  none, _ = _train(_make('adversarial', eps=0.0))
  plain, _ = _train(_make('standard'))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), none.params, plain.params)


def _context(batch):
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(batch['draw'])
  return types.LossContext({}, (), batch, keys, jax.random.key(4), jnp.float32(0))


def test_noise_is_added_within_eps_or_stands_alone():
  task, batch = toys.task(), toys.batch(8)
  params = task.init(jax.random.key(0))['params']
  value = lambda **more: _make('noise', **more).phases[0].loss(params, _context(batch))[0]
  clean = task.losses(task.predict({'params': params}, batch['image']), batch)['bce']
  np.testing.assert_allclose(value(eps=0.0, bounds=None), clean, rtol=1e-5)
  assert not np.allclose(value(mode='only'), value(mode='add'))
  with pytest.raises(errors.UserError, match='noise mode'):
    _make('noise', mode='twice')


def test_adversarial_losses_are_weighted_and_no_smaller_than_clean():
  task, batch = toys.task(), toys.batch(8)
  params = task.init(jax.random.key(0))['params']
  defense = _make('adversarial')
  context = _context(batch)._replace(memory=defense.init(8))
  values, aux = defense.phases[0].loss(params, context)
  clean, attacked = aux['scalars']['loss/clean'], aux['scalars']['loss/bce']
  np.testing.assert_allclose(values, 0.5 * clean + 0.5 * attacked, rtol=1e-6)
  assert (attacked > clean).all()
  with pytest.raises(errors.UserError, match='must sum to 1'):
    _make('adversarial', clean_weight=0.9)
  with pytest.raises(errors.UserError, match='unknown objective'):
    _make('adversarial', objectives={'dice': 0.5})


def test_the_ramp_climbs_in_stairs():
  at = lambda progress: float(adversarial.budget(0.07, jnp.float32(progress), 100))
  assert at(0.0) == pytest.approx(0.0007) and at(0.995) == pytest.approx(0.07)
  assert at(0.5) == pytest.approx(0.07 * 51 / 100)
  assert float(adversarial.budget(0.07, jnp.float32(0.1), 0)) == pytest.approx(0.07)

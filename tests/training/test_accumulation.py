"""A batch in parts trains as the whole batch does: same gradients, scalars and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import attacks, errors
from robustmed.defenses import DEFENSES
from robustmed.process import console, parallel
from robustmed.training import loop, step
from robustmed.training import state as train_state
from support import toys

pytestmark = pytest.mark.slow

PGD = attacks.pgd(num_steps=3, relative_step=0.5, bounds=(0.0, 1.0))
BALL = attacks.pgd(norm='l2', num_steps=3, relative_step=0.5, bounds=(0.0, 1.0))
TEACHER = jax.tree.map(lambda leaf: 8 * leaf, toys.variables())
DEFENSE_FIELDS = {
  'standard': {},
  'noise': {'eps': 0.1, 'bounds': (0.0, 1.0)},
  'adversarial': {'attack': PGD, 'objectives': {'bce': 0.5}, 'eps': 0.1},
  'amat': {'attack': BALL, 'step': 0.2, 'thresholds': (0.69,), 'when': 'immediate'},
  'distillation': {'temperature': 2.0, 'teacher': TEACHER},
}
COUPLED = ('standard', 'noise', 'adversarial', 'distillation')
CASES = [
  *[(name, {}) for name in DEFENSE_FIELDS],
  *[(name, {'coupled': True}) for name in COUPLED],
  ('adversarial', {'coupled': True, 'in_turn': True}),
]


def _dice(sums):
  return 1 - jnp.mean((2 * sums['both'] + 1e-3) / (sums['either'] + 1e-3))


def _task():
  """The toy task, also with a Dice and a squared mean over the whole batch."""

  def coupled(outputs, batch):
    probability, truth = jax.nn.sigmoid(outputs['logit']), batch['target']['label']
    sums = {'both': probability * truth, 'either': probability + truth}
    square = lambda total: jnp.sum(total['logit'] ** 2) / 100
    return {
      'bce': toys.task().losses(outputs, batch)['bce'],
      'dice': parallel.coupled(_dice, sums, batch['mask']),
      'square': parallel.coupled(square, {'logit': outputs['logit']}, batch['mask']),
    }

  return toys.task()._replace(coupled=coupled)


def _batch(size=12):
  batch = toys.batch(size)
  batch['mask'][-3:] = False  # a padded last part
  return batch


def _trained(defense, parts, *, steps=2):
  rules = {'main': optax.sgd(1.0)}
  state = train_state.create(
    toys.task(),
    defense,
    step.for_phases(defense, rules),
    key=jax.random.key(0),
    num_examples=12,
    average=False,
  )
  run = step.make(defense, optimisers=rules, num_steps=steps, parts=parts)
  for _ in range(steps):
    state, scalars = run(state, _batch(), jax.random.key(1))
  return state, scalars


@pytest.mark.parametrize('name, more', CASES, ids=lambda value: str(value))
def test_parts_train_as_the_whole_does(name, more):
  defense = DEFENSES[name](_task(), **DEFENSE_FIELDS[name], **more)
  whole, scalars = _trained(defense, 1)
  for parts in (2, 3, 6):
    state, same = _trained(defense, parts)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, state.params, whole.params)
    jax.tree.map(close, state.memory, whole.memory)
    jax.tree.map(close, same, scalars)


def test_sums_of_the_parts_alone_would_be_another_gradient():
  defense = DEFENSES['standard'](_task(), coupled=True)
  wrong = defense._replace(
    phases=tuple(
      phase._replace(loss=functools.partial(_alone, phase.loss)) for phase in defense.phases
    )
  )
  found = [_trained(one, 3, steps=1)[0].params for one in (defense, wrong)]
  apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *found)
  assert max(jax.tree.leaves(apart)) > 1e-3


def _alone(loss, params, context):
  with parallel.sums_joined_by(parallel.psum):
    return loss(params, context)


def test_attacks_are_made_once_though_coupled_losses_take_two_passes():
  made = []
  attack = lambda *args, **kwargs: made.append(1) or PGD(*args, **kwargs)
  attack.num_gradients, attack.num_forwards = PGD.num_gradients, PGD.num_forwards
  fields = {**DEFENSE_FIELDS['adversarial'], 'attack': attack}
  defense = DEFENSES['adversarial'](_task(), **fields, coupled=True)
  _trained(defense, 3, steps=1)
  assert len(made) == 1  # traced once, in a loop over the parts


def test_batch_statistics_and_sizes_that_do_not_divide_are_refused(tmp_path):
  task = toys.task(toys.Net(norm=True, axis_name=parallel.AXIS))
  fit = functools.partial(
    loop.fit,
    'detector',
    task=task,
    defense=DEFENSES['standard'](task),
    batches=toys.stream(),
    folder=tmp_path / 'state',
    log=tmp_path / 'log.csv',
    key=jax.random.key(0),
    num_examples=48,
    stopper=console.Stopper(),
  )
  config = {'steps': 1, 'batch_size': 6, 'optimisers': {'main': {'name': 'adam', 'lr': 0.1}}}
  with pytest.raises(errors.UserError, match=r'detector: train\.micro_batch=2 would change the b'):
    fit(config={**config, 'micro_batch': 2})

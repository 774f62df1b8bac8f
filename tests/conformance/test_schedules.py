"""The learning rate of every defense under every schedule: a step's place in the run decides it."""

import csv
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from robustmed import attacks
from robustmed.defenses import DEFENSES
from robustmed.process import console
from robustmed.tasks import networks
from robustmed.training import loop
from support import toys

STEPS, LR = 4, 0.5
ATTACK = attacks.pgd(num_steps=1, relative_step=0.5, bounds=(0.0, 1.0))
ADVERSARIAL = {'attack': ATTACK, 'objectives': {'flat': 0.5}, 'eps': 0.1}
ARMS = {
  'standard': {},
  'distillation': {'temperature': 1.0, 'teacher': {'params': {'height': np.float32(1.0)}}},
  'noise': {'eps': 0.1},
  'noise, in turn': {'eps': 0.1, 'in_turn': True},
  'adversarial': ADVERSARIAL,
  'adversarial, in turn': {**ADVERSARIAL, 'in_turn': True},
  'adversarial, three in turn': {
    **ADVERSARIAL,
    'objectives': {'flat': 0.25, 'slope': 0.25},
    'in_turn': True,
  },
  'amat': {'attack': ATTACK, 'step': 0.02, 'thresholds': (0.6,), 'when': 'immediate'},
}
# Of the full rate, at each of the steps and after the last one, by hand.
SCHEDULES = {
  'constant': ({}, [1, 1, 1, 1, 1]),
  'cosine': ({}, [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0]),
  'linear': ({'final_fraction': 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
  'poly': ({'power': 2.0, 'steps_per_epoch': 2}, [1, 1, 0.25, 0.25, 0]),
  'constant, warm': ({'schedule': 'constant', 'warmup_steps': 2}, [0.5, 1, 1, 1, 1]),
}


class Height(nn.Module):
  """A number that is the loss of every image, so that an update moves it by the rate."""

  @nn.compact
  def __call__(self, image, *, train=False):
    height = self.param('height', nn.initializers.zeros, ())
    return {'height': height + 0.0 * image.mean((1, 2, 3))}


@functools.cache
def _task():
  network = networks.bind(Height(), image_shape=(toys.SIDE, toys.SIDE, 1))
  flat = lambda outputs, batch: outputs['height']
  return toys.task()._replace(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=lambda outputs, batch: {'flat': flat(outputs, batch)},
    objectives={'flat': flat, 'slope': flat},
    soften=lambda outputs, temperature: (outputs, {'height': outputs['height']}),
  )


def test_every_defense_is_in_this_suite():
  assert {name.split(',')[0] for name in ARMS} == set(DEFENSES)


@pytest.mark.slow
@pytest.mark.parametrize('schedule', SCHEDULES)
@pytest.mark.parametrize('arm', ARMS)
def test_the_rate_reaches_its_end_at_the_last_step(tmp_path, arm, schedule):
  fields, shape = SCHEDULES[schedule]
  rule = {'name': 'sgd', 'lr': LR, 'momentum': 0.0, 'schedule': schedule, **fields}
  defense = DEFENSES[arm.split(',')[0]](_task(), **ARMS[arm])
  state = loop.fit(
    'arm',
    task=_task(),
    defense=defense,
    batches=toys.stream(2),
    config={'steps': STEPS, 'optimisers': {'main': rule}, 'log_every': 1},
    folder=tmp_path / 'state',
    log=tmp_path / 'arm.csv',
    key=jax.random.key(0),
    num_examples=2 * STEPS,
    stopper=console.Stopper(),
  )
  with (tmp_path / 'arm.csv').open(newline='') as file:
    # The loss of the last update of each step, before that update.
    seen = [float(row['main/loss']) for row in csv.DictReader(file)]
  shares = [1 / len(defense.phases)] * len(defense.phases)
  if arm.endswith('three in turn'):
    shares = [0.25, 0.25, 0.5]
  seen = np.array(seen) / shares[-1]
  rates = LR * np.array(shape[:-1])
  before = -np.concatenate([[0.0], np.cumsum(rates)])
  np.testing.assert_allclose(seen, before[:-1] - rates * (1 - shares[-1]), atol=1e-5)
  np.testing.assert_allclose(float(state.params['height']), before[-1], atol=1e-5)

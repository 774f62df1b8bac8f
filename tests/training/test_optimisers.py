"""Against float64 numpy loops that follow torch's and TensorFlow 1's documented update rules."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import errors
from robustmed.training import optimisers

GRADIENTS = np.random.default_rng(0).normal(size=(6, 3))


def _ours(config, *, start=(1.0, -2.0, 0.5), num_steps=6):
  rule = optimisers.make(config, num_steps=num_steps)
  params = jnp.asarray(start, jnp.float32)
  state = rule.init(params)
  for gradient in GRADIENTS:
    updates, state = rule.update(jnp.asarray(gradient, jnp.float32), state, params)
    params = optax.apply_updates(params, updates)
  return np.asarray(params)


def _adamax(lr, decay, p):
  m, u = np.zeros(3), np.zeros(3)
  for t, g in enumerate(GRADIENTS, start=1):
    g = g + decay * p
    m = 0.9 * m + 0.1 * g
    u = np.maximum(0.999 * u, np.abs(g) + 1e-8)
    p = p - lr / (1 - 0.9**t) * m / u
  return p


def _sgd_nesterov(lr, decay, p, *, clip=None):
  buffer = np.zeros(3)
  for g in GRADIENTS:
    if clip:
      g = g * min(1.0, clip / np.linalg.norm(g))
    g = g + decay * p
    buffer = 0.99 * buffer + g
    p = p - lr * (g + 0.99 * buffer)
  return p


def _adam(lr, decay, p):
  m, v = np.zeros(3), np.zeros(3)
  for t, g in enumerate(GRADIENTS, start=1):
    g = g + decay * p
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
  return p


def _rmsprop(lr, p):
  mean = np.ones(3)
  for g in GRADIENTS:
    mean = 0.9 * mean + 0.1 * g * g
    p = p - lr * g / np.sqrt(mean + 1e-10)
  return p


START = np.array([1.0, -2.0, 0.5])


@pytest.mark.parametrize('decay', [0.0, 0.1])
def test_adamax_is_torchs(decay):
  ours = _ours({'name': 'adamax', 'lr': 0.01, 'weight_decay': decay})
  np.testing.assert_allclose(ours, _adamax(0.01, decay, START), rtol=1e-5)


@pytest.mark.parametrize('clip', [0.0, 0.5])
def test_sgd_nesterov_with_coupled_decay_and_clipping_is_torchs(clip):
  config = {'name': 'sgd', 'lr': 0.01, 'momentum': 0.99, 'nesterov': True, 'weight_decay': 0.03}
  ours = _ours({**config, 'clip': clip})
  np.testing.assert_allclose(ours, _sgd_nesterov(0.01, 0.03, START, clip=clip), rtol=1e-5)


def test_adam_couples_its_decay_and_adamw_does_not():
  config = {'name': 'adam', 'lr': 0.01, 'weight_decay': 0.1}
  np.testing.assert_allclose(_ours(config), _adam(0.01, 0.1, START), rtol=1e-5)
  assert not np.allclose(_ours({**config, 'name': 'adamw'}), _adam(0.01, 0.1, START), rtol=1e-4)


def test_rmsprop_is_tensorflow_ones():
  ours = _ours({'name': 'rmsprop', 'lr': 0.01})
  np.testing.assert_allclose(ours, _rmsprop(0.01, START), rtol=1e-5)


def test_clipped_weights_stay_in_their_box_and_move_as_before_inside():
  config = {'name': 'rmsprop', 'lr': 0.01}
  free, boxed = _ours(config), _ours({**config, 'clip_weights': 0.45})
  np.testing.assert_allclose(boxed, np.clip(boxed, -0.45, 0.45), atol=1e-7)
  loose = _ours({**config, 'clip_weights': 5.0})
  np.testing.assert_allclose(loose, free, rtol=1e-6)
  assert np.abs(free).max() > 0.45


def test_schedules():
  rate = lambda **config: optimisers.schedule({'lr': 2.0, **config}, num_steps=100)
  assert float(rate()(57)) == 2.0
  poly = rate(schedule='poly', steps_per_epoch=10)
  assert float(poly(0)) == float(poly(9)) == 2.0
  assert float(poly(10)) == pytest.approx(2 * 0.9**0.9, rel=1e-6)
  assert float(rate(schedule='linear', final_fraction=0.1)(100)) == pytest.approx(0.2)
  assert float(rate(schedule='cosine')(50)) == pytest.approx(1.0)
  assert float(rate(warmup_steps=4)(0)) == 0.5 and float(rate(warmup_steps=4)(9)) == 2.0
  assert float(rate(warmup_share=0.04)(0)) == 0.5 and float(rate(warmup_share=0.04)(3)) == 2.0


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('decay', -0.5, 'from 0 to below 1, not -0.5'),
    ('momentum', 1.0, 'from 0 to below 1, not 1.0'),
    ('lr', -1e-3, 'at least 0, not -0.001'),
    ('lr', '1e-3', "at least 0, not '1e-3'"),
    ('clip', float('nan'), 'at least 0, not nan'),
    ('lr', float('inf'), 'at least 0, not inf'),
    ('final_fraction', 1.5, 'from 0 to 1, not 1.5'),
  ],
)
def test_numbers_out_of_range_are_user_errors(field, value, words):
  with pytest.raises(errors.UserError, match=f'{field} of an optimiser must be {words}'):
    optimisers.make({'name': 'sgd', 'lr': 1.0, field: value}, num_steps=1)


def test_unknown_names_are_user_errors():
  with pytest.raises(errors.UserError, match=r"unknown optimiser 'adamx'.*did you mean 'adamax'"):
    optimisers.make({'name': 'adamx', 'lr': 1.0}, num_steps=1)
  with pytest.raises(errors.UserError, match='learning-rate schedule'):
    optimisers.make({'name': 'sgd', 'lr': 1.0, 'schedule': 'up'}, num_steps=1)

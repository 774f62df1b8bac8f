"""Every entry of the attack table through one suite."""

import dataclasses
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, types

SHAPE = (3, 4, 3, 2)
EPS = jnp.asarray([0.0, 0.1, 0.4])
QUICK = {'num_steps': 6}
SLOW_SEARCHES = {'square': {'num_steps': 150}}
NEEDED = {'corruption': {'kind': 'rician'}}
BALLS = [name for name in attacks.ATTACKS if name != 'corruption']  # tested in test_corruption


def _attack(name, **more):
  known = attacks.settings(name)
  chosen = {
    **QUICK,
    **SLOW_SEARCHES.get(name, {}),
    **NEEDED.get(name, {}),
    'bounds': (0.0, 1.0),
    **more,
  }
  return attacks.make(name, **{key: value for key, value in chosen.items() if key in known})


def _image():
  return jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, SHAPE), jnp.float32)


def _objective(image):
  wave = jnp.cos(jnp.arange(image[0].size, dtype=jnp.float32)).reshape(1, *SHAPE[1:])
  total = jnp.sum(wave * image, (1, 2, 3))
  return total + 0.1 * jnp.sin(total)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('name', BALLS)
def test_conforms(name, norm):
  """Shapes, ball, box, identity, sense, region, determinism, neighbours, one trace: one program."""
  attack = _attack(name, norm=norm)
  x = _image()
  down = attack.minimise
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(1)
  def run(x, eps, key):
    return attack(_objective, x, eps=eps, key=key, monitor=lambda image: {'v': _objective(image)})

  key = jax.random.key(0)
  result = run(x, EPS, key)
  assert isinstance(result, types.AttackResult)
  chex.assert_shape(result.x, SHAPE)
  chex.assert_shape([result.value, result.distance, result.monitored['v']], (3,))
  chex.assert_trees_all_equal_dtypes(result.x, x)
  np.testing.assert_array_equal(result.x[0], x[0])
  delta = np.asarray(result.x, np.float64) - np.asarray(x)
  size = np.abs(delta).max((1, 2, 3)) if norm == 'linf' else np.sqrt((delta**2).sum((1, 2, 3)))
  assert np.all(size <= np.asarray(EPS) * (1 + 1e-5) + 1e-6)
  np.testing.assert_allclose(result.distance, size, atol=1e-6)
  if name != 'latent':
    assert np.all((result.x >= 0) & (result.x <= 1))
  np.testing.assert_allclose(result.value, _objective(result.x), rtol=1e-5, atol=1e-6)
  if name != 'noise':
    gain = np.asarray(_objective(result.x) - _objective(x))[1:]
    assert np.all(gain < 0 if down else gain > 0)
  chex.assert_trees_all_equal(run(x, EPS, key), result)
  other = run(x.at[2].set(0.5), EPS, key)
  np.testing.assert_array_equal(other.x[:2], result.x[:2])
  assert np.all(run(x, EPS * 0, key).distance == 0)


@pytest.mark.parametrize('name', attacks.ATTACKS)
def test_region_and_settings(name):
  region = np.zeros((1, 4, 3, 1), np.float32)
  region[:, 1:3, 1:] = 1
  attack = _attack(name, region=region, num_steps=3)
  result = attack(_objective, _image(), eps=0.1, key=jax.random.key(0))
  moved = np.asarray(result.x != _image())
  assert not np.any(moved[np.broadcast_to(region == 0, SHAPE)])
  assert np.any(moved)
  assert attack.num_gradients + attack.num_forwards == attack.num_steps + attack.score_last
  for setting in inspect.signature(attacks.ATTACKS[name]).parameters:
    assert setting in attacks.settings(name) or setting == 'settings'
  assert attacks.ATTACKS[name].__doc__


@pytest.mark.parametrize('name', attacks.ATTACKS)
def test_the_defaults_make_the_attack_that_no_settings_make(name):
  given = attacks.defaults(name)
  assert set(given) == set(attacks.settings(name))
  plain, listed = attacks.make(name), attacks.make(name, **given)
  for field in ('num_steps', 'step_size', 'relative_step', 'random_start', 'select', 'minimise'):
    assert getattr(plain, field) == getattr(listed, field), field
  assert dataclasses.asdict(plain.threat) == dataclasses.asdict(listed.threat)

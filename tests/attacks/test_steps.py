"""An attack that is interrupted after any step ends with the result of an undisturbed one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import attacks, errors
from robustmed.attacks.stored import steps

SHAPE, EPS, KEY = (2, 5, 4, 1), 0.2, jax.random.key(3)
ATTACKS = {
  'apgd': attacks.apgd(num_steps=6),
  'monitor': attacks.pgd(num_steps=5, rule='adamax', select='monitor', fold='trace', norm='l2'),
  'square': attacks.square(num_steps=7),
}


def _run(attack, problems, path, eps=EPS, **more):
  objective = problems.network(SHAPE[1:])
  more.setdefault('monitor', lambda x: jnp.cos(5 * objective(x)))
  return steps.run(attack, objective, problems.images(SHAPE), eps=eps, key=KEY, path=path, **more)


@pytest.mark.parametrize('name', ATTACKS)
def test_interruptions_change_no_bit(name, problems, tmp_path):
  attack, calls = ATTACKS[name], []
  whole = _run(attack, problems, tmp_path / 'whole.npz')

  def stop():
    calls.append(1)
    return len(calls) in (1, 3, 4)

  parts = [_run(attack, problems, tmp_path / 'parts.npz', every=2, stop=stop) for _ in range(4)]
  assert parts[:3] == [None] * 3
  assert len(calls) == attack.num_steps  # no step was repeated
  jax.tree.map(np.testing.assert_array_equal, parts[3], whole)
  # the loop in one program, whose operations XLA may fuse in other ways
  objective = problems.network(SHAPE[1:])
  monitor = lambda x: jnp.cos(5 * objective(x))
  once = problems.call(attack, objective, problems.images(SHAPE), EPS, key=KEY, monitor=monitor)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole, once)


def test_a_state_belongs_to_its_attack(problems, tmp_path):
  path = tmp_path / 'state.npz'
  assert _run(ATTACKS['apgd'], problems, path, stop=lambda: True) is None
  for attack, eps in ((ATTACKS['apgd'], 0.3), (attacks.apgd(num_steps=7), EPS)):
    with pytest.raises(errors.UserError, match='state of another attack'):
      _run(attack, problems, path, eps=eps)
  whole = dict(np.load(path))
  for change in ({'leaf0': None}, {'step': None}, {'leaf0': np.zeros(3)}):
    told = {name: value for name, value in {**whole, **change}.items() if value is not None}
    np.savez(path, **told)
    with pytest.raises(errors.UserError, match='is damaged'):
      _run(ATTACKS['apgd'], problems, path)
  path.write_bytes(b'')
  with pytest.raises(errors.UserError, match='is damaged'):
    _run(ATTACKS['apgd'], problems, path)
  np.savez(path, **whole)
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(errors.UserError, match='is damaged'):
    _run(ATTACKS['apgd'], problems, path)
  with pytest.raises(errors.UserError, match='restarts or stages'):
    _run(attacks.sea(num_steps=7), problems, path)


PAIRS = {
  'share of square': [attacks.square(num_steps=9, share=share) for share in (0.8, 0.1)],
  'rules of one shape': [attacks.pgd(num_steps=9, rule=optax.clip(n)) for n in (0.5, 1.0)],
  'rules': [attacks.pgd(num_steps=9, rule=rule) for rule in ('plain', 'adamax')],
  'their settings': [attacks.pgd(num_steps=9, rule=optax.ema(decay)) for decay in (0.9, 0.5)],
  'regions': [attacks.pgd(num_steps=9, region=np.full((1, 1, 1, 1), n)) for n in (0, 1)],
  'bounds': [attacks.pgd(num_steps=9, bounds=(0.0, high)) for high in (1.0, 2.0)],
  'norms': [attacks.pgd(num_steps=9, norm=norm) for norm in ('linf', 'l2')],
  'senses': [attacks.pgd(num_steps=9, minimise=sense) for sense in (False, True)],
}


@pytest.mark.parametrize('name', PAIRS)
def test_settings_are_told_apart(name):
  x, key = np.zeros((1, 4, 4, 1), np.float32), jax.random.key(0)
  first, second = (steps._digest(attack, x, 0.1, key, None) for attack in PAIRS[name])
  assert first != second


def test_equal_settings_are_equal():
  x, key = np.zeros((1, 4, 4, 1), np.float32), jax.random.key(0)
  for make in (
    lambda: attacks.square(num_steps=9, share=0.3),
    lambda: attacks.pgd(num_steps=9, rule='adamax', bounds=(0.0, 1.0)),
    lambda: attacks.pgd(num_steps=9, rule=optax.chain(optax.clip(0.5), optax.ema(0.9))),
    lambda: attacks.apgd(num_steps=9),
  ):
    first, second = (steps._digest(make(), x, 0.1, key, None) for _ in range(2))
    assert first == second

"""An attack that is interrupted after any step ends with the result of an undisturbed one."""

import jax
import jax.numpy as jnp
import numpy as np
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
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(errors.UserError, match='is damaged'):
    _run(ATTACKS['apgd'], problems, path)
  with pytest.raises(errors.UserError, match='restarts or stages'):
    _run(attacks.sea(num_steps=7), problems, path)

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors
from robustmed.ops import corruptions

KEY = jax.random.key(3)


def image():
  plane = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.9, (3, 12, 12, 2)), jnp.float32)
  return plane.at[:, :3].set(0)


def objective(x):
  return jnp.sum(x * x, (1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize('kind', corruptions.CORRUPTIONS)
def test_is_the_corruption_at_each_severity(kind):
  attack = attacks.make('corruption', kind=kind, bounds=(0.0, 1.0))
  eps = jnp.asarray([0.0, 0.05, 0.2])
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(1)
  def run(x, eps, key):
    return attack(objective, x, eps=eps, key=key, monitor=lambda x: {'sum': x.sum((1, 2, 3))})

  result = run(image(), eps, KEY)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))
  expected = jnp.clip(corruptions.corrupt(kind, image(), severity=eps, keys=keys), 0, 1)
  np.testing.assert_allclose(result.x, expected, atol=1e-5)
  np.testing.assert_array_equal(result.x[0], image()[0])
  np.testing.assert_allclose(result.value, objective(result.x), rtol=1e-5)
  np.testing.assert_allclose(result.monitored['sum'], result.x.sum((1, 2, 3)), rtol=1e-5)
  assert np.isnan(result.distance).all()
  assert attack.num_gradients == 0 and attack.num_forwards == 1
  np.testing.assert_array_equal(run(image(), eps * 2, KEY).x[0], image()[0])


def test_restarts_keep_the_worst_draw_and_the_region_holds():
  region = np.zeros((1, 12, 12, 1), np.float32)
  region[:, 5:] = 1
  make = lambda **more: attacks.make('corruption', kind='rician', region=region, **more)
  once = make()(objective, image(), eps=0.2, key=KEY)
  often = make(restarts=5)(objective, image(), eps=0.2, key=KEY)
  assert (often.value >= once.value).all() and (often.value > once.value).any()
  np.testing.assert_array_equal(often.x[:, :5], image()[:, :5])


def test_kinds_are_known():
  with pytest.raises(errors.UserError, match=r"corruption 'ghost'.*motion"):
    attacks.make('corruption', kind='ghost')

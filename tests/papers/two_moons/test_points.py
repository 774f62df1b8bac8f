import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, types
from robustmed.papers.two_moons import points
from robustmed.process import console
from robustmed.training import loop
from robustmed.training import state as train_state

RULES = {'main': {'name': 'adam', 'lr': 2e-2}}
CENTRES = np.array([[2.0, -1.0], [-1.0, 1.0]], np.float32)


def batch(size=20):
  rng = np.random.default_rng(0)
  member = np.arange(size) % 2
  xy = CENTRES[member] + 0.1 * rng.normal(size=(size, 2))
  number = np.arange(size, dtype=np.int32)
  return {
    'image': np.concatenate([xy, member[:, None]], axis=1).astype(np.float32),
    'target': {},
    'mask': np.ones(size, bool),
    'index': number,
    'group': member.astype(np.int32),
    'draw': number,
  }


def slope():
  """A task whose logit is weight * (x, y): what a search should do is known."""
  predict = lambda variables, image: {'logit': image[:, :2] @ variables['weight'][:, None]}
  return types.Task(
    init=lambda key: {},
    predict=predict,
    forward=None,
    losses=lambda outputs, batch: {},
    objectives={},
    metrics=lambda outputs, batch: {},
    image_shape=(3,),
  )


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
  folder, module = tmp_path_factory.mktemp('vae'), points.Vae(2, (8,), 2)

  def stream(start):
    while True:
      yield batch()

  with console.stop_on_signal() as stopper:
    state = loop.fit(
      'vae',
      task=points.make_task(module),
      defense=points.fitting(module, divergence=0.1),
      batches=stream,
      config={'steps': 300, 'optimisers': RULES, 'log_every': 100, 'checkpoint_every': 300},
      folder=folder / 'state',
      log=folder / 'vae.csv',
      key=jax.random.key(0),
      num_examples=20,
      stopper=stopper,
    )
  return module, train_state.variables(state)


def test_samples_lie_where_each_members_points_lie(fitted):
  module, variables = fitted
  member = np.repeat([0.0, 1.0], 51).astype(np.float32)  # no multiple of the devices
  made = points.samples(module, slope(), {'vae': variables}, member, key=jax.random.key(1))
  made = np.asarray(made)
  assert made.shape == (102, 3)
  np.testing.assert_array_equal(made[:, 2], member)
  for number in (0, 1):
    np.testing.assert_allclose(made[member == number, :2].mean(0), CENTRES[number], atol=0.3)


def test_searched_codes_go_down_the_logit_and_stay_in_their_ball(fitted):
  module, variables = fitted
  member = np.arange(40, dtype=np.float32) % 2
  weight = jnp.array([1.0, 0.5])
  both = {'vae': variables, 'classifier': {'weight': weight}}
  same = {'key': jax.random.key(2)}
  random = points.samples(module, slope(), both, member, **same)
  attack = attacks.latent(num_steps=5, step_size=0.2)
  searched = points.samples(module, slope(), both, member, attack=attack, eps=0.5, **same)
  still = points.samples(module, slope(), both, member, attack=attack, eps=0.0, **same)
  np.testing.assert_allclose(random, still, atol=1e-5)
  fall = np.asarray(random - searched)[:, :2] @ np.asarray(weight)
  assert fall.mean() > 0.02 and (fall > 0).mean() > 0.7


def test_searched_noise_goes_up_the_logit_to_the_corner_of_its_box():
  image = np.array([[0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [2.9, 0.0, 1.0]], np.float32)
  attack = attacks.pgd(num_steps=10, step_size=0.3, bounds=((-3.0, -3.0), (3.0, 3.0)))
  variables = {'classifier': {'weight': jnp.array([2.0, -1.0])}}
  found = points.noise(slope(), variables, image, key=jax.random.key(0), attack=attack, eps=0.5)
  np.testing.assert_allclose(found, [[0.5, -0.5, 0], [1.5, -1.5, 1], [3.0, -0.5, 1]], atol=1e-6)

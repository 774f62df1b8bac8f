import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.papers.nodules import recipes, synthesiser
from support import lungs

CODES = {'name': 'latent', 'eps': 0.5, 'step_size': 0.2, 'num_steps': 5}
PATCHES = {'name': 'pgd', 'eps': 0.15, 'step_size': 0.05, 'num_steps': 5, 'bounds': (0.0, 1.0)}


def victim():
  task = lungs.brightness()
  return recipes.Victim(task, task.init(jax.random.key(0)), 'victim')


def synthesis(**more):
  """Its nodules have one number: a ball as bright as the sigmoid of 0.3 times it."""
  shape = jnp.asarray(lungs.ball(2.5))[None]

  def decode(variables, code):
    return shape * jax.nn.sigmoid(variables['gain'] * code[:, :1, None, None, None])

  model = synthesiser.Model(None, decode, None, None, latent=2)
  return recipes.Synthesis(model, {'gain': jnp.float32(0.3)}, 'maker', spacing=1.0, **more)


@pytest.fixture(scope='module')
def patches():
  return np.stack([row['image'] for row in lungs.patches(4, positive=False)])


def run(recipe, image, seed=0):
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(image)))
  made = recipe.run(recipe.variables, jnp.asarray(image), keys)
  assert set(made) <= {'image', *recipes.COLUMNS}
  return {name: np.asarray(value) for name, value in made.items()}


def loss(image, target):
  return np.log1p(np.exp((1 - 2 * target) * 5 * (image.mean((1, 2, 3, 4)) - 0.3)))


def test_random_codes_put_nodules_into_the_patches(patches):
  made = run(recipes.codes(synthesis(), victim()), patches)
  inside = np.broadcast_to(lungs.ball(2.5)[None] > 0, patches.shape)
  np.testing.assert_array_equal(made['image'][~inside], patches[~inside])
  shade = made['image'][:, 3, 3, 3, 0]  # sigmoid of a normal number, another one for each
  assert len(set(shade.tolist())) == 4 and (shade > 0.01).all()
  np.testing.assert_allclose(made['value'], loss(made['image'], 1), rtol=1e-4)
  volume = inside[0].sum()
  np.testing.assert_allclose(made['diameter'], np.cbrt(6 * volume / np.pi), rtol=1e-5)


def test_searched_codes_start_alike_and_end_where_a_nodule_is_hardest_to_see(patches):
  random = run(recipes.codes(synthesis(), victim()), patches)
  searched = run(recipes.codes(synthesis(), victim(), search=CODES), patches)
  logit = lambda made: (
    np.log(made['image'][:, 3, 3, 3, 0]) - np.log1p(-made['image'][:, 3, 3, 3, 0])
  )
  np.testing.assert_allclose(logit(searched), logit(random) - 0.15, atol=1e-3)  # the ball's edge
  assert (searched['value'] > random['value']).all()
  np.testing.assert_allclose(searched['distance'], 0.5, rtol=1e-5)


@pytest.mark.parametrize(('smallest', 'kept'), [(4.0, True), (6.0, False)])
def test_nodules_that_are_too_small_are_not_kept(patches, smallest, kept):
  made = run(recipes.codes(synthesis(smallest=smallest), victim()), patches)
  assert made['diameter'][0] == pytest.approx(5, abs=0.5)
  assert (made['keep'] == kept).all()


@pytest.mark.parametrize('target', [0, 1])
def test_attacked_patches_are_worse_within_the_ball_and_the_box(patches, target):
  made = run(recipes.attacked(victim(), target=target, search=PATCHES), patches)
  change = made['image'] - patches
  assert np.abs(change).max() <= 0.15 + 1e-6 and made['image'].min() >= 0
  assert np.sign(change.mean()) == (1 if target == 0 else -1)
  np.testing.assert_allclose(made['value'], loss(made['image'], target), rtol=1e-4)
  assert (made['value'] > loss(patches, target)).all()


def test_noise_is_uniform_and_searched_noise_begins_at_the_same(patches):
  blank = np.zeros_like(patches)
  plain = run(recipes.noise(victim(), search=None), blank)['image']
  assert plain.min() >= 0 and plain.max() <= 1 and plain.mean() == pytest.approx(0.5, abs=0.02)
  assert plain.std() == pytest.approx(12**-0.5, abs=0.02)
  moved = run(recipes.noise(victim(), search=PATCHES), blank)
  assert np.abs(moved['image'] - plain).max() <= 0.15 + 1e-6 and moved['image'].max() <= 1
  assert (moved['value'] > loss(plain, 0)).all()


def test_poisson_noise_keeps_the_mean_and_has_its_variance_at_levels_of_its_own():
  image = np.full((40, 8, 8, 8, 1), 0.5, np.float32)
  made = run(recipes.poisson(target=1, levels=(5.0, 50.0)), image)
  assert set(made['level'].tolist()) == {5.0, 50.0}
  for level in (5.0, 50.0):
    noisy = made['image'][made['level'] == level]
    np.testing.assert_allclose(noisy * level, np.round(noisy * level), atol=1e-3)
    assert noisy.mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.5 / level / noisy.size))
    assert noisy.std() == pytest.approx(np.sqrt(0.5 / level), rel=0.05)


@pytest.mark.parametrize(('centred', 'width'), [(True, 0.3), (False, 0.6)])
def test_uniform_noise_in_both_readings(patches, centred, width):
  made = run(recipes.uniform(target=1, magnitude=0.6, centred=centred), patches)
  change = made['image'] - patches
  assert width * 0.97 < np.abs(change).max() <= width + 1e-6
  assert change.std() == pytest.approx(width / np.sqrt(3), rel=0.05)


def test_provenance_tells_recipes_apart():
  made = [
    recipes.codes(synthesis(), victim()),
    recipes.codes(synthesis(), victim(), search=CODES),
    recipes.codes(synthesis(smallest=5.0), victim()),
    recipes.codes(synthesis(), victim()._replace(digest='other')),
    recipes.attacked(victim(), target=0, search=PATCHES),
    recipes.attacked(victim(), target=1, search=PATCHES),
    recipes.noise(victim(), search=PATCHES),
    recipes.poisson(target=1, levels=(5.0,)),
    recipes.uniform(target=1, magnitude=0.3),
    recipes.uniform(target=1, magnitude=0.3, centred=False),
  ]
  assert len({str(recipe.provenance) for recipe in made}) == len(made)
  assert made[1].provenance['search'] == CODES and made[1].provenance['network'] == 'victim'


def test_mistakes():
  with pytest.raises(errors.UserError, match='unknown objective of a search'):
    recipes.noise(victim()._replace(objective='los'), search=None)
  with pytest.raises(errors.UserError, match='must be above 0'):
    recipes.poisson(target=1, levels=(0.0,))
  with pytest.raises(errors.UserError, match="unknown setting of attack 'pgd'"):
    recipes.attacked(victim(), target=1, search={**PATCHES, 'steps': 3})

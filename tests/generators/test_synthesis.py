import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from robustmed import errors
from robustmed.generators import synthesis
from support import synths

KEYS = jax.random.split(jax.random.key(3), 4)


@pytest.fixture(scope='module')
def trained():
  return synths.model(), synths.variables()


@pytest.fixture(scope='module')
def drawn(trained):
  model, variables = trained
  draw = jax.jit(lambda variables, image, keys: model.draw(variables, image, keys)[0])
  return draw, draw(variables, synths.batch()['image'], KEYS)


def test_fresh_generators_change_nothing():
  model, image = synths.model(), synths.batch(2)['image']
  fields, _ = model.draw(model.task.init(jax.random.key(0)), image, KEYS[:2])
  assert not np.any(fields.displacement) and not np.any(fields.intensity)
  np.testing.assert_array_equal(synthesis.compose(image, fields), image)


def test_fields_have_their_shapes_and_bounds(trained, drawn):
  fields = drawn[1]
  assert fields.displacement.shape == (4, 16, 16, 2) and fields.intensity.shape == (4, 16, 16, 1)
  assert fields.latents['D'].mean.shape == (4, 4, 4, 2)  # two halvings, the grid stays
  assert 0.1 < float(jnp.abs(fields.displacement).max()) <= 2.0
  assert 0.1 < float(jnp.abs(fields.intensity).max()) <= 1.5
  large = synths.variables(scale=500.0)
  fields, _ = trained[0].draw(large, synths.batch()['image'], KEYS)
  np.testing.assert_allclose(jnp.abs(fields.displacement).max(), 2.0, rtol=1e-5)
  np.testing.assert_allclose(jnp.abs(fields.intensity).max(), 1.5, rtol=1e-5)


def test_an_example_depends_on_itself_and_its_key_alone(trained, drawn):
  draw, whole = drawn
  _, variables = trained
  image = synths.batch()['image']
  other = np.concatenate([image[:1], -image[1:]])
  keys = jnp.concatenate([KEYS[:1], jax.random.split(jax.random.key(9), 3)])
  again = draw(variables, other, keys)
  np.testing.assert_allclose(again.intensity[0], whole.intensity[0], atol=1e-6)
  assert np.abs(again.intensity[1] - whole.intensity[1]).max() > 1e-3
  another = draw(variables, image, jax.random.split(jax.random.key(8), 4))
  assert np.abs(another.displacement[0] - whole.displacement[0]).max() > 1e-4


def test_the_two_latents_draw_apart_and_none_takes_the_means(trained):
  model, variables = trained
  image = synths.batch()['image']
  mean, _ = model.draw(variables, image, None)
  again, _ = model.draw(variables, image, None)
  np.testing.assert_array_equal(mean.intensity, again.intensity)
  noise = synthesis._noise(KEYS)
  assert np.abs(noise('D', (4, 3)) - noise('V', (4, 3))).min() > 1e-3


def test_composition_is_scipys_warp_plus_the_intensity(drawn):
  fields, image = drawn[1], synths.batch()['image']
  rows, columns = np.mgrid[:16, :16].astype(float)
  for b in range(2):
    where = np.asarray([rows, columns]) + np.moveaxis(np.asarray(fields.displacement[b]), -1, 0)
    warped = ndimage.map_coordinates(image[b, ..., 0], where, order=1, mode='nearest')
    both = synthesis.compose(image, fields)[b, ..., 0]
    np.testing.assert_allclose(both, warped + fields.intensity[b, ..., 0], atol=1e-5)
    alone = synthesis.compose(image, fields, parts='D')[b, ..., 0]
    np.testing.assert_allclose(alone, warped, atol=1e-5)
  added = synthesis.compose(image, fields, parts='V')
  np.testing.assert_allclose(added, image + fields.intensity, atol=1e-6)
  np.testing.assert_allclose(
    synthesis.perceptibility(added, image), np.abs(fields.intensity).mean((1, 2, 3)), rtol=1e-4
  )


@pytest.mark.slow
def test_training_mode_moves_the_running_statistics_and_inference_does_not(trained):
  model, variables = trained
  image = synths.batch()['image']
  _, none = model.draw(variables, image, KEYS)
  _, state = model.draw(variables, image, KEYS, train=True)
  assert dict(none) == {}
  of = lambda tree, name: jax.tree.leaves(tree['batch_stats'][name])
  for before, after in zip(of(variables, 'generator'), of(state, 'generator'), strict=True):
    assert np.any(before != after)
  for before, after in zip(of(variables, 'critic'), of(state, 'critic'), strict=True):
    np.testing.assert_array_equal(before, after)  # kept, not lost


def test_a_global_latent_is_one_vector():
  model = synths.model(spatial=False)
  image = synths.batch(2)['image']
  fields, _ = model.draw(model.task.init(jax.random.key(0)), image, KEYS[:2])
  assert fields.latents['V'].mean.shape == (2, 1, 1, 2)
  assert fields.intensity.shape == (2, 16, 16, 1)


def test_mistakes_are_one_line():
  model, variables = synths.model(), synths.variables()
  with pytest.raises(
    errors.UserError, match=r'reads images .* multiples of 4, got \(1, 15, 16, 1\)'
  ):
    model.draw(variables, jnp.zeros((1, 15, 16, 1)), None)
  with pytest.raises(errors.UserError, match='norm of the critic'):
    synths.model(critic_norm='none').task.init(jax.random.key(0))
  with pytest.raises(errors.UserError, match='d_max must be at least 0'):
    synths.model(d_max=-1.0)
  with pytest.raises(errors.UserError, match='choice of fields'):
    synthesis.compose(jnp.zeros((1, 4, 4, 1)), None, parts='VD')

"""Physical transforms: exact identity, bounds in their units, and the loop that searches them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors
from robustmed.attacks import physical, space
from robustmed.data.brain import phantom
from robustmed.ops import corruptions
from robustmed.tasks import segmentation

SHAPES = {2: (12, 14, 2), 3: (6, 8, 10, 1)}


def _image(rank, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(0.05, 0.95, (2, *SHAPES[rank])), jnp.float32)


def _draw(transform, eps, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-eps, eps, (2, *transform.shape)), jnp.float32)


@pytest.mark.parametrize('rank', [2, 3])
@pytest.mark.parametrize('name', sorted(physical.TRANSFORMS))
def test_0_is_the_image_and_every_parameter_has_a_gradient(name, rank):
  transform, image = physical.make(name, SHAPES[rank]), _image(rank)
  zeros = jnp.zeros((2, *transform.shape))
  np.testing.assert_array_equal(transform.apply(zeros, image), image)
  weights = jnp.asarray(np.random.default_rng(3).normal(size=image.shape), jnp.float32)
  grad = jax.jit(jax.grad(lambda z: jnp.sum(weights * transform.apply(z, image))))
  at = _draw(transform, 0.02)
  found = np.asarray(grad(at))
  assert np.isfinite(found).all()
  assert np.isfinite(np.asarray(grad(zeros))).all()
  moves = np.abs(found) > 0
  assert moves.mean() > (0.7 if name == 'motion' else 0.99)  # the central lines stand still
  # examples do not depend on each other
  alone = transform.apply(at[:1], image[:1])
  np.testing.assert_allclose(transform.apply(at, image)[:1], alone, atol=1e-6)


@pytest.mark.parametrize('rank', [2, 3])
def test_the_field_stays_within_eps_and_reaches_it(rank):
  transform, eps = physical.bias_field(SHAPES[rank]), 0.3
  image = jnp.ones((2, *SHAPES[rank]))
  for seed in range(5):
    z = eps * jnp.sign(_draw(transform, 1.0, seed))
    assert np.abs(np.log(transform.apply(z, image))).max() <= eps + 1e-5
  assert np.log(transform.apply(jnp.full_like(z, eps), image)).max() > 0.9 * eps


@pytest.mark.parametrize('rank', [2, 3])
def test_displacements_stay_within_eps_millimetres(rank):
  spacing = (2.0, 0.5, 1.0)[:rank]
  transform, eps = physical.deformation(SHAPES[rank], spacing=spacing, grid=4), 1.5
  z = eps * jnp.sign(_draw(transform, 1.0))
  field = np.asarray(transform.displacement(z)) * np.array(spacing)
  assert np.abs(field).max() <= eps + 1e-5
  # equal parameters are a shift of the whole image
  field = np.asarray(transform.displacement(jnp.full_like(z, eps))) * np.array(spacing)
  np.testing.assert_allclose(field, eps, rtol=1e-5)
  shifted = physical.deformation(SHAPES[2], grid=4)
  one = jnp.broadcast_to(jnp.array([1.0, 0.0]), (2, *shifted.shape))
  np.testing.assert_allclose(shifted.apply(one, _image(2))[:, :-1], _image(2)[:, 1:], atol=1e-5)


@pytest.mark.parametrize('rank', [2, 3])
def test_nothing_folds_below_the_largest_displacement(rank):
  shape = tuple(2 * n for n in SHAPES[rank][:-1]) + (1,)
  transform = physical.deformation(shape, grid=4)
  most = physical.largest(shape, grid=4)
  worst = np.inf
  for seed in range(20):
    z = jnp.sign(_draw(transform, 1.0, seed))
    worst = min(worst, float(physical.jacobian(transform, most * z).min()))
    folds = float(physical.jacobian(transform, 3 * most * z).min())
    if seed == 0:
      assert folds < 0
  assert worst > 0


def test_labels_move_along():
  labels = jnp.zeros((1, 16, 16), jnp.int32).at[:, 4:9, 5:10].set(1)
  transform = physical.deformation((16, 16, 1), grid=8)
  one = jnp.broadcast_to(jnp.array([2.0, -3.0]), (1, *transform.shape))
  moved = physical.follow(transform, one, labels)
  np.testing.assert_array_equal(moved[0, 2:7, 8:13], 1)
  assert int(moved.sum()) == 25
  still = physical.offset((16, 16, 1))
  np.testing.assert_array_equal(physical.follow(still, jnp.ones((1, 1)), labels), labels)


def test_blur_is_scipys_with_borders_that_wrap():
  from scipy import ndimage

  transform, image = (
    physical.blur((32, 24, 1)),
    jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 24, 1)), jnp.float32),
  )
  found = transform.apply(jnp.array([[1.5, 2.0]]), image)[0, ..., 0]
  wanted = ndimage.gaussian_filter(
    np.asarray(image[0, ..., 0], np.float64), (1.5, 2.0), mode='wrap', truncate=10
  )
  np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_intensities_by_hand():
  image = jnp.array([[[[0.25], [1.5]]]])
  half = jnp.log(jnp.array([[0.5]]))
  gamma = physical.gamma(image.shape[1:]).apply(half, image)
  np.testing.assert_allclose(gamma.ravel(), [0.5, 1.5], rtol=1e-5)
  hu = physical.gamma(image.shape[1:], bounds=(-1.0, 4.0)).apply(half, image)
  np.testing.assert_allclose(hu.ravel(), [-1 + 5 * 0.5, -1 + 5 * np.sqrt(0.5)], rtol=1e-5)
  np.testing.assert_allclose(
    physical.offset(image.shape[1:]).apply(jnp.array([[-2.0]]), image).ravel(), [-1.75, -0.5]
  )
  scaled = physical.scale(image.shape[1:], centre=0.5).apply(jnp.array([[0.2]]), image)
  np.testing.assert_allclose(scaled.ravel(), [0.2, 1.7], rtol=1e-5)


def test_motion_is_the_artefact_with_a_chosen_path(monkeypatch):
  image = _image(2)
  transform = physical.motion(SHAPES[2])
  z = _draw(transform, 0.05)
  monkeypatch.setattr(corruptions, '_path', lambda key, count, dtype: corruptions.still(z[0]))
  wanted = corruptions.motion(jax.random.key(0), image[0], 1.0)
  np.testing.assert_allclose(transform.apply(z, image)[0], wanted, atol=1e-5)


def test_ghosts_lie_at_shares_of_the_side():
  image = _image(2)
  constant = jnp.mean(image, axis=1, keepdims=True)
  transform = physical.ghosting(SHAPES[2], every=2)
  z = jnp.broadcast_to(jnp.array([[0.1, -0.1], [0.0, 0.0]]), (2, 2, 2))
  ghost = jnp.roll(image - constant, SHAPES[2][0] // 2, axis=1)  # the central line stays
  np.testing.assert_allclose(transform.apply(z, image), jnp.abs(image + 0.1 * ghost), atol=1e-5)
  turned = transform.apply(z[:, ::-1], image) ** 2  # phases of 0.1 and -0.1
  wanted = (constant + np.cos(0.1) * (image - constant)) ** 2 + (np.sin(0.1) * ghost) ** 2
  np.testing.assert_allclose(turned, wanted, atol=1e-5)


@pytest.mark.parametrize('name', ['motion', 'ghosting'])
def test_artefacts_of_k_space_begin_smoothly_on_signed_images(name):
  image = _image(2) - 0.5
  transform = getattr(physical, name)(SHAPES[2])
  z = jax.random.normal(jax.random.key(1), (len(image), *transform.shape))
  np.testing.assert_array_equal(transform.apply(0 * z, image), image)
  assert jnp.abs(transform.apply(1e-4 * z, image) - image).max() < 0.05
  weights = jax.random.normal(jax.random.key(2), image.shape)
  slope = jax.grad(lambda z: (transform.apply(z, image) * weights).sum())(0 * z)
  assert jnp.isfinite(slope).all() and (jnp.abs(slope) > 0).any(axis=tuple(range(1, z.ndim))).all()


def test_a_patch_by_hand():
  image = jnp.full((1, 20, 40, 1), 0.25)
  apply = lambda *z, **options: physical.occlusion(
    image.shape[1:], edge=1e-3, **{'side': 0.2, **options}
  ).apply(jnp.asarray([z], jnp.float32), image)[0, ..., 0]
  wanted = np.full((20, 40), 0.25)
  wanted[8:12, 16:24] = 1
  np.testing.assert_allclose(apply(0, 0, 1), wanted, atol=1e-6)
  np.testing.assert_allclose(apply(0, 0, 3), wanted, atol=1e-6)  # opaque, not more
  wanted[8:12, 16:24] = 0.25 / 2
  np.testing.assert_allclose(apply(0, 0, -0.5), wanted, atol=1e-6)
  wanted = np.full((20, 40), 0.25)
  wanted[:4, 32:] = 0.5  # in a corner, of one value, whatever the sign
  for sign in (-1, 1):
    np.testing.assert_allclose(apply(-1, 1, sign, bounds=(0.5, 0.5)), wanted, atol=1e-6)
  # tiles: bright, dark / dark, untouched; between their centres a mixture
  tiled = np.asarray(apply(0, 0, 1, -1, -1, 0, side=0.4, tiles=2))[6:14, 12:28]
  np.testing.assert_allclose([tiled[0, 0], tiled[0, -1], tiled[-1, 0]], [1, 0, 0], atol=1e-6)
  np.testing.assert_allclose(tiled[-1, -1], 0.25)
  assert np.all(np.diff(tiled[0]) <= 0) and len(np.unique(tiled[0].round(4))) > 5


def test_a_search_finds_where_a_patch_hides_most():
  """As much as the best of 441 places, from the middle of the image."""
  shape = (16, 20, 1)
  transform = physical.occlusion(shape, side=0.3, bounds=(0.0, 0.0))
  grid = lambda *counts: np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in counts)), -1)
  far = grid(20, 16)[None] - np.array([[0.5, -0.4], [-0.45, 0.5]])[:, None, None]
  bump = jnp.asarray(np.exp(-4 * (far**2).sum(-1, keepdims=True)), jnp.float32)
  hidden = lambda image: -jnp.sum(image * bump, axis=(1, 2, 3))
  image, made = jnp.ones((2, *shape)), physical.space_of(transform)
  attack, told = attacks.pgd(num_steps=30, random_start=False, select='best'), {'eps': 1.0}
  run = jax.jit(lambda b: space.run(attack, hidden, b, space=made, key=jax.random.key(0), **told))
  found, size = run({'image': image})
  assert np.all(size <= 1 + 1e-6)
  places = jnp.asarray(grid(21, 21).reshape(-1, 2), jnp.float32)
  z = jnp.concatenate([places, jnp.ones((len(places), 1))], 1)
  light = transform.apply(z, jnp.ones((len(z), *shape))).reshape(len(z), -1)
  best = -jnp.min(light @ bump.reshape(2, -1).T, axis=0)
  start = hidden(transform.apply(jnp.zeros((2, 3)).at[:, 2].set(1), image))
  assert np.all(hidden(found) - best > -0.02 * (best - start))
  assert np.all(best - start > 0.5 * (start - hidden(image)))


def _smooth():
  y, x = np.meshgrid(np.linspace(0, 3, 12), np.linspace(0, 3, 14), indexing='ij')
  planes = [0.5 + 0.4 * np.sin(2 * y + k) * np.cos(x + k) for k in range(4)]
  return jnp.asarray(np.stack(planes).reshape(2, 2, 12, 14).transpose(0, 2, 3, 1), jnp.float32)


def _near(wanted):
  """An objective: how near an image is to a wanted one."""
  return lambda x: -jnp.sum(jnp.square(x - wanted), axis=(1, 2, 3))


def _search(transform, attack, objective, eps):
  batch, key = {'image': _smooth()}, jax.random.key(0)
  made = physical.space_of(transform)
  run = jax.jit(lambda b: space.run(attack, objective, b, space=made, eps=eps, key=key))
  image, distance = run(batch)
  assert np.all(distance <= eps + 1e-6)
  return objective(image)


@pytest.mark.parametrize(('name', 'eps'), [('bias_field', 0.3), ('deformation', 1.0)])
def test_a_search_finds_what_many_draws_do_not(name, eps):
  transform = physical.make(name, SHAPES[2])
  objective = _near(transform.apply(0.9 * _draw(transform, eps), _smooth()))
  found = _search(transform, attacks.apgd(num_steps=30), objective, eps)
  drawn = _search(transform, attacks.noise(restarts=30), objective, eps)
  assert np.all(found > 0.5 * drawn)  # both are below 0
  assert np.all(found > objective(_smooth()))


def test_a_search_of_motion_makes_the_objective_worse():
  transform = physical.motion(SHAPES[2])
  away = lambda x: -_near(_smooth())(x)
  found = _search(transform, attacks.apgd(num_steps=20, restarts=4), away, 0.05)
  drawn = _search(transform, attacks.noise(restarts=20), away, 0.05)
  assert np.all(found > drawn)


def test_a_composition_is_searched_jointly():
  field, warp = physical.bias_field(SHAPES[2]), physical.deformation(SHAPES[2], grid=6)
  both, image = physical.compose([(field, 0.2), (warp, 1.0)]), _smooth()
  np.testing.assert_array_equal(both.apply(jnp.zeros((2, *both.shape)), image), image)
  assert 'logarithm' in both.unit
  assert 'mm' in both.unit
  z = _draw(both, 0.9)
  first, second = z[:, : np.prod(field.shape)], z[:, np.prod(field.shape) :]
  by_hand = warp.apply(
    second.reshape(2, *warp.shape), field.apply(0.2 * first.reshape(2, *field.shape), image)
  )
  np.testing.assert_allclose(both.apply(z, image), by_hand, atol=1e-6)
  np.testing.assert_allclose(
    both.displacement(z), warp.displacement(second.reshape(2, *warp.shape)), atol=1e-6
  )
  attack, objective = attacks.apgd(num_steps=30), _near(by_hand)
  joint = _search(both, attack, objective, 1.0)
  assert np.all(joint > _search(field, attack, objective, 0.2))
  assert np.all(joint > _search(warp, attack, objective, 1.0))


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match='bias_fild'):
    physical.make('bias_fild', SHAPES[2])
  with pytest.raises(errors.UserError, match='does not fit'):
    physical.deformation(SHAPES[2], spacing=(1.0,))
  with pytest.raises(errors.UserError, match='at least 2 pixels'):
    physical.deformation(SHAPES[2], grid=1)
  with pytest.raises(errors.UserError, match='two spatial axes'):
    physical.motion((8, 1))
  with pytest.raises(errors.UserError, match='two spatial axes'):
    physical.ghosting((8, 1))
  with pytest.raises(errors.UserError, match='to the 12 lines, not 1'):
    physical.ghosting(SHAPES[2], every=1)
  with pytest.raises(errors.UserError, match='0 < side < 1'):
    physical.occlusion(SHAPES[2], side=1.0)
  with pytest.raises(errors.UserError, match='at least one'):
    physical.compose([])
  with pytest.raises(errors.UserError, match='at most one'):
    physical.compose([(physical.deformation(SHAPES[2]), 1.0)] * 2)


def test_the_pixels_that_count_move_with_their_labels():
  rng, image = np.random.default_rng(0), _image(2)
  labels = jnp.asarray(rng.integers(0, 3, image.shape[:-1]), jnp.int32)
  counted = labels != 2  # an ignored class
  warp = physical.deformation(SHAPES[2], grid=6)
  told = {'transform': warp, 'eps': 2.0, 'key': jax.random.key(0)}
  objective = lambda outputs, batch: jnp.sum(outputs, (1, 2, 3))
  search = lambda target, follows: physical.search(
    attacks.noise(),
    lambda image: image,
    objective,
    {'image': image, 'target': target},
    follows=follows,
    **told,
  )
  _, seen = search({'labels': labels, 'counted': counted}, True)
  assert np.any(np.asarray(seen['target']['counted']) != counted)
  np.testing.assert_array_equal(seen['target']['counted'], seen['target']['labels'] != 2)
  _, seen = search({'labels': labels, 'counted': counted}, False)
  np.testing.assert_array_equal(seen['target']['counted'], counted)
  with pytest.raises(errors.UserError, match='which the batch lacks'):
    search({'counted': counted}, True)


def test_2_mm_of_the_phantom_brain_with_labels_that_move_along_or_stay():
  case = phantom.draw(np.random.default_rng(0), {**phantom.DEFAULTS, 'side': 20})
  image = jnp.asarray(phantom.standardise(case))[None]
  batch = {'image': image, 'target': {'labels': jnp.asarray(case.labels, jnp.int32)[None]}}
  # what labels a voxel by its four series and those of its neighbours, fitted to this head
  near = lambda x: jnp.concatenate([jnp.roll(x, n, a) for a in (1, 2, 3) for n in (-1, 0, 1)], -1)
  wanted = np.eye(4)[case.labels.ravel()]
  rows = np.asarray(near(image)).reshape(-1, 36).astype(np.float64)
  weights = jnp.asarray(np.linalg.lstsq(rows, wanted, rcond=None)[0], jnp.float32)
  predict = lambda x: {'head0': 8 * (near(x) @ weights)}

  def badness(outputs, batch):
    right = jnp.argmax(outputs['head0'], -1) == batch['target']['labels']
    return -jnp.mean(right.astype(jnp.float32), (1, 2, 3))

  warp = physical.deformation(image.shape[1:], spacing=(1.0,) * 3, grid=8)
  assert physical.largest(image.shape[1:], spacing=(1.0,) * 3, grid=8) > 2.0
  told = {'transform': warp, 'eps': 2.0, 'key': jax.random.key(0), 'badness': badness}
  attack = attacks.apgd(num_steps=6, select='monitor', fold='max')
  values = {}
  for follows in (False, True):
    run = jax.jit(
      lambda b, f=follows: physical.search(
        attack, predict, segmentation.cross_entropy, b, follows=f, **told
      )
    )
    result, seen = run(batch)
    assert np.abs(result.x).max() <= 2 + 1e-5 and float(result.distance[0]) > 0.5
    assert physical.jacobian(warp, result.x).min() > 0
    np.testing.assert_allclose(seen['image'], warp.apply(result.x, image), atol=1e-5)
    labels = physical.follow(warp, result.x, batch['target']['labels'])
    labels = labels if follows else batch['target']['labels']
    np.testing.assert_array_equal(seen['target']['labels'], labels)
    assert np.any(np.asarray(labels) != case.labels) == follows
    values[follows] = float(badness(predict(seen['image']), seen)[0])
    np.testing.assert_allclose(values[follows], result.monitored[0], atol=2e-3)
  clean = float(badness(predict(image), batch)[0])
  assert values[False] > clean and values[True] > clean
  assert values[False] > values[True]  # labels that stay are wrong wherever the anatomy moved

"""The augmentation of nnU-Net slices: its parts against scipy, its table, its promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from robustmed import errors
from robustmed.data.decathlon import nnunet_augment as augment

PATCH = (10, 8)
NEVER = dict.fromkeys(augment.PROBABILITIES, 0.0)
ALWAYS = dict.fromkeys(augment.PROBABILITIES, 1.0)


def batch(size=4, grid=(13, 12), channels=2, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, (size, *grid)).astype(np.int32)
  labels[:, :2] = -1
  image = rng.normal(size=(size, *grid, channels)).astype(np.float32)
  image[:, :2] = 0
  target = {'labels': labels, 'other': np.arange(size)}
  return {'image': image, 'target': target, 'index': np.arange(size)}


def keys(size=4, seed=0):
  return jax.random.split(jax.random.key(seed), size)


@functools.cache
def program():
  """One compilation for all tests: the probabilities are traced."""
  make = lambda chances: augment.make(
    patch=PATCH, num_classes=3, mask_outside=True, probabilities=chances
  )
  return jax.jit(lambda chances, keys, batch: make(chances)(keys, batch))


def run(keys, data, chances):
  return program()({name: jnp.float32(value) for name, value in chances.items()}, keys, data)


def test_nothing_but_the_crop_where_nothing_fires():
  data = batch()
  out = run(keys(), data, NEVER)
  np.testing.assert_array_equal(out['image'], data['image'][:, 1:11, 2:10])
  np.testing.assert_array_equal(
    out['target']['labels'], np.maximum(data['target']['labels'], 0)[:, 1:11, 2:10]
  )
  np.testing.assert_array_equal(out['target']['other'], data['target']['other'])
  np.testing.assert_array_equal(out['index'], data['index'])


def test_everything_at_once_keeps_to_its_example_and_key():
  data = batch()
  first = run(keys(), data, ALWAYS)
  order = np.array([2, 0, 3, 1])
  shuffled = jax.tree.map(lambda leaf: leaf[order], data)
  shuffled['image'][1:], shuffled['target']['labels'][1:] = 7.0, 1
  second = run(keys()[order], shuffled, ALWAYS)
  assert np.isfinite(first['image']).all()
  for get in (lambda out: out['image'], lambda out: out['target']['labels']):
    np.testing.assert_allclose(get(first)[2], get(second)[0], atol=1e-6)
  assert set(np.unique(first['target']['labels'])) == {0, 1, 2}
  assert first['target']['labels'].dtype == jnp.int32
  other = run(keys(seed=1), data, ALWAYS)
  assert all(not np.allclose(a, b) for a, b in zip(first['image'], other['image']))


def test_mirrors_move_image_and_labels_together():
  data = batch()
  data['image'] = np.maximum(data['target']['labels'], 0)[..., None].astype(np.float32)
  out = run(keys(), data, {**NEVER, 'mirror': 1.0})
  np.testing.assert_array_equal(out['image'][..., 0], out['target']['labels'])
  np.testing.assert_array_equal(out['image'], data['image'][:, 1:11, 2:10][:, ::-1, ::-1])


def test_the_image_is_emptied_outside_of_the_scan():
  data = batch()
  data['image'] += 5
  out = run(keys(), data, NEVER)['image']
  assert (out[:, 0] == 0).all() and (out[:, 1:] != 0).all()


@functools.cache
def warp():
  def both(chance, keys, image, labels):
    draw = jax.vmap(lambda key: augment._draws(key, chance, 1))(keys)
    return draw, augment._spatial(image, labels, draw, PATCH, 3, max_angle=90.0)

  return jax.jit(both)


@pytest.mark.parametrize(('rotation', 'scaling'), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_rotation_and_scaling_are_scipy_s_linear_warp(rotation, scaling):
  data = batch(channels=1, grid=(16, 14))
  chance = {**NEVER, 'rotation': jnp.float32(rotation), 'scaling': jnp.float32(scaling)}
  draw, (image, labels) = warp()(chance, keys(), data['image'], data['target']['labels'])
  middle = np.array([3 + 4.5, 3 + 3.5])
  grid = np.stack(np.meshgrid(np.arange(10) - 4.5, np.arange(8) - 3.5, indexing='ij'))
  for i in range(4):
    u = {name: float(draw[name][i]) for name in ('angle', 'scale', 'scale_side')}
    angle = rotation * np.pi / 2 * (2 * u['angle'] - 1)
    below, above = 0.7 + 0.3 * u['scale'], 1 + 0.4 * u['scale']
    zoom = (below if u['scale_side'] < 0.5 else above) if scaling else 1
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    where = np.einsum('ij,jhw->ihw', turn, grid) + middle[:, None, None]
    sample = lambda x, where=where: ndimage.map_coordinates(
      x.astype(float), where, order=1, mode='grid-constant'
    )
    np.testing.assert_allclose(image[i, ..., 0], sample(data['image'][i, ..., 0]), atol=1e-4)
    maps = [sample(data['target']['labels'][i] == k) for k in (0, 1, 2)]
    for k, part in enumerate(maps):
      sure = np.abs(part - 0.5) > 1e-3
      if k:
        np.testing.assert_array_equal((labels[i] == k)[sure], (part > 0.5)[sure])
      else:  # undecided pixels of the scan are background, as in the original
        assert (np.asarray(labels[i])[sure & (part > 0.5)] == 0).all()
    outside = 1 - sum(maps)
    assert (np.asarray(labels[i])[outside > 0.501] == -1).all()
    assert (np.asarray(labels[i])[outside < 0.499] >= 0).all()


def apply_along(matrix, x):
  return np.einsum('ij,j...->i...', np.asarray(matrix), x)


@pytest.mark.parametrize('sigma', [0.5, 0.61, 0.83, 1.0])
def test_blur_is_scipy_s(sigma):
  x = np.random.default_rng(0).normal(size=(9, 2))
  matrix = jax.jit(augment._blur, static_argnums=0)(9, jnp.full((1, 1), sigma))[0, 0]
  theirs = ndimage.gaussian_filter1d(x, sigma, axis=0)
  np.testing.assert_allclose(apply_along(matrix, x), theirs, atol=1e-6)


@pytest.mark.parametrize('zoom', [0.5, 0.7, 1.0])
def test_low_resolution_forgets_and_interpolates(zoom):
  size = 10
  matrix = np.asarray(
    jax.jit(augment._coarsen, static_argnums=0)(size, jnp.full((1, 1), zoom))[0, 0]
  )
  np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
  cells = round(zoom * size)
  assert np.linalg.matrix_rank(matrix, tol=1e-4) == cells
  if zoom == 1:
    np.testing.assert_array_equal(matrix, np.eye(size))
  used = np.flatnonzero(np.abs(matrix).max(0) > 1e-6)
  kept = np.floor((np.arange(cells) + 0.5) * size / cells)
  np.testing.assert_array_equal(used, kept)
  # Cubic interpolation is exact on straight lines between the kept cells.
  line = np.zeros(size)
  line[used] = np.arange(cells)
  inner = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 1, cells - 2)
  where = (inner > 1) & (inner < cells - 2)
  np.testing.assert_allclose(apply_along(matrix, line)[where], inner[where], atol=1e-5)


def test_contrast_and_gamma_keep_what_they_promise():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 5, 2)), jnp.float32)
  factor = jnp.asarray([[0.75, 1.25], [1.0, 1.1]])
  y = jax.jit(augment._contrast)(x, factor)
  mean = x.mean((1, 2), keepdims=True)
  want = np.clip((x - mean) * factor[:, None, None] + mean, x.min((1, 2))[:, None, None], None)
  np.testing.assert_allclose(y, np.minimum(want, x.max((1, 2))[:, None, None]), atol=1e-6)
  y = jax.jit(augment._gamma)(x, factor)
  np.testing.assert_allclose(y.mean((1, 2)), x.mean((1, 2)), atol=1e-5)
  np.testing.assert_allclose(y.std((1, 2)), x.std((1, 2)), rtol=1e-4)
  np.testing.assert_allclose(y[1, ..., 0], x[1, ..., 0], atol=1e-4)  # power 1
  flat, order = np.asarray(x[0, ..., 0]).ravel(), np.asarray(y[0, ..., 0]).ravel()
  np.testing.assert_array_equal(np.argsort(flat), np.argsort(order))
  assert np.isfinite(augment._gamma(jnp.ones((1, 3, 3, 1)), jnp.ones((1, 1)))).all()


def test_the_table_fires_as_often_as_it_says():
  size = 4000
  draw = jax.jit(jax.vmap(lambda key: augment._draws(key, augment.PROBABILITIES, 2)))(keys(size))
  for name, chance in augment.PROBABILITIES.items():
    if name != 'mirror':
      deviation = (chance * (1 - chance) / size) ** 0.5
      assert abs(float(draw['on'][name].mean()) - chance) < 4 * deviation, name
  columns = [np.asarray(v, float).reshape(size, -1) for v in jax.tree.leaves(draw)]
  correlation = np.corrcoef(np.concatenate(columns, 1).T)
  assert np.abs(correlation - np.eye(len(correlation))).max() < 0.08
  scale = np.asarray(augment._two_sided(draw['scale_side'], draw['scale'], 0.7, 1.4))
  assert 0.7 <= scale.min() < 0.71 and 1.39 < scale.max() <= 1.4
  assert np.mean(scale < 1) == pytest.approx(0.5, abs=0.04)


def test_intensity_transforms_stay_in_their_ranges():
  data = batch()
  data['image'][:] = 1.0
  data['target']['labels'][:] = 0
  bright = np.asarray(run(keys(), data, {**NEVER, 'brightness': 1.0})['image'])
  assert (bright.std((1, 2)) < 1e-6).all()
  assert bright.min() >= 0.75 and bright.max() <= 1.25 and np.ptp(bright) > 0.2
  noisy = np.asarray(run(keys(), data, {**NEVER, 'noise': 1.0})['image']) - 1
  assert noisy.std((1, 2, 3)).min() > 0 and noisy.std((1, 2, 3)).max() < 0.13


def test_mistakes_are_named():
  with pytest.raises(errors.UserError, match=r"unknown augmentation 'mirrors'.*'mirror'"):
    augment.make(patch=PATCH, num_classes=2, probabilities={'mirrors': 1.0})
  with pytest.raises(errors.UserError, match=r'\(9, 12\) are smaller than the patch \(10, 8\)'):
    jax.eval_shape(augment.make(patch=PATCH, num_classes=3), keys(), batch(grid=(9, 12)))

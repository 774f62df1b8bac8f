import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import skimage.draw

from robustmed.data import augment, pipeline
from robustmed.data.spine import shapes

SIDE = 32


@pytest.fixture(scope='module')
def model(small):
  return shapes.fit(small.train.stack('contour'), 3)


@pytest.fixture(scope='module')
def batch(small):
  return next(
    pipeline.train_batches(small.train, batch_size=6, seed=0, shard_index=0, shard_count=1)
  )


def keys_of(batch):
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), batch['draw'])


@pytest.fixture(scope='module')
def virtual(model, batch):
  return jax.jit(augment.virtual_disk(model, side=SIDE))(keys_of(batch), batch)


def test_batch_keeps_its_other_fields(batch, virtual):
  assert set(virtual) == set(batch) and set(virtual['target']) == set(batch['target'])
  for name in ('index', 'group', 'draw', 'mask'):
    np.testing.assert_array_equal(virtual[name], batch[name])
  chex.assert_trees_all_equal_shapes_and_dtypes(
    jax.tree.map(jnp.asarray, dict(batch)), jax.tree.map(jnp.asarray, dict(virtual))
  )


def test_contours_come_from_the_model(model, batch, virtual):
  expected = jax.vmap(shapes.sample, in_axes=(0, None))(keys_of(batch), model)
  np.testing.assert_allclose(virtual['target']['contour'], expected, rtol=1e-5)


def test_masks_are_the_filled_contours(virtual):
  for contour, mask in zip(virtual['target']['contour'], virtual['target']['mask']):
    expected = skimage.draw.polygon2mask((SIDE, SIDE), np.asarray(contour)[:, ::-1])
    np.testing.assert_array_equal(mask[..., 0], expected)
    assert 20 < expected.sum() < SIDE * SIDE / 3


def reference_warp(image, contour, new_contour):
  """The same warp in float64 by scipy: radial basis r with an affine part, zero outside."""
  ticks = np.array([0, SIDE / 4 - 1, SIDE / 2 - 1, 3 * SIDE / 4 - 1, SIDE - 1])
  border = np.array([(x, y) for x in ticks for y in ticks if {x, y} & {0, SIDE - 1}])
  assert len(border) == 16
  spline = scipy.interpolate.RBFInterpolator(
    np.concatenate([new_contour, border]).astype(np.float64),
    np.concatenate([contour, border]).astype(np.float64),
    kernel='linear',
    degree=1,
  )
  y, x = np.mgrid[:SIDE, :SIDE]
  where = spline(np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64))
  rows_columns = where[:, ::-1].T.reshape(2, SIDE, SIDE)
  padded = np.pad(image.astype(np.float64), 2)
  return scipy.ndimage.map_coordinates(padded, rows_columns + 2, order=1)


def test_warp_equals_scipy(batch, virtual):
  for k in range(3):
    expected = reference_warp(
      batch['image'][k, ..., 0],
      batch['target']['contour'][k],
      np.asarray(virtual['target']['contour'][k]),
    )
    np.testing.assert_allclose(virtual['image'][k, ..., 0], expected, atol=5e-3)
    assert np.abs(expected - batch['image'][k, ..., 0]).mean() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize('stride', [1, 4])
def test_own_contour_leaves_the_image_as_it_is(batch, stride):
  contour = jnp.asarray(batch['target']['contour'])
  image = augment.warp_to(
    jnp.asarray(batch['image']), contour, contour, landmark_stride=stride, grid_stride=stride
  )
  np.testing.assert_allclose(image, batch['image'], atol=2e-3)


@pytest.mark.parametrize(('stride', 'tolerance'), [(1, 0.08), (2, 0.2)])
def test_texture_moves_with_the_contour(model, batch, stride, tolerance):
  """An image of x (or y) warped shows at the new contour where the old contour was."""
  rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
  ramp = jnp.asarray(np.stack([columns, rows], axis=-1))
  contour = batch['target']['contour']
  drawn = jax.vmap(shapes.sample, in_axes=(0, None))(keys_of(batch), model)
  read = augment.warp_to(
    jnp.broadcast_to(ramp, (6, *ramp.shape)),
    jnp.asarray(contour),
    drawn,
    landmark_stride=stride,
    grid_stride=stride,
  )
  found = [
    [
      scipy.ndimage.map_coordinates(np.asarray(image[..., c]), points[:, ::-1].T, order=1)
      for c in (0, 1)
    ]
    for image, points in zip(read, np.asarray(drawn))
  ]
  error = np.linalg.norm(np.swapaxes(found, 1, 2) - contour, axis=-1).mean(axis=1)
  assert error.max() < tolerance, error
  assert np.linalg.norm(np.asarray(drawn) - contour, axis=-1).mean() > 4 * error.mean()


def test_coarse_grid_is_close_to_the_full_warp(model, batch, virtual):
  coarse = augment.virtual_disk(model, side=SIDE, landmark_stride=4, grid_stride=4)
  result = jax.jit(coarse)(keys_of(batch), batch)
  np.testing.assert_array_equal(result['target']['mask'], virtual['target']['mask'])
  difference = np.abs(np.asarray(result['image'] - virtual['image']))
  assert difference.mean() < 0.02 < np.abs(np.asarray(virtual['image']) - batch['image']).mean()


@pytest.mark.parametrize('side', [16, 30, 33])
@pytest.mark.parametrize('stride', [2, 3, 4])
def test_interpolation_is_exact_for_lines(side, stride):
  knots = np.arange(0, side - 1 + stride, stride, dtype=np.float32)
  between = augment._interpolation(side, knots)
  assert knots[-1] >= side - 1
  np.testing.assert_allclose(between.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(between @ (3 * knots - 1), 3 * np.arange(side) - 1, rtol=1e-5)


@pytest.mark.slow
def test_samples_do_not_depend_on_their_neighbours(model, batch, virtual):
  alone = jax.tree.map(lambda leaf: leaf[2:4], dict(batch))
  result = augment.virtual_disk(model, side=SIDE)(keys_of(batch)[2:4], alone)
  np.testing.assert_allclose(result['image'], virtual['image'][2:4], atol=2e-3)
  np.testing.assert_array_equal(result['target']['mask'], virtual['target']['mask'][2:4])


def test_one_trace_and_new_samples_from_new_keys(model, batch):
  chex.clear_trace_counter()
  apply = jax.jit(
    chex.assert_max_traces(
      augment.virtual_disk(model, side=SIDE, landmark_stride=8, grid_stride=4), n=1
    )
  )
  first, again = apply(keys_of(batch), batch), apply(keys_of(batch), batch)
  later = {**batch, 'draw': batch['draw'] + 6}
  second = apply(keys_of(later), batch)
  np.testing.assert_array_equal(first['image'], again['image'])
  moved = np.abs(np.asarray(first['target']['contour'] - second['target']['contour']))
  assert (moved.max(axis=(1, 2)) > 0.1).all()


def test_polygon_mask_is_jitted(batch):
  contour = jnp.asarray(batch['target']['contour'][0])
  mask = augment.polygon_mask(contour, SIDE)
  np.testing.assert_array_equal(mask, batch['target']['mask'][0, ..., 0] > 0)

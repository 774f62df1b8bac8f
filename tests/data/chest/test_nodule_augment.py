import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.data.chest import nodule_augment

SIDE = 6


def batch(count=8, *, first=0):
  rng = np.random.default_rng(0)
  image = np.repeat(rng.uniform(size=(1, SIDE, SIDE, SIDE, 1)), count, 0).astype(np.float32)
  return {
    'image': jnp.asarray(image),
    'index': jnp.arange(first, first + count, dtype=jnp.int32),
    'target': {'soft': jnp.asarray(2 * image), 'target': jnp.ones(count, jnp.int32)},
  }


def keys(count=8):
  return jax.random.split(jax.random.key(0), count)


def symmetries(image):
  for axes in itertools.permutations(range(3)):
    for flips in itertools.product((1, -1), repeat=3):
      yield image.transpose(*axes, 3)[:: flips[0], :: flips[1], :: flips[2]]


def test_attacked_patches_are_mirrored_and_turned_alone():
  move = nodule_augment.patches(shift=2.0, scale=0.2, exact_from=100)
  given = batch(first=100)
  made = jax.jit(move)(keys(), given)
  one = np.asarray(given['image'][0])
  for image in np.asarray(made['image']):
    assert any(np.array_equal(image, other) for other in symmetries(one))
  np.testing.assert_array_equal(made['target']['soft'], 2 * made['image'])
  assert len({np.asarray(image).tobytes() for image in made['image']}) > 4


def test_real_patches_move_with_their_masks_by_no_more_than_allowed():
  move = nodule_augment.patches(shift=1.0, scale=0.0, exact_from=100)
  ramp = np.broadcast_to(np.arange(SIDE, dtype=np.float32)[:, None, None, None], (SIDE,) * 3 + (1,))
  given = batch()
  given['image'] = jnp.asarray(np.repeat(ramp[None], 8, 0))
  given['target']['soft'] = 2 * given['image']
  made = jax.jit(move)(keys(), given)
  np.testing.assert_allclose(made['target']['soft'], 2 * made['image'], rtol=1e-5)
  moved = np.sort(np.asarray(made['image']).reshape(8, -1), axis=1)
  still = np.sort(ramp.ravel())
  assert np.abs(moved - still).max() <= 1 + 1e-5 and np.abs(moved - still).max(1).min() > 0


def test_without_shift_and_scale_nothing_is_interpolated():
  move = nodule_augment.patches(shift=0.0, scale=0.0, exact_from=100)
  made = jax.jit(move)(keys(), batch())
  values = np.sort(np.asarray(made['image']).reshape(8, -1), axis=1)
  assert (values == values[:1]).all()


def test_centres_of_tiles_stay_on_their_nodules():
  centre = jnp.array([[[1.0, 2.0, 4.0], [0.0, 5.0, 3.0]]] * 8)
  image = np.zeros((8, SIDE, SIDE, SIDE, 1), np.float32)
  image[:, 1, 2, 4], image[:, 0, 5, 3] = 1.0, 2.0
  made = jax.jit(nodule_augment.tiles)(
    keys(), {'image': jnp.asarray(image), 'target': {'centre': centre, 'diameter': centre[..., 0]}}
  )
  for moved, points in zip(np.asarray(made['image']), np.asarray(made['target']['centre'])):
    cells = points.astype(int)
    assert [float(moved[tuple(cell)][0]) for cell in cells] == [1.0, 2.0]
  assert len({np.asarray(points).tobytes() for points in made['target']['centre']}) > 3


def test_a_scale_of_one_or_more_is_a_mistake():
  with pytest.raises(errors.UserError, match='augment needs shift >= 0'):
    nodule_augment.patches(shift=-1.0, scale=0.1, exact_from=0)

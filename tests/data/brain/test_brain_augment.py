import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from robustmed import errors
from robustmed.data.brain import brain_augment

SIDE = 8


def batch(rank, size=6):
  rng = np.random.default_rng(rank)
  spatial = (SIDE,) * rank
  labels = rng.integers(0, 4, (size, *spatial)).astype(np.int32)
  image = rng.uniform(0, 1, (size, *spatial, 2)).astype(np.float32)
  image[..., 0] = labels / 4  # so that image and labels can be compared after the same moves
  return {'image': image, 'target': {'labels': labels, 'box': np.zeros((size, 3, 2))}}


def keys(size=6, seed=0):
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(size))


@pytest.mark.parametrize('rank', [2, 3])
def test_flips_and_transposes_move_image_and_labels_together(rank):
  held = batch(rank)
  out = jax.jit(brain_augment.make(rotation=0))(keys(), held)
  image, labels = np.asarray(out['image']), np.asarray(out['target']['labels'])
  np.testing.assert_array_equal(image[..., 0], labels / np.float32(4))
  for before, after in zip(held['image'], image):
    np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))
  moved = [not np.array_equal(a, b) for a, b in zip(held['image'], image)]
  assert sum(moved) >= 3
  assert out['target']['box'] is held['target']['box'] or not np.any(out['target']['box'])


def test_last_axis_alone_is_flipped():
  held = batch(2, size=12)
  apply = brain_augment.make(rotation=0, flips='last', transposes=False)
  image = np.asarray(apply(keys(12), held)['image'])
  kinds = {
    'same' if np.array_equal(a, b) else 'flipped' if np.array_equal(a[:, ::-1], b) else 'other'
    for a, b in zip(held['image'], image)
  }
  assert kinds == {'same', 'flipped'}


@pytest.mark.parametrize('rank', [2, 3])
def test_a_turn_is_that_of_scipy_in_every_axial_slice(rank):
  rng = np.random.default_rng(1)
  spatial = (3, SIDE, SIDE)[3 - rank :]
  image = rng.uniform(0, 1, (*spatial, 2)).astype(np.float32)
  labels = rng.integers(0, 4, spatial)
  both = np.concatenate([image, labels[..., None].astype(np.float32)], axis=-1)
  got = np.asarray(brain_augment.rotate(both, np.float32(np.deg2rad(33.0))))
  want = scipy.ndimage.rotate(
    image, 33.0, axes=(-3, -2), reshape=False, order=1, mode='grid-constant'
  )
  np.testing.assert_allclose(got[..., :-1], want, atol=2e-5)
  assert set(np.unique(got[..., -1])) <= {0, 1, 2, 3}
  quarter = np.asarray(brain_augment.rotate(both, np.float32(np.pi / 2)))
  turned = [np.rot90(both, k, axes=(-3, -2)) for k in (1, 3)]
  assert min(np.abs(quarter - one).max() for one in turned) < 1e-4


@pytest.mark.parametrize(
  ('fields', 'says'),
  [({'rotation': 200.0}, r'rotation must lie in \[0, 180\]'), ({'flips': 'some'}, "'some'")],
)
def test_mistakes(fields, says):
  with pytest.raises(errors.UserError, match=says):
    brain_augment.make(**fields)

import jax
import jax.numpy as jnp
import numpy as np

from robustmed.data.labelled import augment


def batch(shape):
  rng = np.random.default_rng(0)
  labels = rng.integers(-1, 3, (4, *shape))
  image = np.where(labels[..., None] > 0, 5.0, 0.0) + rng.normal(0, 0.1, (4, *shape, 1))
  target = {'labels': jnp.asarray(labels, jnp.int16), 'case': jnp.arange(4)}
  return {'image': jnp.asarray(image, jnp.float32), 'target': target}


def test_labels_stay_on_their_voxels_in_any_rank():
  for shape in ((6, 8), (4, 6, 8)):
    one = batch(shape)
    keys = jax.random.split(jax.random.key(0), 4)
    made = augment.make(mirror=0.5)(keys, one)
    assert made['image'].shape == one['image'].shape
    assert np.abs(made['image'] - one['image']).max() > 1
    bright = np.asarray(made['image'][..., 0]) > 2.5
    np.testing.assert_array_equal(bright, np.asarray(made['target']['labels']) > 0)
    assert made['target']['labels'].min() == 0


def test_an_example_does_not_depend_on_its_neighbours():
  one, keys = batch((6, 8)), jax.random.split(jax.random.key(1), 4)
  whole = augment.make()(keys, one)
  part = augment.make()(keys[1:2], jax.tree.map(lambda leaf: leaf[1:2], one))
  np.testing.assert_allclose(whole['image'][1], part['image'][0], atol=1e-6)

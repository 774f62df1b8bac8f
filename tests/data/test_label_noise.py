import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from robustmed import errors
from robustmed.data import label_noise


def maps(shape, seed=0):
  rng = np.random.default_rng(seed)
  smooth = scipy.ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
  return np.digitize(smooth / smooth.std(), [0.2, 0.8, 1.4]).astype(np.int32)


@pytest.mark.parametrize('shape', [(14, 15), (9, 10, 11)])
def test_against_scipy(shape):
  labels = maps(shape)
  cube = np.ones((3,) * len(shape), bool)
  eroded = label_noise.erode(jnp.asarray(labels), 1)
  inside = scipy.ndimage.binary_erosion(labels > 0, cube, border_value=1)
  np.testing.assert_array_equal(eroded, np.where(inside, labels, 0))
  dilated = label_noise.dilate(jnp.asarray(labels), 1)
  largest = scipy.ndimage.maximum_filter(labels, 3, mode='constant')
  np.testing.assert_array_equal(dilated, np.where(labels == 0, largest, labels))
  assert (eroded > 0).sum() < (labels > 0).sum() < (dilated > 0).sum()


def test_swap():
  swapped = label_noise.swap(jnp.asarray([0, 1, 2, 3, 1]), 1, 3)
  np.testing.assert_array_equal(swapped, [0, 3, 2, 1, 3])


@pytest.mark.parametrize('kind', label_noise.KINDS)
def test_a_share_of_the_examples_always_the_same(kind):
  labels = jnp.asarray(np.stack([maps((8, 8), n) for n in range(40)]))
  batch = {
    'image': jnp.zeros((40, 8, 8, 1)),
    'target': {'labels': labels, 'other': jnp.ones(40)},
    'index': jnp.arange(40),
  }
  apply = jax.jit(label_noise.wrong_labels(kind=kind, share=0.4, seed=3))
  result = apply(jax.random.split(jax.random.key(0), 40), batch)
  changed = np.asarray((result['target']['labels'] != labels).any((1, 2)))
  assert 8 <= changed.sum() <= 24
  assert result['target']['labels'].dtype == labels.dtype
  order = np.random.default_rng(0).permutation(40)
  mixed = jax.tree.map(lambda leaf: leaf[order], batch)
  again = apply(jax.random.split(jax.random.key(9), 40), mixed)
  np.testing.assert_array_equal(again['target']['labels'], result['target']['labels'][order])
  none = label_noise.wrong_labels(kind=kind, share=0.0)(None, batch)
  np.testing.assert_array_equal(none['target']['labels'], labels)


def test_bad_settings():
  with pytest.raises(errors.UserError, match="kind of wrong labels 'melt'"):
    label_noise.wrong_labels(kind='melt', share=0.1)
  with pytest.raises(errors.UserError, match=r'a share in \[0, 1\]'):
    label_noise.wrong_labels(kind='erode', share=1.1)

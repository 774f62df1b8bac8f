import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.metrics import regions

MEMBERS = {'wt': [0, 1, 1, 1], 'tc': [0, 1, 0, 1], 'et': [0, 0, 0, 1]}


def random_maps(seed=0, shape=(3, 5, 6, 4)):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 4, shape), rng.integers(0, 4, shape)


def test_regions_are_those_of_the_challenge():
  for name, inside in MEMBERS.items():
    np.testing.assert_array_equal(regions.mask(jnp.arange(4), name), np.array(inside, bool))


def test_by_hand():
  truth = jnp.asarray([[0, 1, 2, 3, 3, 0]])
  found = jnp.asarray([[2, 1, 1, 3, 0, 0]])
  scores = regions.dice(found, truth)
  np.testing.assert_allclose(scores['dice_wt'], [2 * 3 / (4 + 4)])
  np.testing.assert_allclose(scores['dice_tc'], [2 * 2 / (3 + 3)])
  np.testing.assert_allclose(scores['dice_et'], [2 * 1 / (1 + 2)], rtol=1e-6)


@pytest.mark.parametrize(('found', 'truth', 'score'), [
  ([0, 2, 1], [0, 1, 2], 1), ([0, 3, 0], [0, 2, 1], 0), ([0, 2, 1], [0, 3, 1], 0),
])  # fmt: skip
def test_empty_enhancing_tumour(found, truth, score):
  found, truth = jnp.asarray([found]), jnp.asarray([truth])
  assert float(regions.dice(found, truth)['dice_et'][0]) == score
  columns = regions.counts(found, truth)
  assert regions.volume_dice(columns, np.zeros(1))['dice_et'][0] == score


def test_against_numpy():
  found, truth = random_maps()
  scores = regions.dice(jnp.asarray(found), jnp.asarray(truth))
  for name, inside in MEMBERS.items():
    one, two = np.array(inside, bool)[found], np.array(inside, bool)[truth]
    axes = (1, 2, 3)
    expected = 2 * (one & two).sum(axes) / (one.sum(axes) + two.sum(axes))
    np.testing.assert_allclose(scores[f'dice_{name}'], expected, rtol=1e-6)


def test_slices_add_up_to_volumes():
  found, truth = random_maps(1)
  found[1], truth[1] = np.where(found[1] == 3, 0, found[1]), np.where(truth[1] == 3, 0, truth[1])
  whole = regions.dice(jnp.asarray(found), jnp.asarray(truth))
  order = np.random.default_rng(2).permutation(15)
  flat = lambda array: jnp.asarray(array.reshape(15, 6, 4)[order])
  columns = regions.counts(flat(found), flat(truth))
  groups = np.repeat([7, 4, 9], 5)[order]
  stacked = regions.volume_dice(columns, groups)
  np.testing.assert_array_equal(stacked['group'], [4, 7, 9])
  for name in regions.REGIONS:
    wanted = np.asarray(whole[f'dice_{name}'])[[1, 0, 2]]
    np.testing.assert_allclose(stacked[f'dice_{name}'], wanted, rtol=1e-6)
  assert stacked['dice_et'][0] == 1

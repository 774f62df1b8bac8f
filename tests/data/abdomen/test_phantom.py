import numpy as np
import pytest

from robustmed.data.abdomen import ct_slices, phantom

FIELDS = {**phantom.DEFAULTS, 'depth': 6}


def volume(number=0, **more):
  fields = {**FIELDS, **more}
  return phantom.cases(fields)[number].read()


@pytest.fixture(scope='module')
def two():
  return volume(0), volume(1)


def test_every_organ_in_every_subject_and_no_two_alike(two):
  for one in two:
    assert one.image.shape == (6, 64, 64, 1) and one.spacing == (8.0, 6.0, 6.0)
    assert set(np.unique(one.labels)) == {0, 1, 2, 3, 4}
    sizes = [(one.labels == k).sum() for k in range(1, 5)]
    assert sizes[2] == max(sizes) and min(sizes) > 30
  assert (two[0].labels != two[1].labels).any()


def test_a_subject_follows_from_seed_and_number(two):
  again = volume(1, subjects=(5, 1, 1))
  np.testing.assert_array_equal(again.image, two[1].image)
  assert (volume(1, seed=3).labels != two[1].labels).any()


def test_organs_lie_where_they_should(two):
  for one in two:
    centre = [np.argwhere(one.labels == k).mean(axis=0) for k in range(1, 5)]
    pancreas, kidneys, liver, spleen = centre
    assert liver[2] < 32 < spleen[2]  # the patient's right and left
    assert kidneys[1] > pancreas[1] > liver[1] - 8  # kidneys at the back
    columns = np.argwhere(one.labels == 2)[:, 2]
    assert columns.min() < 26 and columns.max() > 38  # one on either side


def test_brightness_alone_does_not_tell_an_organ(two):
  image, labels = two[0].image[..., 0], two[0].labels
  for organ in range(1, 5):
    low, high = np.quantile(image[labels == organ], [0.1, 0.9])
    found = (image >= low) & (image <= high)
    assert (found & (labels == organ)).sum() < 0.75 * found.sum(), organ


def test_more_pixels_show_the_same_anatomy():
  fine = ct_slices.prepare(phantom.cases({**FIELDS, 'spacing': 3.0})[0], {**FIELDS, 'side': 128})
  assert fine.labels.shape == (6, 128, 128)
  assert {*np.unique(fine.labels)} == {0, 1, 2, 3, 4}

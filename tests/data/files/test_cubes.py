import numpy as np
import pytest
import scipy.ndimage

from robustmed import errors
from robustmed.data.files import cubes


def test_foreground_box_and_crop():
  mask = np.zeros((5, 6, 7), bool)
  np.testing.assert_array_equal(cubes.foreground_box(mask), [[0, 5], [0, 6], [0, 7]])
  mask[1, 2:4, 6] = mask[3, 3, 0] = True
  box = cubes.foreground_box(mask)
  np.testing.assert_array_equal(box, [[1, 4], [2, 4], [0, 7]])
  assert cubes.crop(mask, box).shape == (3, 2, 7) and cubes.crop(mask, box).sum() == mask.sum()


def test_nearest_resize_repeats_and_picks():
  labels = np.arange(8, dtype=np.int32).reshape(2, 2, 2)
  large = cubes.resize(labels, (4, 4, 6), order=0)
  np.testing.assert_array_equal(large, labels.repeat(2, 0).repeat(2, 1).repeat(3, 2))
  assert large.dtype == np.int32
  # the middle one of three
  np.testing.assert_array_equal(
    cubes.resize(labels.repeat(3, 0), (2, 2, 2), order=0)[:, 0, 0], labels[:, 0, 0]
  )
  np.testing.assert_array_equal(cubes.resize(large, (2, 2, 3), order=0)[..., ::2], labels)


def test_linear_resize_keeps_lines_range_and_channels():
  line = np.broadcast_to(np.arange(8.0)[:, None, None, None], (8, 4, 4, 2)).astype(np.float32)
  large = cubes.resize(line, (16, 4, 4), order=1)
  np.testing.assert_allclose(large[1:-1, 0, 0, 1], (np.arange(1, 15) + 0.5) / 2 - 0.5, atol=1e-5)
  noise = np.random.default_rng(0).uniform(size=(9, 9, 9)).astype(np.float32)
  for order in (1, 3):
    small = cubes.resize(noise, (4, 4, 4), order=order)
    assert small.min() >= 0 and small.max() <= 1 and small.dtype == np.float32
    assert abs(small.mean() - noise.mean()) < 0.02 and small.std() < 0.6 * noise.std()
  same = cubes.resize(noise, (9, 9, 9), order=1)
  np.testing.assert_array_equal(same, noise)
  assert not np.shares_memory(same, noise)
  with pytest.raises(errors.UserError, match='interpolation order 7'):
    cubes.resize(noise, (4, 4, 4), order=7)


def test_standardise_by_hand():
  image = np.zeros((2, 3, 3), np.float32)
  image[0] = np.arange(9).reshape(3, 3)
  mask = np.zeros(image.shape, bool)
  mask[0] = True
  result = cubes.standardise(image, mask)
  np.testing.assert_allclose(result[0], np.arange(9).reshape(3, 3) / 8, atol=1e-6)
  assert (result[1] == 0).all() and result.dtype == np.float32
  assert (cubes.standardise(image * 0 + 3, mask) == 0).all()
  assert (cubes.standardise(image, mask & False) == 0).all()


def test_standardise_cuts_outliers_and_ignores_scale():
  rng = np.random.default_rng(1)
  image = rng.normal(size=(20, 20, 20)).astype(np.float32)
  mask = scipy.ndimage.gaussian_filter(rng.normal(size=image.shape), 3) > 0
  image[np.unravel_index(np.flatnonzero(mask)[0], mask.shape)] = 1e4
  result = cubes.standardise(image, mask)
  z = (image[mask] - image[mask].mean()) / image[mask].std()
  assert result.max() == 1 and z.max() > 40
  expected = (np.clip(z, -5, 5) - z.min()) / (5 - z.min())
  np.testing.assert_allclose(result[mask], expected, atol=1e-5)
  np.testing.assert_allclose(cubes.standardise(image * 7 + 90, mask), result, atol=1e-4)

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from robustmed import errors
from robustmed.data.spine import ood


@pytest.mark.parametrize('side', [32, 64, 130])
def test_phantom_slices_look_like_a_chest(side):
  image = ood.load_images('', side=side, count=2, seed=1)
  assert image.shape == (2, side, side, 1) and image.dtype == np.float32
  assert image.min() >= 0 and image.max() <= 1
  for one in image[..., 0]:
    smooth = scipy.ndimage.gaussian_filter(one, side / 64)
    corner = smooth[: side // 16, : side // 16]
    assert corner.max() < 0.1  # air around
    parts, count = scipy.ndimage.label((smooth > 0.08) & (smooth < 0.45))
    sizes = np.sort(np.bincount(parts.ravel())[1:]) / side**2
    centres = scipy.ndimage.center_of_mass(
      smooth < 0.45, parts, 1 + np.argsort(np.bincount(parts.ravel())[1:])[-3:]
    )
    lungs = [x for y, x in centres if 0.3 * side < y < 0.7 * side and abs(x / side - 0.5) > 0.12]
    assert len(lungs) >= 2 and min(lungs) < side / 2 < max(lungs)  # one on either side
    assert 0.05 < sizes[-2] < 0.3
    assert (smooth > 0.8).mean() > 0.01  # bone


def test_image_i_depends_on_seed_and_i_alone():
  for draw in (lambda **k: ood.load_images('', **k), ood.noise_images):
    few, many = draw(side=32, count=2, seed=3), draw(side=32, count=4, seed=3)
    np.testing.assert_array_equal(few, many[:2])
    assert (draw(side=32, count=1, seed=4) != few[:1]).mean() > 0.5
    assert (many[0] != many[1]).mean() > 0.5


def test_noise_is_uniform():
  image = ood.noise_images(side=64, count=4)
  assert image.shape == (4, 64, 64, 1) and image.dtype == np.float32
  counts = np.histogram(image, bins=8, range=(0, 1))[0]
  assert counts.sum() == image.size
  np.testing.assert_allclose(counts / image.size, 1 / 8, atol=0.01)


def test_a_folder_of_pictures(tmp_path):
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 256, (20, 20), dtype=np.uint8)
  colour = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
  deep = rng.integers(0, 65536, (20, 20), dtype=np.uint16)
  for name, array in (('b_grey', grey), ('a_colour', colour), ('c_deep', deep)):
    Image.fromarray(array).save(tmp_path / f'{name}.png')
  image = ood.load_images(str(tmp_path), side=20, count=5)
  assert image.shape == (5, 20, 20, 1) and image.dtype == np.float32
  np.testing.assert_allclose(image[0, ..., 0], colour[..., 0] / 255, atol=1e-7)
  np.testing.assert_allclose(image[1, ..., 0], grey / 255, atol=1e-7)
  np.testing.assert_allclose(image[2, ..., 0], deep / 65535, atol=1e-7)
  np.testing.assert_array_equal(image[3:], image[:2])  # over again
  half = ood.load_images(str(tmp_path), side=10, count=1)[0, ..., 0]
  blocks = image[0, ..., 0].reshape(10, 2, 10, 2).mean(axis=(1, 3))
  assert np.corrcoef(half.ravel(), blocks.ravel())[0, 1] > 0.9
  np.testing.assert_allclose(half.mean(), blocks.mean(), atol=0.02)


def test_jpeg(tmp_path):
  ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
  Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(tmp_path / 'a.jpg', quality=95)
  image = ood.load_images(str(tmp_path), side=32, count=1)[0, ..., 0]
  np.testing.assert_allclose(image, ramp / 255, atol=0.02)


def test_bad_folders(tmp_path):
  with pytest.raises(errors.UserError, match=r'no image in .*put \.png or \.jpg'):
    ood.load_images(str(tmp_path), side=16, count=1)
  with pytest.raises(errors.UserError, match='no folder'):
    ood.load_images(str(tmp_path / 'gone'), side=16, count=1)
  (tmp_path / 'a.png').write_bytes(b'x')
  with pytest.raises(errors.UserError, match=r'a\.png: cannot be read'):
    ood.load_images(str(tmp_path), side=16, count=1)


def test_real_slice(shared_data):
  folder = shared_data / 'ood_lung_ct'
  if not folder.is_dir():
    pytest.skip(f'no {folder}')
  image = ood.load_images(str(folder), side=128, count=3)
  assert image.shape == (3, 128, 128, 1)
  np.testing.assert_array_equal(image[0], image[2])  # one picture for all, as in the paper
  low, high = np.percentile(image, [20, 80])
  assert low < 0.45 and high > 0.8  # lungs and chest wall

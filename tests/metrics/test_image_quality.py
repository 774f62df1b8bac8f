import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.metrics

from robustmed import errors
from robustmed.metrics import image_quality


def pair(shape, seed=0):
  """Smooth images [2, *shape, 3] in [0, 1] and the same with noise and another brightness."""
  rng = np.random.default_rng(seed)
  clean = scipy.ndimage.gaussian_filter(rng.normal(size=(2, *shape, 3)), (0, *[2] * len(shape), 0))
  clean = (clean - clean.min()) / np.ptp(clean)
  noisy = np.clip(0.9 * clean + 0.05 + rng.normal(scale=0.05, size=clean.shape), 0, 1)
  return clean.astype(np.float32), noisy.astype(np.float32)


@pytest.mark.parametrize('shape', [(24, 19), (12, 9, 11)])
def test_against_skimage(shape):
  clean, noisy = pair(shape)
  close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
  for scale in (1.0, 255.0):
    one, two = jnp.asarray(noisy * scale), jnp.asarray(clean * scale)
    ssim = [
      skimage.metrics.structural_similarity(a, b, data_range=scale, channel_axis=-1)
      for a, b in zip(noisy.astype(np.float64) * scale, clean.astype(np.float64) * scale)
    ]
    psnr = [
      skimage.metrics.peak_signal_noise_ratio(b * scale, a * scale, data_range=scale)
      for a, b in zip(noisy.astype(np.float64), clean.astype(np.float64))
    ]
    close(image_quality.ssim(one, two, data_range=scale), ssim)
    close(image_quality.psnr(one, two, data_range=scale), psnr)
    close(image_quality.psnr(two, one, data_range=scale), psnr)
  mse = skimage.metrics.mean_squared_error(noisy[1].astype(np.float64), clean[1])
  close(image_quality.rmse(jnp.asarray(noisy), jnp.asarray(clean))[1], np.sqrt(mse))


def test_by_hand():
  clean = jnp.zeros((2, 4, 4, 1))
  image = clean.at[1].set(0.1)
  np.testing.assert_allclose(image_quality.rmse(image, clean), [0, 0.1], rtol=1e-6)
  np.testing.assert_allclose(image_quality.psnr(image, clean), [np.inf, 20], rtol=1e-6)
  # the published table: a signed step of 0.05 of which 0.67 of the voxels took part
  moved = clean.at[:, :, :, 0].add(0.05 * np.sqrt(0.67))
  np.testing.assert_allclose(image_quality.psnr(moved, clean), 27.76, atol=0.01)
  np.testing.assert_allclose(image_quality.ssim(clean, clean), 1)
  # flat images differ in brightness alone
  expected = (2 * 0 * 0.1 + 1e-4) / (0.1**2 + 1e-4)
  np.testing.assert_allclose(image_quality.ssim(image, clean)[1], expected, rtol=1e-5)


def test_short_axes_take_their_whole_length():
  clean, noisy = pair((12, 12))
  flat = image_quality.ssim(jnp.asarray(noisy), jnp.asarray(clean))
  deep = image_quality.ssim(jnp.asarray(noisy)[:, None], jnp.asarray(clean)[:, None])
  np.testing.assert_allclose(deep, flat, rtol=1e-6)
  with pytest.raises(errors.UserError, match='more than one cell'):
    image_quality.ssim(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)))


def test_neighbours_do_not_matter():
  clean, noisy = map(jnp.asarray, pair((9, 9)))
  for measure in (image_quality.ssim, image_quality.psnr, image_quality.rmse):
    both = measure(noisy, clean)
    np.testing.assert_allclose(measure(noisy[1:], clean[1:])[0], both[1], rtol=1e-6)
    assert both.shape == (2,) and abs(both[0] - both[1]) > 0

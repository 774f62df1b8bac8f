import numpy as np
import pytest
import SimpleITK as sitk

from robustmed import errors
from robustmed.data.brain import n4, phantom

QUICK = n4.Settings(shrink=4, iterations=5)


@pytest.fixture(scope='module')
def biased():
  """(a series without bias, the brain, the same series under a known field)."""
  case = phantom.draw(np.random.default_rng(0), {**phantom.DEFAULTS, 'bias': 0.0, 'noise': 0.02})
  d, h, w = np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing='ij')
  field = np.exp(0.5 * d + 0.3 * h**2 - 0.2 * w * h)
  clean = case.series[..., 0]
  return clean, case.brain, (clean * field).astype(np.float32)


def test_a_known_field_is_mostly_removed(biased):
  clean, brain, image = biased
  fixed = n4.correct(image, n4.log_field(image, QUICK))
  left = np.log(fixed[brain] / clean[brain])
  assert left.std() < 0.7 * np.log(image[brain] / clean[brain]).std()
  assert fixed.dtype == np.float32 and (fixed[~brain] == 0).all()


def test_kept_points_are_those_of_the_full_field(biased):
  _, _, image = biased
  image = image[:, 4:, 6:]
  whole = sitk.GetImageFromArray(image)
  small = sitk.Shrink(whole, [4] * 3)
  fit = sitk.N4BiasFieldCorrectionImageFilter()
  fit.SetMaximumNumberOfIterations([5] * 4)
  fit.SetNumberOfThreads(1)
  fit.Execute(small, sitk.Cast(small > 0, sitk.sitkUInt8))
  full = sitk.GetArrayFromImage(fit.GetLogBiasFieldAsImage(whole))
  knots = n4.log_field(image, QUICK)
  np.testing.assert_allclose(n4.correct(np.ones_like(image), knots), np.exp(-full), atol=2e-3)


def test_a_constant_field_divides():
  image = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
  fixed = n4.correct(image, np.full((2, 2, 3), np.log(2)))
  np.testing.assert_allclose(fixed, image / 2, rtol=1e-6)


def test_nothing_to_fit():
  assert not n4.log_field(np.zeros((5, 6, 7), np.float32), QUICK).any()


def test_cache(tmp_path, biased, monkeypatch):
  calls = []
  monkeypatch.setattr(n4, 'log_field', lambda v, s: calls.append(s) or np.full((2, 2, 2), 0.25))
  get = lambda key, settings=QUICK: n4.cached_log_field(
    biased[2], settings, folder=tmp_path / 'n4', key=key
  )
  for key in (['a', 1], ['a', 1], ['a', 2]):
    np.testing.assert_array_equal(get(key), np.full((2, 2, 2), 0.25))
  assert len(calls) == 2
  get(['a', 1], QUICK._replace(shrink=2))
  assert len(calls) == 3
  for path in (tmp_path / 'n4').iterdir():
    path.write_bytes(path.read_bytes()[:40])
  get(['a', 1])
  assert len(calls) == 4


def test_settings():
  with pytest.raises(errors.UserError, match='n4_iterations must be >= 1'):
    n4.check(n4.Settings(iterations=0))

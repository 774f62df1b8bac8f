import numpy as np
import pytest
import skimage.transform

from robustmed.data.decathlon import preprocess

RNG = np.random.default_rng(0)


def volume(image, labels=None, spacing=(1.0, 1.0, 1.0)):
  image = np.asarray(image, np.float32)
  image = image[..., None] if image.ndim == 3 else image
  labels = np.zeros(image.shape[:3]) if labels is None else labels
  return preprocess.Volume(image, np.asarray(labels, np.int8), spacing)


def test_crop_to_the_union_of_the_modalities_with_holes_filled():
  image = np.zeros((7, 9, 9, 2))
  image[1:6, 2:7, 2:7, 0] = 5
  image[3, 4, 4] = 0  # a hole: inside
  image[2, 7, 3, 1] = -1  # the other modality reaches further
  labels = np.zeros((7, 9, 9))
  labels[1, 7, 2] = 2  # a label outside the mask stays
  got = preprocess.crop(volume(image, labels))
  assert got.image.shape == (5, 6, 5, 2) and got.labels.shape == (5, 6, 5)
  np.testing.assert_array_equal(got.image, image[1:6, 2:8, 2:7].astype(np.float32))
  assert got.labels[2, 2, 2] == 0
  want = np.zeros((5, 6, 5))
  want[:, 5] = -1
  want[1, 5, 1] = 0
  want[0, 5, 0] = 2
  np.testing.assert_array_equal(got.labels, want)


def test_an_empty_image_has_no_box():
  with pytest.raises(ValueError, match='zero everywhere'):
    preprocess.box(np.zeros((2, 2, 2, 1)))


def test_survey_by_hand():
  image = np.zeros((4, 5, 10))
  image[:, 1:5, 2:7] = 1
  assert preprocess.survey(volume(image, spacing=(3, 1, 2))) == ((4, 4, 5), (3.0, 1.0, 2.0), 0.4)


@pytest.mark.parametrize(
  ('shape', 'spacing', 'cases', 'voxels', 'axis'),
  [
    ((115, 320, 232), (1.37, 1.25, 1.25), 20, 20 * 115 * 320 * 232, 0),
    ((36, 50, 35), (1, 1, 1), 260, 16_380_000, 0),
    ((320, 20, 319), (0.62, 3.6, 0.62), 32, 32 * 20 * 320 * 319, 1),
  ],
)
def test_fingerprint_of_equal_cases(shape, spacing, cases, voxels, axis):
  survey = preprocess.Survey(shape, spacing, 0.725)
  found = preprocess.fingerprint([survey] * cases, modalities=2, classes=3)
  turned = lambda values: (values[axis], *values[:axis], *values[axis + 1 :])
  assert found.axis == axis and found.shape == turned(shape)
  assert found.spacing == pytest.approx(turned(spacing))
  assert found.voxels == voxels and found.cases == cases
  assert (found.modalities, found.classes, found.mask_norm) == (2, 3, True)


def test_fingerprint_of_unequal_cases():
  surveys = [
    preprocess.Survey((10, 20, 30), (2.0, 1.0, 1.0), 0.6),
    preprocess.Survey((12, 20, 31), (2.0, 1.0, 2.0), 0.8),
    preprocess.Survey((20, 26, 50), (4.0, 0.5, 1.0), 0.9),
  ]
  found = preprocess.fingerprint(surveys, modalities=1, classes=2)
  assert found.spacing == (2.0, 1.0, 1.0)
  assert found.shape == (12, 20, 50)  # medians of (10, 12, 40), (20, 20, 13), (30, 62, 50)
  assert found.crop_ratio == 0.8 and not found.mask_norm
  assert found.voxels == 3 * 12 * 20 * 50


def test_resampling_leaves_equal_spacing_alone():
  one = volume(RNG.normal(size=(2, 5, 6)), spacing=(3.0, 1.0, 1.0))
  got = preprocess.resample(one, (1.04, 1.0))  # rounds to the same shape
  assert got.image is one.image and got.spacing == (3.0, 1.04, 1.0)


def test_resampling_in_the_plane_against_skimage():
  image = RNG.normal(size=(3, 8, 10, 2)).astype(np.float32)
  labels = RNG.integers(-1, 3, size=(3, 8, 10))
  got = preprocess.resample(volume(image, labels, (4.0, 1.5, 0.5)), (1.0, 0.8))
  assert got.image.shape == (3, 12, 6, 2) and got.labels.shape == (3, 12, 6)
  assert got.spacing == (4.0, 1.0, 0.8)
  options = {'mode': 'edge', 'anti_aliasing': False}
  for z in range(3):
    for c in range(2):
      want = skimage.transform.resize(
        image[z, ..., c].astype(float), (12, 6), order=3, clip=True, **options
      )
      np.testing.assert_allclose(got.image[z, ..., c], want, atol=1e-5)
    maps = [
      skimage.transform.resize((labels[z] == label).astype(float), (12, 6), order=1, **options)
      for label in (-1, 0, 1, 2)
    ]
    best, winner = np.max(maps, axis=0), np.argmax(maps, axis=0) - 1
    sure = np.abs(best - 0.5) > 1e-9  # ties go to the larger label
    np.testing.assert_array_equal(got.labels[z][sure], np.where(best > 0.5, winner, 0)[sure])


def test_labels_resampled_by_hand():
  labels = np.zeros((1, 4, 4))
  labels[0, :2, :2] = 1
  labels[0, 2:, 2:] = 2
  got = preprocess.resample(volume(np.ones((1, 4, 4)), labels), (2.0, 2.0))
  np.testing.assert_array_equal(got.labels, [[[1, 0], [0, 2]]])


def test_normalise_with_and_without_the_mask():
  image = RNG.normal(7, 3, size=(2, 4, 4, 2)).astype(np.float32)
  got = preprocess.normalise(image)
  np.testing.assert_allclose(got.mean(axis=(0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(got.std(axis=(0, 1, 2)), 1, atol=1e-6)
  inside = RNG.random((2, 4, 4)) < 0.6
  got = preprocess.normalise(image, inside)
  assert (got[~inside] == 0).all()
  np.testing.assert_allclose(got[inside].mean(axis=0), 0, atol=1e-6)
  np.testing.assert_allclose(got[inside].std(axis=0), 1, atol=1e-6)
  np.testing.assert_array_equal(preprocess.normalise(np.full((1, 2, 2, 1), 3.0)), 0)


@pytest.mark.parametrize('width', [6, 10])
def test_apply_uses_the_mask_where_much_is_cropped_away(width):
  image = np.zeros((3, 6, 12))
  image[:, :, 1 : 1 + width] = RNG.uniform(1, 2, size=(3, 6, width))
  image[:, :2, 1:3] = 0  # a corner of air inside the box
  one = volume(image)
  found = preprocess.fingerprint([preprocess.survey(one)], modalities=1, classes=2)
  assert found.mask_norm == (width / 12 < 3 / 4)
  got = preprocess.apply(one, found)
  assert got.image.shape == (3, 6, width, 1) and (got.labels[:, :2, :2] == -1).all()
  if found.mask_norm:
    assert (got.image[:, :2, :2] == 0).all()
    np.testing.assert_allclose(got.image[got.labels >= 0].std(), 1, atol=1e-5)
  else:
    assert (got.image[:, :2, :2] < -1).all()
    np.testing.assert_allclose(got.image.std(), 1, atol=1e-5)


def test_apply_puts_the_slice_axis_first():
  image = RNG.uniform(1, 2, size=(5, 4, 6))
  labels = RNG.integers(0, 2, size=(5, 4, 6))
  one = volume(image, labels, (1.0, 3.0, 1.0))
  got = preprocess.apply(
    one, preprocess.fingerprint([preprocess.survey(one)], modalities=1, classes=2)
  )
  assert got.spacing == (3.0, 1.0, 1.0)
  np.testing.assert_array_equal(got.labels, labels.transpose(1, 0, 2))

import numpy as np
import pytest
import skimage.draw

from robustmed import errors
from robustmed.data.spine import phantom, phantom_shapes, render

FIELDS = {**phantom.DEFAULTS, 'side': 64}


def draw(stream, *, count=5, side=64, contrast=0.25, noise=0.03):
  rng = np.random.default_rng([0, stream])
  return phantom.draw_patient(rng, count=count, side=side, contrast=contrast, noise=noise)


def regions(contour, image):
  """Mean intensity of the nucleus, of the marrow above and below, and of the rim."""
  side = len(image)
  filled = _filled(contour, side)
  x, y = contour.mean(axis=0)
  rows, columns = np.mgrid[:side, :side]
  nucleus = (np.abs(columns - x) < 0.12 * side) & (np.abs(rows - y) < 0.03 * side) & filled
  marrow = (np.abs(columns - x) < 0.1 * side) & (np.abs(np.abs(rows - y) - 0.27 * side) < 3)
  rim = filled & ~_filled((contour - [x, y]) * 0.9 + [x, y], side)
  return image[nucleus].mean(), image[marrow].mean(), image[rim].mean()


def _filled(contour, side):
  return skimage.draw.polygon2mask((side, side), contour[:, ::-1])


def test_images_are_normalised_float32_and_contours_in_pixels():
  contour, image = draw(0)
  assert image.shape == (5, 64, 64) and image.dtype == np.float32
  np.testing.assert_array_equal(image.min(axis=(1, 2)), 0)
  np.testing.assert_array_equal(image.max(axis=(1, 2)), 1)
  assert contour.shape == (5, 176, 2) and contour.dtype == np.float32
  centre = (contour.min(axis=1) + contour.max(axis=1)) / 2
  np.testing.assert_allclose(centre, 31.5, atol=4)


def test_same_stream_same_bits_other_stream_other_images():
  one, two, other = draw(0), draw(0), draw(1)
  for a, b in zip(one, two):
    np.testing.assert_array_equal(a, b)
  assert np.abs(one[1] - other[1]).mean() > 0.02
  assert np.abs(one[1][0] - one[1][1]).mean() > 0.02


def test_contours_scale_with_the_side():
  small, large = draw(0, side=32)[0], draw(0, side=64)[0]
  np.testing.assert_allclose((large + 0.5) / 64, (small + 0.5) / 32, atol=1e-6)


def test_looks_like_t2_bright_nucleus_dark_rim_grey_marrow():
  drawn = [draw(stream) for stream in range(8)]
  values = np.array([regions(c, i) for contours, images in drawn for c, i in zip(contours, images)])
  nucleus, marrow, rim = values.T
  assert (nucleus > rim).all()
  assert 0.08 < np.median(nucleus - marrow) < 0.35
  assert 0.08 < np.median(marrow - rim) < 0.35


def test_canal_is_the_bright_band_on_the_right():
  bright = np.mean([draw(stream)[1].mean(axis=(0, 1)) for stream in range(6)], axis=0)
  assert bright[45:60].max() > 1.4 * bright[16:44].mean()


def test_contrast_and_noise_knobs():
  contour, faint = draw(2, contrast=0.1, noise=0.0)
  _, strong = draw(2, contrast=0.35, noise=0.0)
  _, noisy = draw(2, contrast=0.1, noise=0.06)
  for k in range(5):
    low, high = regions(contour[k], faint[k]), regions(contour[k], strong[k])
    assert high[0] - high[1] > low[0] - low[1] + 0.1
  assert 0.03 < np.std(noisy - faint) < 0.12  # more than 0.06 after normalising a faint image
  np.testing.assert_array_equal(faint, draw(2, contrast=0.1, noise=0.0)[1])


def test_disks_of_a_patient_share_texture_and_bias():
  rng = np.random.default_rng(0)
  same, other = render.draw_patient(rng), render.draw_patient(rng)
  shape = np.repeat(phantom_shapes.draw(rng, 1), 2, axis=0)
  level = [
    render.render(shape, who, np.random.default_rng(k), side=32, contrast=0.2, noise=0.0)
    for who, k in ((same, 1), (same, 2), (other, 1))
  ]
  low_pass = [image.mean(axis=0).reshape(4, 8, 4, 8).mean(axis=(1, 3)) for image in level]
  within = np.abs(low_pass[0] - low_pass[1]).mean()
  assert within < 0.7 * np.abs(low_pass[0] - low_pass[2]).mean()


def test_boundary_distance_is_that_of_a_circle():
  angle = np.linspace(0, 2 * np.pi, 176, endpoint=False) + np.pi
  circle = 0.2 * np.stack([np.cos(angle), -np.sin(angle)], axis=-1)[None].astype(np.float32)
  line = np.linspace(-0.5, 0.5, 65, dtype=np.float32)
  x, y = np.meshgrid(line, line)
  distance = render._boundary_distance(circle, x[None], y[None])[0]
  expected = np.hypot(x, y) - 0.2
  near = expected < 0.03
  np.testing.assert_allclose(distance[near], expected[near], atol=2e-3)
  assert (distance[expected > 0.03] > 0.028).all()


def test_a_smaller_cohort_is_a_part_of_a_larger():
  rows = {}
  for patients in (2, 3):
    fields = {**FIELDS, 'side': 16, 'train_patients': patients, 'test_patients': 1}
    builder = _builder(fields)
    rows[patients] = list(builder._patients(range(patients), first=0))
  assert len(rows[2]) == 10 and len(rows[3]) == 15
  for small, large in zip(rows[2], rows[3]):
    np.testing.assert_array_equal(small['image'], large['image'])


def test_train_and_test_patients_differ():
  fields = {**FIELDS, 'side': 16, 'train_patients': 1, 'test_patients': 1}
  train, test = (list(rows) for rows in _builder(fields).splits().values())
  assert np.abs(train[0]['contour'] - test[0]['contour']).max() > 0.1
  assert {row['group'] for row in train} == {0} and {row['group'] for row in test} == {1}
  assert [row['index'] for row in train + test] == list(range(10))


def _builder(fields):
  builder = object.__new__(phantom.Builder)  # no folder is needed to draw
  builder.fields = fields
  return builder


@pytest.mark.parametrize(
  ('name', 'value'),
  [('side', 8), ('train_patients', 0), ('disks_per_patient', -1), ('noise', 2.0)],
)
def test_values_out_of_range_are_user_errors(name, value):
  with pytest.raises(errors.UserError, match=f'{name} must'):
    phantom.fingerprint({**FIELDS, name: value})


def test_sizes_need_no_data():
  assert phantom.sizes(FIELDS) == {'train': 400, 'test': 100}

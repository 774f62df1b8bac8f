import numpy as np
import pytest
import skimage.draw
import skimage.measure

from robustmed.data.spine import phantom_shapes, shapes


def test_mean_has_the_size_and_the_order_of_the_pieces():
  mean = phantom_shapes.mean_contour()
  assert mean.shape == (176, 2)
  np.testing.assert_allclose(np.ptp(mean, axis=0), [0.5, 0.19], rtol=0.01)
  np.testing.assert_allclose((mean.max(axis=0) + mean.min(axis=0)) / 2, 0, atol=2e-3)
  left, bottom, right, top = np.split(mean, np.cumsum(phantom_shapes.PIECES)[:-1])
  assert left[:, 0].max() < -0.19 and right[:, 0].min() > 0.19
  assert bottom[:, 1].min() > 0.07 and top[:, 1].max() < -0.07  # y points down
  for piece, axis, sign in ((left, 1, 1), (bottom, 0, 1), (right, 1, -1), (top, 0, -1)):
    assert (sign * np.diff(piece[:, axis]) > 0).all()


def test_points_are_evenly_spaced_and_the_contour_is_closed():
  mean = phantom_shapes.mean_contour()
  step = np.linalg.norm(np.roll(mean, -1, axis=0) - mean, axis=-1)
  assert step.max() < 1.5 * step.min()


def test_modes_are_independent_and_fall_off():
  _, basis, deviation = phantom_shapes.modes()
  np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-10)
  assert len(deviation) >= 12 and (np.diff(deviation) < 0).all()
  np.testing.assert_allclose(
    np.sqrt((deviation**2).sum() / phantom_shapes.NUM_POINTS), phantom_shapes.SPREAD
  )


@pytest.mark.parametrize('seed', [0, 1])
def test_three_five_ten_components_explain_what_the_paper_says(seed):
  contours = phantom_shapes.draw(np.random.default_rng(seed), 400)
  explained = np.cumsum(np.asarray(shapes.fit(contours, 12).explained)) * 100
  np.testing.assert_allclose(explained[[2, 4, 9]], [70.5, 82.2, 91.4], atol=4)
  assert explained[11] < 97  # more than twelve modes carry variance


def test_contours_are_simple_and_inside_the_crop():
  contours = phantom_shapes.draw(np.random.default_rng(3), 200)
  assert np.abs(contours).max() < 0.48
  x, y = contours[..., 0], contours[..., 1]
  area = 0.5 * np.abs((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(axis=1))
  assert (area > 0.035).all() and (area < 0.19).all()
  # the even-odd area equals the shoelace area only where a contour does not cross itself
  for k in range(40):
    filled = skimage.draw.polygon2mask((256, 256), (contours[k, :, ::-1] + 0.5) * 256)
    assert skimage.measure.label(filled, connectivity=1).max() == 1
    np.testing.assert_allclose(filled.mean(), area[k], rtol=0.02)

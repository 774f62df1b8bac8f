import numpy as np
import pytest
import skimage.draw

from robustmed.data.spine import phantom_shapes, tracing

SIDE = 128


def fill(contour, shape=(SIDE, SIDE)):
  return skimage.draw.polygon2mask(shape, contour[:, ::-1])


def distances(one, two):
  return np.hypot(*(one - two).T)


def in_pixels(contour):
  return contour * SIDE + (SIDE - 1) / 2


@pytest.fixture(scope='module')
def phantoms():
  return in_pixels(phantom_shapes.draw(np.random.default_rng(0), 30))


def test_same_pieces_as_the_phantom():
  assert tracing.PIECES == phantom_shapes.PIECES


def test_the_mean_disk_comes_back_point_by_point():
  mean = in_pixels(phantom_shapes.mean_contour())
  away = distances(tracing.trace(fill(mean)), mean)
  assert away.mean() < 0.25 and away.max() < 0.6


def test_phantom_disks_come_back_nearly_point_by_point(phantoms):
  """Their points also slide along the outline, which a mask cannot show; 64 pixels long."""
  away = np.stack([distances(tracing.trace(fill(contour)), contour) for contour in phantoms])
  assert away.mean() < 1.6
  assert away.mean(axis=1).max() < 3.0
  rolled = [distances(np.roll(tracing.trace(fill(c)), 8, axis=0), c).mean() for c in phantoms]
  assert np.mean(rolled) > 3 * away.mean()  # the start point matters to this test


def test_the_inside_stays(phantoms):
  for contour in phantoms:
    mask = fill(contour)
    again = fill(tracing.trace(mask))
    assert 2 * (mask & again).sum() / (mask.sum() + again.sum()) > 0.99


def rectangle(angle, *, centre=(63.5, 60.0), half=(30.0, 8.0)):
  corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * half
  cos, sin = np.cos(angle), np.sin(angle)
  return corners @ np.array([[cos, sin], [-sin, cos]]) + centre


@pytest.mark.parametrize('degrees', [-60, -40, 0, 25, 50])
def test_order_of_a_turned_rectangle(degrees):
  angle = np.radians(degrees)
  box = rectangle(angle)
  contour = tracing.trace(fill(box))
  cos, sin = np.cos(angle), np.sin(angle)
  u, v = ((contour - [63.5, 60.0]) @ np.array([[cos, -sin], [sin, cos]])).T  # y points down
  left, bottom, right, top = np.split(np.arange(176), np.cumsum(tracing.PIECES)[:3])
  corner = tracing.CORNER * 30
  np.testing.assert_allclose(
    [u[0], u[24], u[88], u[112]], [-corner, -corner, corner, corner], atol=0.7
  )
  assert v[0] < -6 and v[24] > 6 and v[88] > 6 and v[112] < -6
  assert (u[left] < -corner + 0.7).all() and (u[right] > corner - 0.7).all()
  np.testing.assert_allclose(v[bottom], 8, atol=1.2)
  np.testing.assert_allclose(v[top], -8, atol=1.2)
  assert (np.diff(u[bottom]) > 0).all() and (np.diff(u[top]) < 0).all()
  for piece in (left, bottom, right, top):
    steps = np.hypot(*np.diff(contour[piece], axis=0).T)
    assert steps.max() < 1.15 * steps.min()  # chords of equal arcs


def test_frame_of_an_ellipse():
  angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
  for turn in (-0.5, 0.0, 0.7):
    ellipse = np.stack([20 * np.cos(angle), 6 * np.sin(angle)], axis=-1)
    ellipse = ellipse @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for way in (ellipse, ellipse[::-1]):
      place = tracing.frame(way + [31.0, 45.0])
      np.testing.assert_allclose(place.centre, [31, 45], atol=1e-9)
      np.testing.assert_allclose(place.axis, [np.cos(turn), np.sin(turn)], atol=1e-9)
      np.testing.assert_allclose(place.length, 40, rtol=1e-4)


def test_labels_and_parts():
  mask = np.zeros((30, 40), int)
  mask[2:8, 2:12] = 3  # 60 pixels
  mask[10:12, 2:12] = 1  # 20, too small
  mask[20:26, 2:9] = 7  # 42
  mask[20:22, 30:34] = 7  # a loose part of 8
  mask[14:18, 2:9] = mask[14:18, 30:37] = 5  # twice 28: together enough, none alone
  assert tracing.labels_of(mask) == [3, 7]
  part, count = tracing.largest_part(mask == 7)
  assert count == 2 and part.sum() == 42 and not part[:, 20:].any()
  assert tracing.labels_of(np.zeros((9, 9), int)) == []


def test_a_label_at_the_border_is_traced_along_it():
  mask = np.zeros((40, 40), bool)
  mask[20:30, :24] = True
  contour = tracing.trace(mask)
  np.testing.assert_allclose(contour.min(axis=0), [-0.5, 19.5], atol=0.6)
  np.testing.assert_allclose(contour.max(axis=0), [23.5, 29.5], atol=0.6)


@pytest.mark.parametrize('scale', [0.5, 1.0, 2.0])
def test_crop_shows_what_lies_there(scale):
  """A smooth image: intensities and contour move together, at any scale."""
  contour = rectangle(0.3, centre=(90.2, 101.7), half=(16.0, 5.0))
  dense = np.concatenate(
    [np.linspace(a, b, 44, endpoint=False) for a, b in zip(contour, np.roll(contour, -1, axis=0))]
  )
  side = round(scale * 2 * tracing.frame(dense).length)
  rows, columns = np.mgrid[:200, :180].astype(float)
  crop = tracing.crop(2 * columns + 3 * rows, dense, side=side)
  assert crop.image.shape == (side, side) and not crop.padded
  assert crop.image.min() == 0 and crop.image.max() == 1
  place = tracing.frame(crop.contour)
  np.testing.assert_allclose(place.length, side / 2, rtol=1e-6)
  np.testing.assert_allclose(place.centre, (side - 1) / 2, atol=1e-6)
  # the ramp's slope in the crop, away from its rim
  inner = crop.image[3:-3, 3:-3]
  gx, gy = np.diff(inner, axis=1), np.diff(inner, axis=0)
  np.testing.assert_allclose(gy.mean() / gx.mean(), 1.5, rtol=1e-3)
  np.testing.assert_allclose(gx, gx.mean(), rtol=0.02)


def test_crop_over_the_edge_repeats_it_and_says_so():
  contour = rectangle(0.0, centre=(20.0, 12.0), half=(16.0, 5.0))
  columns = np.mgrid[:80, :80][1].astype(float)
  crop = tracing.crop(columns, contour, side=64)
  assert crop.padded
  np.testing.assert_array_equal(crop.image[:, 0], 0)
  np.testing.assert_allclose(crop.image[0], crop.image[40])
  assert not tracing.crop(columns, contour + [20, 28], side=64).padded


def test_a_crop_without_contrast_is_refused():
  with pytest.raises(ValueError, match='constant'):
    tracing.crop(np.ones((64, 64)), rectangle(0.0, half=(10.0, 4.0)), side=32)

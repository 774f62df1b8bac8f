import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.metrics import landmarks


def slow_vote(heat, across, down, radius):
  """One landmark by plain loops; maps [h, w]."""
  height, width = heat.shape
  order = np.argsort(-heat.ravel(), kind='stable')[: int(3.14 * radius * radius)]
  votes = np.zeros((height, width), int)
  for place in order:
    y, x = divmod(int(place), width)
    to_x = x + int(np.float32(across[y, x]) * np.float32(radius))  # int() cuts towards zero
    to_y = y + int(np.float32(down[y, x]) * np.float32(radius))
    if 0 <= to_x < width and 0 <= to_y < height:
      votes[to_y, to_x] += 1
  y, x = divmod(int(votes.argmax()), width)
  return [x, y]


@pytest.mark.parametrize('radius, shape', [(3, (14, 11)), (10, (40, 32)), (4, (5, 6))])
def test_votes_agree_with_plain_loops(radius, shape):
  rng = np.random.default_rng(radius)
  size = (2, *shape, 3)
  heat = (rng.integers(0, 30, size) / 30).astype('f4')  # many ties
  across, down = rng.uniform(-1.2, 1.2, (2, *size)).astype('f4')
  found = landmarks.vote(heat, across, down, radius=radius)
  assert found.shape == (2, 3, 2)
  for b in range(2):
    for n in range(3):
      expected = slow_vote(heat[b, ..., n], across[b, ..., n], down[b, ..., n], radius)
      np.testing.assert_array_equal(found[b, n], expected)


def test_perfect_maps_give_the_landmark_back():
  """R = 10 at 200 x 160 means 314 voters; offsets (point - pixel) / R inside the disc."""
  points = np.array([[80, 100], [3, 196], [155, 7]])
  y, x = np.mgrid[:200, :160]
  maps = [[], [], []]
  for px, py in points:
    near = np.hypot(x - px, y - py) < 10
    rounded = lambda d: np.trunc(d) + 0.5 * np.sign(d)  # safe from rounding when cut
    for out, value in zip(maps, (near * 1.0, rounded(px - x) / 10, rounded(py - y) / 10)):
      out.append(np.where(near, value, 0))
  heat, across, down = (jnp.asarray(np.stack(m, -1)[None], jnp.float32) for m in maps)
  assert int(3.14 * landmarks.RADIUS**2) == 314
  np.testing.assert_array_equal(landmarks.vote(heat, across, down)[0], points)


def test_votes_that_leave_the_image_are_lost_and_do_not_come_back_on_the_other_side():
  heat = np.zeros((1, 6, 6, 1), 'f4')
  heat[0, 0, :3, 0] = [3, 2, 1]
  across = np.full((1, 6, 6, 1), -1.0, 'f4')
  down = np.zeros((1, 6, 6, 1), 'f4')
  found = landmarks.vote(heat, across, down, radius=1)  # three voters: to x = -1, 0 and 1
  np.testing.assert_array_equal(found[0, 0], [0, 0])
  nowhere = landmarks.vote(heat, across, down - 1, radius=1)
  np.testing.assert_array_equal(nowhere[0, 0], [0, 0])


def test_errors_by_hand():
  predicted = jnp.array([[[10.0, 10], [20, 20]], [[0, 0], [5, 5]]])
  target = jnp.array([[[13.0, 14], [20, 20]], [[0, 1], [5, 9]]])
  scale = jnp.array([[1.0, 1.0], [2.0, 0.5]])
  errors = landmarks.radial_errors(predicted, target, scale)
  np.testing.assert_allclose(errors, [[5, 0], [0.5, 2]])
  np.testing.assert_allclose(landmarks.mean_radial_error(predicted, target, scale), [2.5, 1.25])
  rate = lambda mm: landmarks.detection_rate(predicted, target, scale, threshold=mm)
  np.testing.assert_allclose(rate(2.0), [0.5, 0.5])  # strictly closer
  np.testing.assert_allclose(rate(2.5), [0.5, 1])
  np.testing.assert_allclose(rate(6.0), [1, 1])


def test_one_network_pixel_is_about_1_2_mm():
  scale = jnp.array([[193.5 / 160, 240 / 200]])
  step = landmarks.radial_errors(jnp.array([[[1.0, 0], [0, 1]]]), jnp.zeros((1, 2, 2)), scale)
  np.testing.assert_allclose(step[0], [1.209375, 1.2], rtol=1e-6)

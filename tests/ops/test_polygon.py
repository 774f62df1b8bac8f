import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.draw

from robustmed.ops import polygon


def _random_contour(rng, *, side, count):
  angle = np.sort(rng.uniform(0, 2 * np.pi, count))
  radius = side * rng.uniform(0.1, 0.6, count)  # reaches outside the image
  centre = rng.uniform(0.3, 0.7, 2) * side
  points = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  return points.astype(np.float32)


@pytest.mark.parametrize('side', [16, 33])
@pytest.mark.parametrize('count', [3, 7, 176])
def test_equals_skimage(side, count):
  rng = np.random.default_rng(side + count)
  contours = np.stack([_random_contour(rng, side=side, count=count) for _ in range(20)])
  masks = jax.jit(jax.vmap(lambda contour: polygon.fill(contour, side)))(contours)
  expected = [skimage.draw.polygon2mask((side, side), points[:, ::-1]) for points in contours]
  assert masks.dtype == bool
  np.testing.assert_array_equal(masks, np.stack(expected))
  assert 0.02 < np.mean(masks) < 0.9


def test_rectangle_by_hand():
  box = jnp.array([[0.5, 1.5], [3.5, 1.5], [3.5, 2.5], [0.5, 2.5]])
  expected = np.zeros((5, 5), bool)
  expected[2, 1:4] = True  # row 2, columns 1 to 3: x and y are not mixed up
  np.testing.assert_array_equal(polygon.fill(box, 5), expected)
  np.testing.assert_array_equal(polygon.fill(box[::-1], 5), expected)
  np.testing.assert_array_equal(polygon.fill(jnp.roll(box, 1, axis=0), 5), expected)


def test_differs_from_skimage_at_ties_only():
  box = np.array([[1, 1], [4, 1], [4, 3], [1, 3]], np.float32)
  ours = np.asarray(polygon.fill(jnp.asarray(box), 6))
  reference = skimage.draw.polygon2mask((6, 6), box[:, ::-1])
  differ = np.argwhere(ours != reference)
  on_edge = [(r in (1, 3) and 1 <= c <= 4) or (c in (1, 4) and 1 <= r <= 3) for r, c in differ]
  assert all(on_edge)
  assert ours[2, 2] and ours[2, 3]


def test_self_crossing_counts_crossings():
  inner = [[2.5, 2.5], [5.5, 2.5], [5.5, 5.5], [2.5, 5.5]]
  outer = [[0.5, 0.5], [7.5, 0.5], [7.5, 7.5], [0.5, 7.5]]
  ring = jnp.array([*outer, outer[0], *inner, inner[0]])  # walks both, joined by a seam twice
  mask = polygon.fill(ring, 9)
  assert not mask[4, 4]
  assert mask[1, 1] and mask[4, 1] and mask[6, 6]


def test_outside_and_degenerate_are_empty():
  away = jnp.array([[20.0, 20], [30, 20], [30, 30]])
  line = jnp.array([[1.2, 1.2], [6.7, 3.1], [1.2, 1.2]])
  assert not polygon.fill(away, 8).any()
  assert not polygon.fill(-away, 8).any()
  assert not polygon.fill(line, 8).any()
  assert polygon.fill(jnp.array([[-5.0, -5], [20, -5], [20, 20], [-5, 20]]), 8).all()


def test_gradient_is_zero_and_one_trace_serves_all_contours():
  traces = []

  def area(contour):
    traces.append(None)
    return jnp.sum(polygon.fill(contour, 16).astype(jnp.float32) * jnp.sum(contour) / 100)

  gradient = jax.jit(jax.grad(area))
  for shift in range(3):
    contour = jnp.array([[2.5, 2.5], [9.5, 2.5], [9.5, 9.5]]) + shift
    np.testing.assert_allclose(gradient(contour), polygon.fill(contour, 16).sum() / 100, rtol=1e-6)
  assert len(traces) == 1


def _widths(points, side):
  """The share of every pixel's width inside of a contour, from the crossings of each row."""
  out = np.zeros((side, side))
  for row in range(side):
    ends = []
    for (x, y), (next_x, next_y) in zip(points, np.roll(points, -1, axis=0)):
      if (y <= row) != (next_y <= row):
        ends.append(x + (row - y) * (next_x - x) / (next_y - y))
    for first, last in zip(sorted(ends)[::2], sorted(ends)[1::2]):
      for column in range(side):
        out[row, column] += max(0, min(last, column + 0.5) - max(first, column - 0.5))
  return out


def test_coverage_is_the_width_inside_and_has_a_gradient():
  rng, side = np.random.default_rng(0), 16
  for _ in range(5):
    points = _random_contour(rng, side=side, count=12)
    wanted = _widths(points.astype(np.float64), side)
    for way in (points, points[::-1]):
      np.testing.assert_allclose(polygon.coverage(jnp.asarray(way), side), wanted, atol=1e-4)
  box = jnp.array([[2.2, 2.5], [9.3, 2.5], [9.3, 12.5], [2.2, 12.5]])
  total = lambda points: jnp.sum(polygon.coverage(points, side))
  np.testing.assert_allclose(total(box), 10 * 7.1, rtol=1e-6)
  slopes = jax.grad(total)(box)[:, 0]
  # the rows between both ends of an edge, ten in all, move with them
  np.testing.assert_allclose(slopes.reshape(2, 2).sum(0)[::-1], [0, 0], atol=1e-5)
  np.testing.assert_allclose([slopes[0] + slopes[3], slopes[1] + slopes[2]], [-10, 10], rtol=1e-5)
  assert not np.any(polygon.coverage(box + 40, side))

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.metrics.boxes import geometry


def random_boxes(rng, *shape, size=20.0):
  corner = rng.uniform(0, size, (*shape, 2))
  return np.concatenate([corner, corner + rng.uniform(1, size / 2, (*shape, 2))], -1).astype('f4')


def slow_iou(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
  height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
  union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
  return width * height / union


def slow_ciou(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  v = (
    4
    / math.pi**2
    * (np.arctan((b[2] - b[0]) / (b[3] - b[1])) - np.arctan((a[2] - a[0]) / (a[3] - a[1]))) ** 2
  )
  centre = lambda box: (box[:2] + box[2:]) / 2
  diagonal = np.sum((np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])) ** 2)
  overlap = slow_iou(a, b)
  alpha = v / (1 - overlap + v) if v else 0.0
  return overlap - np.sum((centre(a) - centre(b)) ** 2) / diagonal - alpha * v


def test_iou_by_hand():
  one = jnp.array([0.0, 0, 2, 2])
  two = jnp.array(
    [[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 2, 1], [3, 3, 1, 1], [1, 1, 1, 1]]
  )
  found = geometry.pairwise_iou(one[None], two)[0]
  np.testing.assert_allclose(found, [1, 1 / 7, 0, 0.5, 0, 0], atol=1e-6)
  assert found.dtype == jnp.float32
  nothing = jnp.zeros(4)
  assert geometry.iou(nothing, nothing) == 0


def test_overlaps_agree_with_the_formulas():
  rng = np.random.default_rng(0)
  first, second = random_boxes(rng, 40), random_boxes(rng, 40)
  for ours, slow in ((geometry.iou, slow_iou), (geometry.ciou, slow_ciou)):
    expected = [slow(a, b) for a, b in zip(first, second)]
    np.testing.assert_allclose(ours(first, second), expected, atol=2e-6)
  table = geometry.pairwise_iou(jnp.asarray(first[:5]), jnp.asarray(second[:7]))
  np.testing.assert_allclose(
    table, [[slow_iou(a, b) for b in second[:7]] for a in first[:5]], atol=1e-6
  )


def test_ciou_is_one_for_equal_boxes_and_falls_with_distance():
  rng = np.random.default_rng(1)
  box = random_boxes(rng, 10)
  np.testing.assert_allclose(geometry.ciou(box, box), 1, atol=1e-5)
  far = [geometry.ciou(box, box + shift) for shift in (1.0, 10.0, 100.0, 1e4)]
  assert (np.diff(far, axis=0) < 0).all() and (np.asarray(far) >= -2).all()


def test_ciou_gradient_is_that_with_alpha_held():
  a, b = np.array([0.0, 0, 4, 2]), np.array([1.0, 0.5, 3, 4.5])
  v = 4 / math.pi**2 * (np.arctan(2 / 4) - np.arctan(4 / 2)) ** 2
  alpha = v / (1 - slow_iou(a, b) + v)

  def held(a):
    v = 4 / math.pi**2 * (np.arctan(2 / 4) - np.arctan((a[2] - a[0]) / (a[3] - a[1]))) ** 2
    diagonal = np.sum((np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])) ** 2)
    distance = np.sum((a[:2] + a[2:] - b[:2] - b[2:]) ** 2) / 4 / diagonal
    return slow_iou(a, b) - distance - alpha * v

  assert held(a) == pytest.approx(slow_ciou(a, b))
  step = 1e-5
  expected = [(held(a + step * unit) - held(a - step * unit)) / (2 * step) for unit in np.eye(4)]
  np.testing.assert_allclose(
    jax.grad(geometry.ciou)(jnp.asarray(a, jnp.float32), b), expected, atol=1e-5
  )


DEGENERATE = [
  [0, 0, 0, 0],
  [5, 5, 5, 9],
  [5, 5, 9, 5],
  [9, 9, 5, 5],
  [0, 0, 640, 0],
  [0, 0, 1e-6, 1e-6],
  [0, 0, 1e6, 1e6],
]


@pytest.mark.parametrize('kind', [geometry.iou, geometry.ciou])
def test_gradients_are_finite_at_boxes_without_area(kind):
  given = jnp.asarray([(a, b) for a in DEGENERATE for b in DEGENERATE], jnp.float32)
  value, slopes = jax.vmap(jax.value_and_grad(kind, argnums=(0, 1)))(given[:, 0], given[:, 1])
  assert np.isfinite(value).all() and all(np.isfinite(slope).all() for slope in slopes)


def slow_nms(given, scores, *, confidence, iou_threshold, max_detections, multi_label, mask):
  """(source, class, score) in greedy order; float32 scores, ties by box, then by class."""
  candidates = []
  for n, row in enumerate(scores):
    for c, score in enumerate(row):
      if score > confidence and mask[n] and (multi_label or c == int(np.argmax(row))):
        candidates.append((-score, n, c))
  overlap = [[slow_iou(a, b) for b in given] for a in given]
  kept = []
  for score, n, c in sorted(candidates):
    if all(k != c or overlap[n][m] <= iou_threshold for _, m, k in kept):
      kept.append((score, n, c))
  return [(n, c, -score) for score, n, c in kept[:max_detections]]


@pytest.mark.parametrize('multi_label', [True, False])
def test_suppression_agrees_with_a_plain_loop(multi_label):
  rng = np.random.default_rng(2)
  max_detections = 20
  given = random_boxes(rng, 6, 40)
  scores = (rng.integers(0, 12, (6, 40, 3)) / 12).astype('f4')  # many ties
  mask = rng.uniform(size=(6, 40)) < 0.8
  mask[:2] &= np.arange(40) < 6  # fewer than the most allowed
  options = {'confidence': 0.2, 'iou_threshold': 0.35, 'max_detections': max_detections}
  options['multi_label'] = multi_label
  run = jax.vmap(lambda b, s, m: geometry.nms(b, s, mask=m, **options))
  found = jax.device_get(run(given, scores, mask))
  for i in range(6):
    expected = slow_nms(given[i], scores[i], mask=mask[i], **options)
    count = int(found.mask[i].sum())
    assert count == len(expected) and found.mask[i][:count].all()
    rows = zip(found.source[i][:count], found.classes[i][:count], found.scores[i][:count])
    assert [(int(n), int(c), float(s)) for n, c, s in rows] == expected
    np.testing.assert_array_equal(
      found.boxes[i][:count], given[i][np.asarray(found.source[i][:count])]
    )
    assert (count < max_detections) == (i < 2)
    assert not found.boxes[i][count:].any() and not found.scores[i][count:].any()


def test_suppression_by_hand():
  given = jnp.array(
    [[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 20, 20], [0, 0, 10, 10]]
  )
  scores = jnp.array([[0.9, 0.1], [0.8, 0.7], [0.8, 0.75], [0.3, 0.0], [0.05, 0.05]])
  options = {'confidence': 0.1, 'iou_threshold': 0.5, 'max_detections': 5}
  found = geometry.nms(given, scores, **options)
  # of class 0 the first box and the one without area; of class 1 the third, which beats the second
  np.testing.assert_array_equal(found.source, [0, 2, 3, 0, 0])
  np.testing.assert_array_equal(found.classes, [0, 1, 0, 0, 0])
  np.testing.assert_array_equal(found.mask, [1, 1, 1, 0, 0])
  np.testing.assert_allclose(found.scores, [0.9, 0.75, 0.3, 0, 0])
  single = geometry.nms(given, scores, multi_label=False, **options)
  np.testing.assert_array_equal(single.source[:2], [0, 3])
  none = geometry.nms(given, scores, mask=jnp.zeros(5, bool), **options)
  assert not none.mask.any()


def test_an_overlap_at_the_threshold_stays():
  given = jnp.array([[0.0, 0, 2, 2], [0, 0, 2, 1]])  # IoU 1/2
  scores = jnp.array([[0.9], [0.8]])
  count = lambda threshold: int(geometry.nms(given, scores, iou_threshold=threshold).mask.sum())
  assert count(0.5) == 2 and count(0.49) == 1

"""Boxes in three axes: overlaps against counted cells, suppression against a plain loop."""

import numpy as np
import pytest

from robustmed.metrics.froc import volume_boxes


def cells(centre, size, grid=16):
  """The cells of a box whose borders lie on a grid."""
  axes = np.meshgrid(*[np.arange(grid) + 0.5] * len(centre), indexing='ij')
  return np.all([abs(a - c) < s / 2 for a, c, s in zip(axes, centre, size)], axis=0)


def boxes(rng, count, rank=3):
  size = rng.integers(1, 7, (count, rank))
  low = rng.integers(0, 9, (count, rank))
  return (low + size / 2).astype(np.float32), size.astype(np.float32)


def test_overlap_is_that_of_the_cells():
  rng = np.random.default_rng(0)
  centre, size = boxes(rng, 30)
  found = volume_boxes.iou(centre[:, None], size[:, None], centre[None], size[None])
  near = np.stack(
    [volume_boxes.by_overlap(centre, size, 0.2)(index) for index in range(len(centre))]
  )
  filled = [cells(c, s) for c, s in zip(centre, size)]
  for i, one in enumerate(filled):
    want = [(one & other).sum() / (one | other).sum() for other in filled]
    np.testing.assert_allclose(found[i], want, atol=1e-6)
    np.testing.assert_array_equal(near[i], np.array(want) > 0.2)
  assert 0.02 < np.mean((np.asarray(found) > 0) & (np.asarray(found) < 1)) < 0.98


def test_cubes_broadcast_over_boxes_and_nothing_has_no_overlap():
  centre = np.zeros((1, 3), np.float32)
  cube, box = np.full((1, 1), 2.0), np.array([[2.0, 2.0, 4.0]])
  assert volume_boxes.iou(centre, cube, centre, box)[0] == pytest.approx(0.5)
  assert volume_boxes.iou(centre, cube, centre, 0 * cube)[0] == 0
  assert volume_boxes.iou(centre, 0 * cube, centre, 0 * cube)[0] == 0


def plain(score, same, limit):
  """Takes the best pair-wise: a candidate stays unless a better one that stayed is the same."""
  kept = []
  for i in sorted(range(len(score)), key=lambda i: (-score[i], i)):
    if len(kept) < limit and not any(same[j, i] for j in kept):
      kept.append(i)
  return kept


@pytest.mark.parametrize(('seed', 'limit'), [(0, 99), (1, 99), (2, 5)])
def test_suppression_is_the_plain_loop(seed, limit):
  rng = np.random.default_rng(seed)
  centre, size = boxes(rng, 60)
  score = rng.integers(0, 12, 60) / 12  # with ties
  far = np.sum((centre[:, None] - centre[None]) ** 2, axis=-1) < 3.0**2
  found = volume_boxes.nms(score, volume_boxes.by_distance(centre, 3.0), limit=limit)
  assert list(found) == plain(score, far, limit)
  overlap = np.asarray(volume_boxes.iou(centre[:, None], size[:, None], centre[None], size[None]))
  near = volume_boxes.by_overlap(centre, size, 0.15)
  found = volume_boxes.nms(score, near, limit=limit)
  assert list(found) == plain(score, overlap > 0.15, limit)
  assert len(found) < 60


def test_of_nothing_nothing_is_left():
  none = np.zeros((0, 3))
  assert len(volume_boxes.nms(np.zeros(0), volume_boxes.by_distance(none, 1.0))) == 0

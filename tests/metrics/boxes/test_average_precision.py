import contextlib
import io

import numpy as np
import pytest
from pycocotools import coco as coco_lib
from pycocotools import cocoeval

from robustmed import errors
from robustmed.metrics.boxes import average_precision as ap_lib


def image(rng, *, num_classes=3, found=(0, 25), labels=(0, 9)):
  """Labels and detections that lie near them, far from them, twice on them, in the wrong class."""
  count = rng.integers(*labels)
  corner = rng.integers(0, 60, (count, 2))
  true_boxes = np.concatenate([corner, corner + rng.integers(5, 40, (count, 2))], -1).astype(float)
  true_classes = rng.integers(0, num_classes, count)
  size = rng.integers(*found)
  if count:
    chosen = rng.integers(0, count, size)
    boxes = true_boxes[chosen] + rng.integers(-4, 5, (size, 4)) * rng.integers(0, 2, (size, 1))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    wrong = rng.uniform(size=size) < 0.2
    classes = np.where(wrong, rng.integers(0, num_classes, size), true_classes[chosen])
  else:
    boxes, classes = rng.uniform(0, 9, (size, 4)) + [0, 0, 10, 10], rng.integers(0, 3, size)
  scores = rng.integers(0, 12, size) / 12  # ties
  return ap_lib.Image(boxes, scores, classes, true_boxes, true_classes)


def cases(seed, *, count=12, **options):
  rng = np.random.default_rng(seed)
  return [image(rng, **options) for _ in range(count)]


def coco(images, *, num_classes):
  """Precision by class and threshold, from pycocotools."""

  def rows(boxes, classes, image_id):
    return [
      {
        'image_id': image_id,
        'category_id': int(c) + 1,
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'area': (x2 - x1) * (y2 - y1),
        'iscrowd': 0,
      }
      for (x1, y1, x2, y2), c in zip(boxes.tolist(), classes)
    ]

  truth, found = [], []
  for number, one in enumerate(images, start=1):
    truth += rows(one.true_boxes, one.true_classes, number)
    new = rows(one.boxes, one.classes, number)
    found += [{**row, 'score': float(score)} for row, score in zip(new, one.scores)]
  for number, row in enumerate(truth, start=1):
    row['id'] = number
  with contextlib.redirect_stdout(io.StringIO()):
    ours = coco_lib.COCO()
    ours.dataset = {
      'images': [{'id': n + 1} for n in range(len(images))],
      'annotations': truth,
      'categories': [{'id': c + 1} for c in range(num_classes)],
    }
    ours.createIndex()
    theirs = coco_lib.COCO()
    theirs.dataset = {
      **ours.dataset,
      'annotations': [{**row, 'id': n + 1} for n, row in enumerate(found)],
    }
    theirs.createIndex()
    run = cocoeval.COCOeval(ours, theirs, 'bbox')
    run.evaluate()
    run.accumulate()
  precision = run.eval['precision'][:, :, :, 0, 2]  # [thresholds, recalls, classes], all, 100
  precision = np.where(precision < 0, np.nan, precision)
  return precision.mean(axis=1).T


@pytest.mark.parametrize('seed', range(6))
def test_agrees_with_pycocotools(seed):
  images = cases(seed)
  found = ap_lib.average_precision(images, num_classes=4)  # the fourth has no labels
  expected = coco(images, num_classes=4)
  np.testing.assert_allclose(found.by_class, expected, atol=1e-9)
  assert np.isnan(found.by_class[3]).all() and 0.05 < found.mean < found.at_50 < 0.95
  assert found.mean == pytest.approx(np.nanmean(expected))
  assert found.at_50 == pytest.approx(np.nanmean(expected[:, 0]))


def test_agrees_with_pycocotools_beyond_a_hundred_detections():
  images = cases(7, count=2, found=(250, 251), labels=(8, 9), num_classes=1)
  expected = coco(images, num_classes=1)
  found = ap_lib.average_precision(images, num_classes=1)
  np.testing.assert_allclose(found.by_class, expected, atol=1e-9)
  more = ap_lib.average_precision(images, num_classes=1, max_detections=300)
  assert (more.by_class >= found.by_class - 1e-12).all()


def boxed(*rows):
  return np.array(rows, float).reshape(-1, 4)


def one_image(found, truth):
  """found: (x1, y1, x2, y2, score, class); truth: (x1, y1, x2, y2, class)."""
  found, truth = np.array(found, float).reshape(-1, 6), np.array(truth, float).reshape(-1, 5)
  return ap_lib.Image(
    found[:, :4], found[:, 4], found[:, 5].astype(int), truth[:, :4], truth[:, 4].astype(int)
  )


def value(images, **options):
  return ap_lib.average_precision(images, num_classes=1, **options)


def test_interpolations_by_hand():
  # hit, miss, hit of two labels: recall 1/2, 1/2, 1; best precision from there on 1, 2/3, 2/3
  images = [
    one_image(
      [(0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.8, 0), (20, 20, 30, 30, 0.7, 0)],
      [(0, 0, 10, 10, 0), (20, 20, 30, 30, 0)],
    )
  ]
  found = value(images)
  assert found.at_50 == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)  # recalls 0 to .50 and .51 to 1
  # linear: 1 up to .49, 2/3 at .50 (the last of equal recalls) up to .99, 0 at 1
  heights = np.r_[np.ones(50), np.full(50, 2 / 3), 0]
  linear = value(images, interpolation='yolo')
  assert linear.at_50 == pytest.approx(np.trapezoid(heights, dx=0.01))
  assert linear.mean == pytest.approx(linear.at_50)


def test_matchings_by_hand():
  truth = [(0, 0, 10, 10, 0), (0, 8, 10, 18, 0)]
  loose, tight = (0, 0, 10, 6, 0.9, 0), (0, 0, 10, 9, 0.8, 0)
  at = lambda threshold, matching: value(
    [one_image([loose, tight], truth)], matching=matching, thresholds=[0.5, threshold]
  ).by_class[0, 1]
  # at .7 only the tight box is good enough; the quirk lets the loose one keep the label
  assert at(0.7, 'coco') == pytest.approx(0.5 * 51 / 101)
  assert at(0.7, 'yolo') == 0
  assert at(0.7, 'yolo_overlap') == pytest.approx(0.5 * 51 / 101)
  # a box whose best label is taken: COCO gives it the next one, YOLOv5 does not
  between = [(0, 0, 10, 10, 0.9, 0), (0, 3.9, 10, 13.9, 0.8, 0)]
  second = value([one_image(between, truth)], thresholds=[0.4])
  assert second.at_50 == 1
  single = value([one_image(between, truth)], thresholds=[0.4], matching='yolo')
  assert single.at_50 == pytest.approx(51 / 101)


def slow_yolo(images, label, threshold):
  """The rules of the 'yolo' family one by one, for a class and a threshold: hits by confidence."""
  rows, labels = [], 0
  for one in images:
    theirs = [g for g, c in zip(one.true_boxes, one.true_classes) if c == label]
    labels += len(theirs)
    taken = set()
    for d in np.argsort(-one.scores, kind='stable'):
      if one.classes[d] != label:
        continue
      overlaps = [float(ap_lib.iou(one.boxes[d][None], g[None])[0, 0]) for g in theirs]
      best = int(np.argmax(overlaps)) if overlaps else -1
      hit = best >= 0 and overlaps[best] >= 0.5 and best not in taken
      taken |= {best} if hit else set()
      rows.append((one.scores[d], hit and overlaps[best] >= threshold))
  order = np.argsort([-score for score, _ in rows], kind='stable')
  hits = np.array([rows[i][1] for i in order], float)
  recall, precision = np.cumsum(hits) / labels, np.cumsum(hits) / np.arange(1, len(hits) + 1)
  envelope = [precision[i:].max() for i in range(len(precision))]
  x = np.linspace(0, 1, 101)
  return np.trapezoid(np.interp(x, [0, *recall, 1], [1, *envelope, 0]), x)


@pytest.mark.parametrize('seed', range(3))
def test_the_yolo_rules_one_by_one(seed):
  images = cases(seed)
  found = ap_lib.average_precision(
    images, num_classes=3, matching='yolo', interpolation='yolo', max_detections=300
  )
  for label in range(3):
    for t in (0, 3, 8):
      expected = slow_yolo(images, label, ap_lib.THRESHOLDS[t])
      assert found.by_class[label, t] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('matching', ['coco', 'yolo', 'yolo_overlap'])
@pytest.mark.parametrize('interpolation', ['coco', 'yolo'])
def test_perfect_absent_and_empty(matching, interpolation):
  rng = np.random.default_rng(5)
  options = {'num_classes': 3, 'matching': matching, 'interpolation': interpolation}
  truth = [image(rng, labels=(3, 4)) for _ in range(4)]
  full = [t._replace(boxes=t.true_boxes, classes=t.true_classes, scores=np.ones(3)) for t in truth]
  # the linear form falls to 0 over its last hundredth
  best = 1.0 if interpolation == 'coco' else 0.995
  assert ap_lib.average_precision(full, **options).mean == pytest.approx(best)
  none = [t._replace(boxes=np.zeros((0, 4)), classes=[], scores=np.zeros(0)) for t in truth]
  assert ap_lib.average_precision(none, **options).mean == 0
  assert np.isnan(ap_lib.average_precision([], **options).mean)


def test_unknown_names():
  with pytest.raises(errors.UserError, match=r"unknown matching of detections 'cocoo'; did you"):
    value([], matching='cocoo')
  with pytest.raises(errors.UserError, match='unknown interpolation of precision'):
    value([], interpolation='voc')


def test_average_iou_by_hand():
  truth = [(0, 0, 10, 10, 0), (20, 0, 30, 10, 0), (0, 0, 10, 10, 1)]
  found = [
    (0, 0, 10, 5, 0.9, 0),  # half of the first label, and the most confident
    (0, 0, 10, 10, 0.8, 0),  # all of it, but too late
    (20, 0, 30, 1, 0.1, 0),  # a tenth of the second: any overlap counts
    (50, 50, 60, 60, 1.0, 1),  # of the third label's class, and far away
  ]
  one = one_image(found, truth)
  np.testing.assert_allclose(ap_lib.label_ious(one), [0.5, 0.1, 0])
  empty = one_image([], truth)
  assert ap_lib.average_iou([one]) == pytest.approx(0.2)
  assert ap_lib.average_iou([one, empty]) == pytest.approx(0.1)
  assert ap_lib.average_iou([one, empty], skip_empty=True) == pytest.approx(0.2)
  assert ap_lib.average_iou([empty]) == 0 and np.isnan(ap_lib.average_iou([empty], skip_empty=True))


def test_average_iou_does_not_depend_on_the_order_of_distinct_scores():
  rng = np.random.default_rng(8)
  for one in cases(9, count=5, found=(5, 20), labels=(2, 8)):
    one = one._replace(scores=rng.permutation(len(one.scores)) / 50)
    order = rng.permutation(len(one.scores))
    other = one._replace(
      boxes=one.boxes[order], scores=one.scores[order], classes=one.classes[order]
    )
    np.testing.assert_array_equal(ap_lib.label_ious(one), ap_lib.label_ious(other))
    assert ap_lib.average_iou([one]) > 0


def test_iou_by_hand():
  first = boxed([0, 0, 2, 2], [1, 1, 1, 1])
  second = boxed([0, 0, 2, 2], [1, 1, 3, 3], [1, 1, 1, 1])
  np.testing.assert_allclose(ap_lib.iou(first, second), [[1, 1 / 7, 0], [0, 0, 0]])
  assert ap_lib.iou(first, np.zeros((0, 4))).shape == (2, 0)

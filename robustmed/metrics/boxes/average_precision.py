"""Average precision of detectors over a whole data set, and the mean overlap of found objects.

Two families, which differ in matching and in interpolation:

- 'coco' (Lin et al. 2014, as in pycocotools): at each threshold every detection, the most confident
  first, is matched to the unmatched label of its class with the largest IoU, if that reaches the
  threshold; precision is read at 101 recalls as the best one at that recall or beyond.
- 'yolo' (as in YOLOv5 v6.1): a detection can match only the label of its class with the largest
  IoU, if it is 0.5 at least; of several on one label the most confident one is kept, even if
  another one overlaps more. Precision is interpolated linearly at 101 recalls between (0, 1) and
  (1, 0), and integrated by the trapezoid rule.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robustmed import errors

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
_RECALLS = np.linspace(0, 1, 101)
_TINY = 1e-10  # an IoU of exactly 1 can miss 1 by rounding


class Image(NamedTuple):
  """Detections and labels of one image; boxes are (x1, y1, x2, y2)."""

  boxes: np.ndarray  # [d, 4]
  scores: np.ndarray  # [d]
  classes: np.ndarray  # [d]
  true_boxes: np.ndarray  # [g, 4]
  true_classes: np.ndarray  # [g]


class Precision(NamedTuple):
  """Average precision of a data set."""

  by_class: np.ndarray  # [num_classes, thresholds], nan for a class without labels
  at_50: float  # mean over classes at the first threshold
  mean: float  # over classes and thresholds


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Returns the IoU of boxes [n, 4] and [m, 4], [n, m] float64; 0 where a box has no area."""
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  first, second = first.reshape(-1, 1, 4), second.reshape(1, -1, 4)
  sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
  common = np.maximum(sides, 0).prod(-1)
  area = lambda box: np.maximum(box[..., 2:] - box[..., :2], 0).prod(-1)
  union = area(first) + area(second) - common
  return common / np.where(union > 0, union, 1)


def average_precision(
  images: Sequence[Image],
  *,
  num_classes: int,
  matching: str = 'coco',
  interpolation: str = 'coco',
  thresholds: Sequence[float] = THRESHOLDS,
  max_detections: int = 100,
) -> Precision:
  """Returns the mAP of a data set; the mean is over classes that have labels, nan if none has.

  matching: 'coco', 'yolo', or 'yolo_overlap', which keeps the detection that overlaps most instead
  of the most confident one. interpolation: 'coco' or 'yolo'. Of each image the `max_detections`
  most confident ones of a class are used. Equal scores keep their order.
  """
  match = errors.lookup(_MATCHING, matching, kind='matching of detections')
  errors.lookup(_INTERPOLATION, interpolation, kind='interpolation of precision')
  thresholds = np.asarray(thresholds, np.float64)
  scores, hits, kinds = [np.zeros(0)], [np.zeros((0, len(thresholds)), bool)], [np.zeros(0, int)]
  labels = np.zeros(num_classes, int)
  for label in range(num_classes):
    for image in images:
      mine = np.flatnonzero(np.asarray(image.classes) == label)
      mine = mine[np.argsort(-np.asarray(image.scores)[mine], kind='stable')][:max_detections]
      theirs = np.asarray(image.true_classes) == label
      labels[label] += int(theirs.sum())
      overlaps = iou(np.asarray(image.boxes)[mine], np.asarray(image.true_boxes)[theirs])
      scores.append(np.asarray(image.scores)[mine])
      hits.append(match(overlaps, thresholds))
      kinds.append(np.full(len(mine), label))
  return from_hits(*map(np.concatenate, (scores, kinds, hits)), labels, interpolation=interpolation)


def from_hits(
  scores: np.ndarray,
  classes: np.ndarray,
  hits: np.ndarray,
  labels: np.ndarray,
  *,
  interpolation: str = 'coco',
) -> Precision:
  """Returns the mAP of the matched detections of a data set.

  scores and classes: [n]; hits: [n, thresholds] bool; labels: [num_classes], their number.
  Equal scores keep their order.
  """
  area = errors.lookup(_INTERPOLATION, interpolation, kind='interpolation of precision')
  table = np.full((len(labels), hits.shape[1]), np.nan)
  for label in np.flatnonzero(labels):
    mine = classes == label
    order = np.argsort(-scores[mine], kind='stable')
    table[label] = area(hits[mine][order], int(labels[label]))
  known = table[~np.isnan(table).any(axis=1)]
  means = known.mean(axis=0) if len(known) else np.full(hits.shape[1], np.nan)
  return Precision(table, float(means[0]), float(means.mean()))


def _match_coco(overlaps, thresholds):
  """Returns hits [d, thresholds] of overlaps [d, g]; of equal overlaps the later label is taken."""
  hits = np.zeros((len(overlaps), len(thresholds)), bool)
  for t, threshold in enumerate(np.minimum(thresholds, 1 - _TINY)):
    left = overlaps.copy()
    for d, row in enumerate(left):
      if row.size:
        best = row.size - 1 - int(np.argmax(row[::-1]))
        if row[best] >= threshold:
          hits[d, t] = True
          left[:, best] = -1
  return hits


def _pairs(overlaps, *, lowest, keep='confident'):
  """Returns (detection, label) pairs of detections and their best label, each label once."""
  if not overlaps.size:
    return np.zeros((0, 2), int)
  best = overlaps.argmax(axis=1)
  height = overlaps[np.arange(len(overlaps)), best]
  found = np.flatnonzero(height >= lowest)
  if keep == 'overlap':
    found = found[np.argsort(-height[found], kind='stable')]
  _, first = np.unique(best[found], return_index=True)
  return np.stack([found[first], best[found][first]], axis=-1)


def _match_yolo(overlaps, thresholds, *, keep='confident'):
  hits = np.zeros((len(overlaps), len(thresholds)), bool)
  for d, g in _pairs(overlaps, lowest=thresholds.min(), keep=keep):
    hits[d] = overlaps[d, g] >= thresholds
  return hits


def _match_yolo_overlap(overlaps, thresholds):
  return _match_yolo(overlaps, thresholds, keep='overlap')


def _curves(hits, labels):
  """Returns recall, and the best precision at that recall or beyond, both [d, thresholds]."""
  found = np.cumsum(hits, axis=0)
  precision = found / np.arange(1, len(hits) + 1)[:, None]
  return found / labels, np.maximum.accumulate(precision[::-1], axis=0)[::-1]


def _area_coco(hits, labels):
  recall, envelope = _curves(hits, labels)
  values = np.zeros(hits.shape[1])
  for t in range(hits.shape[1]):
    place = np.searchsorted(recall[:, t], _RECALLS, 'left')
    values[t] = np.append(envelope[:, t], 0)[place].mean()
  return values


def _area_yolo(hits, labels):
  recall, envelope = _curves(hits, labels)
  values = np.zeros(hits.shape[1])
  for t in range(hits.shape[1] if len(hits) else 0):
    known = np.concatenate([[0], recall[:, t], [1]]), np.concatenate([[1], envelope[:, t], [0]])
    values[t] = np.trapezoid(np.interp(_RECALLS, *known), _RECALLS)
  return values


_MATCHING = {'coco': _match_coco, 'yolo': _match_yolo, 'yolo_overlap': _match_yolo_overlap}
_INTERPOLATION = {'coco': _area_coco, 'yolo': _area_yolo}


def label_ious(image: Image) -> np.ndarray:
  """Returns the IoU of each label with its detection, [g], 0 where it has none.

  That is the most confident detection of its class among those that overlap no other label of the
  class more, at any IoU above 0. Further detections are ignored.
  """
  true_classes = np.asarray(image.true_classes)
  values = np.zeros(len(true_classes))
  order = np.argsort(-np.asarray(image.scores), kind='stable')
  classes = np.asarray(image.classes)[order]
  overlaps = iou(np.asarray(image.boxes)[order], image.true_boxes)
  for label in np.unique(true_classes):
    mine, theirs = np.flatnonzero(classes == label), np.flatnonzero(true_classes == label)
    own = overlaps[np.ix_(mine, theirs)]
    for d, g in _pairs(own, lowest=np.nextafter(0, 1)):
      values[theirs[g]] = own[d, g]
  return values


def average_iou(images: Sequence[Image], *, skip_empty: bool = False) -> float:
  """Returns the average IOU (Ma and Liang 2022): the mean of `label_ious` over all labels.

  An image without any detection counts with zeros, so that a detector that finds nothing scores 0;
  skip_empty leaves such images out, as the authors' code does. nan where no label is left.
  """
  values = [label_ious(image) for image in images if len(image.scores) or not skip_empty]
  values = np.concatenate([np.zeros(0), *values])
  return float(values.mean()) if len(values) else float('nan')

"""Matching of detections and labels per image on the device, as columns for the mAP of a data set.

The columns of an image are '_score000', '_match000', ... of its detections, the most confident
first, and '_labels0', ..., its number of labels per class. A match is 1024 * class + the sum of 2^t
over the thresholds t at which the detection is a hit, -1 for no detection.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.metrics.boxes import average_precision, geometry

Array = jax.Array
_NUM = len(average_precision.THRESHOLDS)
_CLASS = 1024


def overlaps(found: geometry.Detections, true: Array, classes: Array, mask: Array) -> Array:
  """Returns the IoU [k, m] of detections and labels, -1 between classes and for padding."""
  same = (found.classes[:, None] == classes[None]) & found.mask[:, None] & mask[None]
  return jnp.where(same, geometry.pairwise_iou(found.boxes, true), -1.0)


def label_ious(between: Array) -> Array:
  """Returns `average_precision.label_ious` of overlaps [k, m] of one image, [m]."""
  best = jnp.argmax(between, axis=1)
  height = jnp.max(between, axis=1)
  taken = (best[:, None] == jnp.arange(between.shape[1])[None]) & (height > 0)[:, None]
  first = jnp.argmax(taken, axis=0)
  return jnp.where(jnp.any(taken, axis=0), height[first], 0.0)


def hits(between: Array, *, matching: str = 'coco') -> Array:
  """Returns whether detections are hits at the ten thresholds, [k, m] -> [k, 10] bool.

  matching: 'coco' or 'yolo' as in `average_precision`.
  """
  matchings = {'coco': _coco, 'yolo': _yolo}
  limits = jnp.asarray(average_precision.THRESHOLDS, jnp.float32)
  return errors.lookup(matchings, matching, kind='matching of detections')(between, limits)


def _coco(between, limits):
  places = jnp.arange(between.shape[1])

  def take(free, row):
    left = jnp.where(free, row[None], -1.0)  # [10, m]
    best = left.shape[1] - 1 - jnp.argmax(left[:, ::-1], axis=1)
    hit = jnp.max(left, axis=1) >= limits
    return free & ~(hit[:, None] & (best[:, None] == places[None])), hit

  return jax.lax.scan(take, jnp.ones((_NUM, between.shape[1]), bool), between)[1]


def _yolo(between, limits):
  best, height = jnp.argmax(between, axis=1), jnp.max(between, axis=1)
  near = height >= limits[0]
  taken = (best[:, None] == jnp.arange(between.shape[1])[None]) & near[:, None]
  first = jnp.argmax(taken, axis=0)  # of each label
  kept = near & (first[best] == jnp.arange(len(best)))
  return kept[:, None] & (height[:, None] >= limits[None])


def columns(
  found: geometry.Detections, hit: Array, classes: Array, mask: Array, *, num_classes: int
) -> dict[str, Array]:
  """Returns the columns in the module's docstring for a batch: leaves [b, k], hit [b, k, 10]."""
  bits = jnp.tensordot(hit.astype(jnp.int32), 2 ** jnp.arange(_NUM), 1)
  match = jnp.where(found.mask, _CLASS * found.classes + bits, -1)
  labels = (classes[..., None] == jnp.arange(num_classes)[None, None]) & mask[..., None]
  return {
    **{f'_score{k:03d}': found.scores[:, k] for k in range(match.shape[1])},
    **{f'_match{k:03d}': match[:, k].astype(jnp.float32) for k in range(match.shape[1])},
    **{f'_labels{c}': labels[..., c].sum(-1).astype(jnp.float32) for c in range(num_classes)},
  }


def precision(
  rows: Mapping[str, np.ndarray], *, interpolation: str = 'coco'
) -> average_precision.Precision:
  """Returns the mAP of a set of images from their columns, a mapping or a data frame."""
  number = lambda name: int(re.search(r'\d+$', name).group())
  names = lambda start: sorted(
    (name for name in rows if re.fullmatch(rf'{start}\d+', name)), key=number
  )
  stack = lambda start: np.stack([np.asarray(rows[name]) for name in names(start)], axis=1)
  scores, match, labels = (stack(start) for start in ('_score', '_match', '_labels'))
  known = match >= 0
  kind, bits = np.divmod(match[known].astype(np.int64), _CLASS)
  return average_precision.from_hits(
    scores[known],
    kind,
    (bits[:, None] >> np.arange(_NUM)) & 1 == 1,
    labels.sum(axis=0).astype(int),
    interpolation=interpolation,
  )

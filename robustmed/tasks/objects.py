"""Object detection by YOLOv5 (version 6.1), as Ma & Liang 2022 train, attack and measure it.

Boxes are (x1, y1, x2, y2) in pixels of the image.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import types
from robustmed.metrics.boxes import geometry, matching
from robustmed.models import yolo
from robustmed.process import parallel
from robustmed.tasks import anchors, networks

Array = jax.Array
TERMS = ('box', 'obj', 'cls')
# Per stride: the anchors (w, h) in pixels, and the weight of the objectness.
LEVELS = {
  stride: (sizes, weight)
  for stride, sizes, weight in zip(yolo.STRIDES, yolo.ANCHORS, (4.0, 1.0, 0.4), strict=True)
}


def make(
  module: nn.Module,
  *,
  image_shape: tuple[int, int, int],
  classes: Sequence[str],
  train_size: int,
  confidence: float = 0.001,
  max_detections: int = 100,
  match: str = 'coco',
  units: str = 'L2 norm of the change of the image, whose values are in [0, 1]',
) -> types.Task:
  """Returns the task on images [b, h, w, 3].

  Targets: 'boxes' [b, m, 4], 'classes' [b, m] and 'mask' [b, m]. The module's outputs are {'p8',
  'p16', 'p32': [b, h / s, w / s, 3, 5 + classes]}. Losses, per example: 'box', 1 - CIoU of its own
  positives, 'obj', cross-entropy of all its cells with the
  positives' CIoU, 'cls', cross-entropy of its positives, with the published gains at `train_size`,
  the side of a training image (the published loss is their sum times the batch). The coupled losses
  take the mean over the positives of the batch. Objectives: 'loss', the sum, and each term; 'plant'
  and 'hide', see `false_objectness`.

  Metrics, with NMS at an IoU of 0.5: IOU, the mean over the image's labels of
  `average_precision.label_ious` (0 without detections), and IOU_found, the same but nan without
  detections (the authors' reading). With NMS at 0.6: the columns of `matching`.
  """
  network = networks.bind(module, image_shape=image_shape)
  count = len(classes)
  gains = {'box': 0.05, 'obj': (train_size / 640) ** 2, 'cls': 0.5 * count / 80 * (count > 1)}

  def losses(outputs, batch):
    sums = positive_sums(outputs, batch['target'])
    return _apply_gains(gains, _means(sums), objectness(outputs, batch['target']))

  def coupled(outputs, batch):
    sums = positive_sums(outputs, batch['target'])
    joint = {
      name: parallel.coupled(lambda total, n=name: _means(total)[n], sums, batch['mask'])
      for name in ('box', 'cls')
    }
    return _apply_gains(gains, joint, objectness(outputs, batch['target']))

  def metrics(outputs, batch):
    target = batch['target']
    labels = target['boxes'], target['classes'], target['mask']
    within = jax.vmap(matching.overlaps)
    search = lambda limit: detect(
      outputs, confidence=confidence, iou_threshold=limit, max_detections=max_detections
    )
    found, ranked = search(0.5), search(0.6)
    each = jax.vmap(matching.label_ious)(within(found, *labels))
    number = jnp.sum(target['mask'], axis=-1)
    mean = jnp.where(number > 0, jnp.sum(each, axis=-1) / jnp.maximum(number, 1), jnp.nan)
    hit = jax.vmap(lambda between: matching.hits(between, matching=match))(within(ranked, *labels))
    return {
      'IOU': mean,
      'IOU_found': jnp.where(jnp.any(found.mask, axis=-1), mean, jnp.nan),
      **matching.columns(ranked, hit, *labels[1:], num_classes=count),
    }

  objectives = {name: lambda o, b, n=name: losses(o, b)[n] for name in TERMS}
  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=losses,
    objectives={
      'loss': lambda o, b: sum(losses(o, b).values()),
      **objectives,
      'plant': lambda o, b: false_objectness(o),
      'hide': lambda o, b: -false_objectness(o),
    },
    metrics=metrics,
    image_shape=tuple(image_shape),
    units=units,
    diagnostics=diagnostics,
    coupled=coupled,
  )


def _apply_gains(gains, means, objects):
  terms = {**means, 'obj': objects}
  return {name: gains[name] * terms[name] for name in TERMS}


def _means(sums):
  """Turns sums over positives [..., strides] into the sum over strides of their means."""
  count = jnp.maximum(sums['count'], 1.0)
  return {name: jnp.sum(sums[name] / count, axis=-1) for name in ('box', 'cls')}


def _binary(logits, target):
  return jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def _positives(outputs, target, stride):
  """Returns (candidates of one grid, CIoU of the predicted boxes, predicted class logits)."""
  raw = outputs[f'p{stride}']
  sizes = LEVELS[stride][0]
  found = anchors.assign(
    target['boxes'], target['mask'], grid=raw.shape[1:3], stride=stride, anchors=sizes
  )
  pick = lambda grid, at: grid[at.row, at.column, at.anchor]
  picked = jax.vmap(pick)(raw, found)  # [b, k, 5 + classes]
  cell = jnp.stack([found.column, found.row], axis=-1).astype(raw.dtype)
  predicted = anchors.decode_cells(
    picked, cell, jnp.asarray(sizes, raw.dtype)[found.anchor], stride=stride
  )
  true = jnp.take_along_axis(target['boxes'], found.box[..., None], axis=1)
  # The box of padding may have no area, where the gradient is undefined.
  unit = jnp.asarray([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4)
  overlap = geometry.ciou(predicted, jnp.where(found.mask[..., None], true, unit))
  return found, overlap, picked[..., 5:]


def positive_sums(outputs: dict[str, Array], target: dict[str, Array]) -> dict[str, Array]:
  """Returns sums over the positives and their 'count', per example and stride, [b, 3]."""
  found = {'box': [], 'cls': [], 'count': []}
  for stride in LEVELS:
    at, overlap, logits = _positives(outputs, target, stride)
    label = jnp.take_along_axis(target['classes'], at.box, axis=1)
    wanted = jax.nn.one_hot(label, logits.shape[-1])
    total = lambda value, at=at: jnp.sum(jnp.where(at.mask, value, 0.0), axis=-1)
    found['box'].append(total(1 - overlap))
    found['cls'].append(total(_binary(logits, wanted).mean(-1)))
    found['count'].append(jnp.sum(at.mask, axis=-1).astype(jnp.float32))
  return {name: jnp.stack(values, axis=-1) for name, values in found.items()}


def objectness(outputs: dict[str, Array], target: dict[str, Array]) -> Array:
  """Returns the weighted sum over strides of the mean cross-entropy of all cells, [b].

  The target of a cell is the CIoU of its positives, the largest one if there are several boxes.
  """
  value = 0.0
  for stride, (_, weight) in LEVELS.items():
    at, overlap, _ = _positives(outputs, target, stride)
    overlap = jnp.where(at.mask, jnp.maximum(jax.lax.stop_gradient(overlap), 0), 0.0)
    logits = outputs[f'p{stride}'][..., 4]

    def place(grid, at, value):
      return grid.at[at.row, at.column, at.anchor].max(value)

    wanted = jax.vmap(place)(jnp.zeros_like(logits), at, overlap)
    value = value + weight * jnp.mean(_binary(logits, wanted), axis=(1, 2, 3))
  return value


def false_objectness(outputs: dict[str, Array]) -> Array:
  """Returns the objectness loss of an image without objects, weighted as in `objectness`, [b].

  Chow et al. 2020 (TOG): climbing it invents boxes, descending hides them.
  """
  mean = lambda logits: jnp.mean(_binary(logits, 0.0), axis=(1, 2, 3))
  return sum(weight * mean(outputs[f'p{s}'][..., 4]) for s, (_, weight) in LEVELS.items())


def detect(
  outputs: dict[str, Array], *, confidence: float, iou_threshold: float, max_detections: int
) -> geometry.Detections:
  """Returns the detections of every image, leaves [b, max_detections, ...]; see `geometry.nms`."""
  found, scores = [], []
  for stride, (sizes, _) in LEVELS.items():
    raw = outputs[f'p{stride}']
    flat = lambda leaf: leaf.reshape(leaf.shape[0], -1, leaf.shape[-1])
    found.append(flat(anchors.decode(raw, stride=stride, anchors=sizes)))
    scores.append(flat(jax.nn.sigmoid(raw[..., 4:5]) * jax.nn.sigmoid(raw[..., 5:])))
  suppress = lambda box, score: geometry.nms(
    box,
    score,
    confidence=confidence,
    iou_threshold=iou_threshold,
    max_detections=max_detections,
  )
  return jax.vmap(suppress)(jnp.concatenate(found, axis=1), jnp.concatenate(scores, axis=1))


def diagnostics(outputs: dict[str, Array]) -> dict[str, Array]:
  """Returns the share of objectness and class probabilities that are exactly 0 or 1 in float32."""
  flat = [outputs[f'p{s}'][..., 4:].reshape(len(outputs[f'p{s}']), -1) for s in LEVELS]
  probability = jax.nn.sigmoid(jnp.concatenate(flat, axis=-1))
  ends = (probability == 0) | (probability == 1)
  return {'_saturated': jnp.mean(ends.astype(jnp.float32), axis=-1)}

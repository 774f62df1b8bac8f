"""Boxes (x1, y1, x2, y2): overlaps with finite gradients, and NMS with outputs of fixed size.

A box whose corners are swapped has no area. Everything is float32 and jitted.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_TINY = 1e-7  # keeps quotients finite; boxes are in pixels


class Detections(NamedTuple):
  """At most k detections of one image, the most confident first."""

  boxes: jax.Array  # [k, 4]
  scores: jax.Array  # [k], 0 where mask is False
  classes: jax.Array  # [k] int32
  mask: jax.Array  # [k] bool, False = padding
  source: jax.Array  # [k] int32, index into the n boxes


def _sides(box):
  """Returns width and height, each at least 0."""
  return jnp.maximum(box[..., 2] - box[..., 0], 0), jnp.maximum(box[..., 3] - box[..., 1], 0)


def area(box: jax.Array) -> jax.Array:
  """Returns the area of boxes [..., 4], [...]."""
  width, height = _sides(box)
  return width * height


@jax.jit
def iou(first: jax.Array, second: jax.Array) -> jax.Array:
  """Returns the IoU of boxes [..., 4] and [..., 4], [...]; 0 where neither has an area."""
  first, second = jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)
  common = area(
    jnp.concatenate(
      [
        jnp.maximum(first[..., :2], second[..., :2]),
        jnp.minimum(first[..., 2:], second[..., 2:]),
      ],
      axis=-1,
    )
  )
  return common / (area(first) + area(second) - common + _TINY)


@jax.jit
def ciou(first: jax.Array, second: jax.Array) -> jax.Array:
  """Returns the complete IoU (Zheng et al. 2020, eq. 10 and 11), [..., 4] and [..., 4] -> [...].

  IoU - distance of the centres^2 / diagonal of the common hull^2 - alpha v, v being the difference
  of the aspect angles and alpha a constant of the gradient. At most 1; gradients are finite, also
  at boxes without area.
  """
  first, second = jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)
  overlap = iou(first, second)
  hull = jnp.maximum(first[..., 2:], second[..., 2:]) - jnp.minimum(first[..., :2], second[..., :2])
  centres = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
  distance = jnp.sum(centres**2, axis=-1) / (jnp.sum(hull**2, axis=-1) + _TINY)
  angles = [jnp.arctan2(width, height + _TINY) for width, height in (_sides(first), _sides(second))]
  v = (angles[1] - angles[0]) ** 2 * (4 / math.pi**2)
  alpha = jax.lax.stop_gradient(v / (v - overlap + 1 + _TINY))
  return overlap - distance - alpha * v


@jax.jit
def pairwise_iou(first: jax.Array, second: jax.Array) -> jax.Array:
  """Returns the IoU of all pairs, [..., n, 4] and [..., m, 4] -> [..., n, m]."""
  shape = (*first.shape[:-1], second.shape[-2], 4)
  return iou(
    jnp.broadcast_to(first[..., :, None, :], shape),
    jnp.broadcast_to(second[..., None, :, :], shape),
  )


@functools.partial(jax.jit, static_argnames=('max_detections', 'multi_label'))
def nms(
  boxes: jax.Array,
  scores: jax.Array,
  *,
  confidence: float = 0.001,
  iou_threshold: float = 0.6,
  max_detections: int = 300,
  multi_label: bool = True,
  mask: jax.Array | None = None,
) -> Detections:
  """Returns the detections of one image by greedy class-wise NMS; use `jax.vmap` for a batch.

  boxes: [n, 4]; scores: [n, classes]; mask: [n] bool, False = no candidate. A candidate is a box
  with each class whose score is above `confidence` (multi_label) or with its best class only. The
  best remaining candidate is taken, and those of its class with an IoU above `iou_threshold` to it
  are removed. Ties go to the earlier box, then to the earlier class.
  """
  boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
  num_classes = scores.shape[-1]
  allowed = scores > confidence
  if mask is not None:
    allowed &= mask[:, None]
  if not multi_label:
    allowed &= jnp.argmax(scores, axis=-1)[:, None] == jnp.arange(num_classes)[None]
  start = jnp.where(allowed, scores, -jnp.inf)

  def take(state):
    count, left, chosen = state
    best = jnp.argmax(left)
    box, label = jnp.divmod(best, num_classes)
    near = iou(boxes, jnp.broadcast_to(boxes[box], boxes.shape)) > iou_threshold
    near = near.at[box].set(True)  # also if it has no area
    own = jnp.arange(num_classes) == label
    left = jnp.where(near[:, None] & own[None], -jnp.inf, left)
    return count + 1, left, chosen.at[count].set(best)

  def more(state):
    count, left, _ = state
    return (count < max_detections) & (jnp.max(left) > -jnp.inf)

  state = (jnp.int32(0), start, jnp.zeros(max_detections, jnp.int32))
  count, _, chosen = jax.lax.while_loop(more, take, state)
  kept = jnp.arange(max_detections) < count
  source, classes = jnp.divmod(jnp.where(kept, chosen, 0), num_classes)
  return Detections(
    boxes=jnp.where(kept[:, None], boxes[source], 0.0),
    scores=jnp.where(kept, scores[source, classes], 0.0),
    classes=classes,
    mask=kept,
    source=source,
  )

"""A region proposal network for nodules: anchors in any number of spatial axes.

Ren et al. 2015, as DeepLung (Zhu et al. 2018) trains its detector: cubic anchors of 5, 10 and
20 mm, cross-entropy with hard negative mining, smooth L1 on the boxes; Liu et al. 2020 use the
same for their candidate network.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.metrics import losses as loss_terms
from robustmed.metrics.froc import volume_boxes
from robustmed.tasks import networks

Array = jax.Array
SIDES = (5.0, 10.0, 20.0)  # mm
POSITIVE, NEGATIVE = 0.5, 0.02  # IoU thresholds; in between an anchor is ignored
HARD = 32  # hardest negatives that are kept, per example


class Proposals(NamedTuple):
  """Boxes of b images, the highest score first; all in cells of the image."""

  centre: Array  # [b, k, rank]
  size: Array  # [b, k, rank]
  score: Array  # [b, k] probability


class Matched(NamedTuple):
  """The targets of the n anchors of one image."""

  positive: Array  # [n] bool
  negative: Array  # [n] bool
  centre: Array  # [n, rank] of the nodule assigned to a positive anchor
  side: Array  # [n]


def make(
  module: nn.Module,
  *,
  image_shape: tuple[int, ...],
  spacing: float = 1.0,
  sides: tuple[float, ...] = SIDES,
  hard: int = HARD,
  units: str = 'fraction of the window of Hounsfield units',
) -> types.Task:
  """Returns the task on images [b, *spatial, c] with cells of `spacing` mm.

  Targets as in task blobs. The module's outputs have 'boxes' [b, *coarse, anchors, 1 + rank + k]: a
  logit, the offset of the centre in sides of the anchor, and the logarithms of k sizes over that
  side, k being rank or 1 (cubes). Losses: 'score', half the mean cross-entropy of the positive
  anchors plus half that of the `hard` worst negative ones; 'box', smooth L1 summed over the
  numbers, mean over the positive. Objectives: both, 'loss' their sum; 'plant', the mean of
  -log(1 - p) of all anchors, and 'hide', minus that. Metrics: 'found', the share of nodules with a
  positive anchor above 1/2 (1 without nodules); 'false_peak', the highest probability of a negative
  anchor.
  """
  network = networks.bind(module, image_shape=image_shape)
  grid = tuple(image_shape[:-1])
  cells = tuple(side / spacing for side in sides)

  def matched(outputs, goal):
    centre, side = anchors(outputs['boxes'].shape[1:-2], grid, cells)
    pair = lambda where, width: match(centre, side, where, width)
    return jax.vmap(pair)(goal['centre'], goal['diameter'] / spacing), centre, side

  def flat(outputs):
    boxes = outputs['boxes']
    if boxes.shape[-2] != len(sides):
      raise errors.UserError(
        f'task proposals has {len(sides)} anchors, the network {boxes.shape[-2]}; set model.anchors'
      )
    return boxes.reshape(len(boxes), -1, boxes.shape[-1])

  def losses(outputs, batch):
    predicted = flat(outputs)
    target, centre, side = matched(outputs, batch['target'])
    return {
      'score': score_loss(predicted[..., 0], target, hard=hard),
      'box': box_loss(predicted[..., 1:], target, centre, side),
    }

  def metrics(outputs, batch):
    target, _, _ = matched(outputs, batch['target'])
    p, goal = jax.nn.sigmoid(flat(outputs)[..., 0]), batch['target']
    own = jnp.all(target.centre[:, :, None] == goal['centre'][:, None], axis=-1)
    sure = (target.positive & (p > 0.5))[..., None] & own
    there = goal['diameter'] > 0
    count = there.sum(1)
    hits = jnp.sum(jnp.any(sure, axis=1) & there, axis=1)
    return {
      'found': jnp.where(count > 0, hits / jnp.maximum(count, 1), 1.0),
      'false_peak': jnp.max(jnp.where(target.negative, p, 0.0), axis=1),
    }

  false_score = lambda outputs: jnp.mean(jax.nn.softplus(flat(outputs)[..., 0]), axis=1)
  pick = lambda name: lambda outputs, batch: losses(outputs, batch)[name]
  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=losses,
    objectives={
      'loss': lambda outputs, batch: sum(losses(outputs, batch).values()),
      'score': pick('score'),
      'box': pick('box'),
      'plant': lambda outputs, batch: false_score(outputs),
      'hide': lambda outputs, batch: -false_score(outputs),
    },
    metrics=metrics,
    image_shape=tuple(image_shape),
    units=units,
  )


def anchors(coarse: tuple[int, ...], grid: tuple[int, ...], sides) -> tuple[Array, Array]:
  """Returns the centres [n, rank] and sides [n] of all anchors, in cells of the image.

  Sides vary fastest. The centre of a coarse cell is the middle of the cells that it covers.
  """
  axes = [
    (jnp.arange(n, dtype=jnp.float32) + 0.5) * (m / n) - 0.5
    for n, m in zip(coarse, grid, strict=True)
  ]
  centre = jnp.stack(jnp.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, len(grid))
  return jnp.repeat(centre, len(sides), axis=0), jnp.tile(jnp.asarray(sides), len(centre))


def match(centre: Array, side: Array, where: Array, diameter: Array) -> Matched:
  """Returns the targets of anchors [n] for nodules [m] of one image; padding: diameter 0 or less.

  Anchors are positive with an IoU of `POSITIVE` with a nodule's cube; for every nodule so is the
  first of its best anchors. The others are negative if their IoU with all nodules is below
  `NEGATIVE`.
  """
  there = diameter > 0
  overlap = volume_boxes.iou(
    centre[:, None], side[:, None, None], where[None], jnp.maximum(diameter, 0.0)[None, :, None]
  )
  overlap = jnp.where(there[None], overlap, 0.0)
  first = jnp.argmax(overlap, axis=0)
  best = (jnp.arange(len(centre))[:, None] == first[None]) & (there & (overlap.max(0) > 0))[None]
  positive = jnp.any((overlap >= POSITIVE) | best, axis=1)
  chosen = jnp.argmax(overlap + 2 * best, axis=1)
  return Matched(
    positive=positive,
    negative=~positive & (overlap.max(1) < NEGATIVE),
    centre=where[chosen],
    side=jnp.maximum(diameter, 1e-3)[chosen],
  )


def score_loss(logits: Array, target: Matched, *, hard: int) -> Array:
  """Returns half the mean over positive anchors plus half that over the hardest negatives, [b].

  Without positive anchors only the second half is left.
  """
  yes, no = (jax.nn.softplus(sign * logits) for sign in (-1, 1))
  count = jnp.maximum(target.positive.sum(1), 1)
  positive = jnp.sum(jnp.where(target.positive, yes, 0.0), axis=1) / count
  worst = jax.lax.top_k(jnp.where(target.negative, no, 0.0), min(hard, logits.shape[1]))[0]
  counted = jnp.clip(target.negative.sum(1), 1, worst.shape[1])
  return 0.5 * positive + 0.5 * jnp.sum(worst, axis=1) / counted


def box_loss(predicted: Array, target: Matched, centre: Array, side: Array) -> Array:
  """Returns the smooth L1 loss of `predicted` [b, n, rank + k] at positive anchors, [b]."""
  rank = centre.shape[-1]
  offset = (target.centre - centre[None]) / side[None, :, None]
  scale = jnp.log(target.side / side[None])[..., None]
  parts = [predicted[..., :rank] - offset, predicted[..., rank:] - scale]
  each = jnp.sum(loss_terms.smooth_absolute(jnp.concatenate(parts, axis=-1)), axis=-1)
  count = jnp.maximum(target.positive.sum(1), 1)
  return jnp.sum(jnp.where(target.positive, each, 0.0), axis=1) / count


@functools.partial(jax.jit, static_argnames=('grid', 'sides', 'limit'))
def decode(boxes: Array, *, grid: tuple[int, ...], sides: tuple[float, ...], limit: int):
  """Returns the `limit` best `Proposals` of outputs 'boxes' on a `grid`; sides in cells."""
  centre, side = anchors(boxes.shape[1:-2], grid, sides)
  rank = len(grid)
  flat = boxes.reshape(len(boxes), -1, boxes.shape[-1])
  logit, which = jax.lax.top_k(flat[..., 0], min(limit, flat.shape[1]))
  flat = jnp.take_along_axis(flat, which[..., None], axis=1)
  centre, side = centre[which], side[which][..., None]
  scale = jnp.broadcast_to(flat[..., 1 + rank :], centre.shape)
  return Proposals(
    centre=centre + flat[..., 1 : 1 + rank] * side,
    size=side * jnp.exp(jnp.minimum(scale, 4.0)),
    score=jax.nn.sigmoid(logit),
  )

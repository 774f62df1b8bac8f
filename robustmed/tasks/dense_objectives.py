"""Attack objectives of networks that label every pixel, each (outputs, batch) -> [b].

All are means over the pixels that count, of head 0 alone, and larger where the network is worse.
p is the softmax, y the label, CE = -log p_y. `erase` and `plant` aim at a label: the others move
pixels to any wrong one.
"""

import jax
import jax.numpy as jnp

from robustmed.types import Array

BLOCKS = 8


def _parts(outputs, batch):
  """Returns log p [b, *spatial, k], its value at y, whether y wins, and which pixels count."""
  logits, labels = outputs['head0'], jnp.maximum(batch['target']['labels'], 0)
  log_p = jax.nn.log_softmax(logits)
  own = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
  counted = batch['target'].get('counted')
  counted = (
    jnp.ones(labels.shape, logits.dtype) if counted is None else counted.astype(logits.dtype)
  )
  return log_p, own, jnp.argmax(logits, axis=-1) == labels, counted


def _mean(values: Array, counted: Array) -> Array:
  space = tuple(range(1, values.ndim))
  return jnp.sum(values * counted, axis=space) / jnp.maximum(jnp.sum(counted, axis=space), 1)


def masked_cross_entropy(outputs, batch) -> Array:
  """Returns the mean of CE where the network is still right, 0 elsewhere (Croce et al. 2024, SEA).

  A pixel that is wrong has no gradient, so that the others get all of the change.
  """
  _, own, right, counted = _parts(outputs, batch)
  return _mean(jnp.where(right, -own, 0), counted)


def balanced_cross_entropy(outputs, batch) -> Array:
  """Returns the mean of CE over the pixels of each class, then over the classes that are there."""
  _, own, _, counted = _parts(outputs, batch)
  labels = jnp.maximum(batch['target']['labels'], 0)
  classes = outputs['head0'].shape[-1]
  masks = (labels[..., None] == jnp.arange(classes).reshape((1,) * labels.ndim + (-1,))) * (
    counted[..., None]
  )
  space = tuple(range(1, labels.ndim))
  sizes = jnp.sum(masks, axis=space)
  means = jnp.sum(-own[..., None] * masks, axis=space) / jnp.maximum(sizes, 1)
  return jnp.sum(means, axis=-1) / jnp.maximum(jnp.sum(sizes > 0, axis=-1), 1)


def jensen_shannon(outputs, batch) -> Array:
  """Returns the mean Jensen-Shannon divergence of p and the label, in nats (Croce et al. 2024).

  For the label as a distribution: (KL(p | m) + KL(y | m)) / 2 with m = (p + y) / 2. It is bounded
  by log 2, and its gradient vanishes where p_y does.
  """
  _, own, _, counted = _parts(outputs, batch)
  p = jnp.exp(own)
  # the classes other than y are halved in m, which adds (1 - p) log 2 to KL(p | m)
  other = -jnp.expm1(own)
  half = jnp.log1p(p) - jnp.log(2.0)  # log of m at y
  value = 0.5 * (p * (own - half) + other * jnp.log(2.0)) - 0.5 * half
  return _mean(value, counted)


def segpgd(outputs, batch, progress=1.0) -> Array:
  """Returns the mean of (1 - l) CE where the network is right, l CE where it is wrong.

  Gu et al. 2022, SegPGD, eqs. 3 and 5: l is 0 at the first of T steps and (T - 1) / 2T at the last,
  half the progress. Its values at two steps are not comparable.
  """
  _, own, right, counted = _parts(outputs, batch)
  weight = jnp.asarray(progress, own.dtype) / 2
  return _mean(-own * jnp.where(right, 1 - weight, weight), counted)


def cospgd(outputs, batch) -> Array:
  """Returns the mean of CE times the cosine between p and the label.

  Agnihotri et al. 2024, CosPGD. The cosine, p_y / |p|, is a weight: no gradient flows through it
  (public code has both readings).
  """
  log_p, own, _, counted = _parts(outputs, batch)
  norm = jnp.sqrt(jnp.sum(jnp.exp(2 * log_p), axis=-1))
  return _mean(-own * jax.lax.stop_gradient(jnp.exp(own) / norm), counted)


def erase(outputs, batch) -> Array:
  """Returns the mean of log p_background over the pixels of structures, 0 where there are none."""
  log_p, _, _, counted = _parts(outputs, batch)
  return _mean(log_p[..., 0], counted * (batch['target']['labels'] > 0))


def erase_one(label: int):
  """Returns `erase` of one structure: of the pixels of that label, whatever becomes of others."""

  def erased(outputs, batch) -> Array:
    log_p, _, _, counted = _parts(outputs, batch)
    return _mean(log_p[..., 0], counted * (batch['target']['labels'] == label))

  return erased


def plant(outputs, batch) -> Array:
  """Returns how near the network is to a structure that is not there, at most 0.

  Images are cut into `BLOCKS` blocks along each axis. Of those with the most pixels of background
  it is the one where the mean of log(1 - p_background) over these pixels is largest.
  """
  log_p, _, _, counted = _parts(outputs, batch)
  free = counted * (batch['target']['labels'] == 0)
  count = _in_blocks(free)
  value = _in_blocks(jax.nn.logsumexp(log_p[..., 1:], axis=-1) * free) / jnp.maximum(count, 1)
  blocks = tuple(range(1, count.ndim))
  freest = count == jnp.max(count, axis=blocks, keepdims=True)
  return jnp.max(jnp.where(freest, value, -jnp.inf), axis=blocks)


def _in_blocks(values: Array) -> Array:
  """Returns the sums of values [b, *spatial] over the blocks of `plant`, [b, *blocks]."""
  for axis, size in enumerate(values.shape[1:], 1):
    count = min(BLOCKS, size)
    member = (jnp.arange(size) * count // size)[:, None] == jnp.arange(count)[None]
    values = jnp.moveaxis(
      jnp.tensordot(values, member.astype(values.dtype), ((axis,), (0,))), -1, axis
    )
  return values


OBJECTIVES = {
  'erase': erase,
  'plant': plant,
  'masked_ce': masked_cross_entropy,
  'balanced_ce': balanced_cross_entropy,
  'js': jensen_shannon,
  'segpgd': segpgd,
  'cospgd': cospgd,
}

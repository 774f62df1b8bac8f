"""Disk shape: one network for a contour and a segmentation (Chen et al. 2021, sections 3-5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import types
from robustmed.metrics import contours, losses, overlap
from robustmed.ops import polygon
from robustmed.tasks import networks


def make(module: nn.Module, *, side: int) -> types.Task:
  """Returns the task of Chen et al. 2021 on images [b, side, side, 1] in [0, 1].

  Targets: 'contour' [b, 176, 2] (x, y) in pixels and 'mask' [b, side, side, 1] in {0, 1}. The
  module's outputs: 'contour', 'segmentation' (logits) and, if it has one, 'reconstruction'.
  """
  network = networks.bind(module, image_shape=(side, side, 1))

  def metrics(outputs, batch):
    filled = jax.vmap(lambda contour: polygon.fill(contour, side))(outputs['contour'])
    target = batch['target']['mask'][..., 0] > 0.5
    return {
      'DICE_seg': overlap.dice(outputs['segmentation'][..., 0] > 0, target),
      'DICE_reg': overlap.dice(filled, target),
      'Error_reg': contours.point_error(outputs['contour'], batch['target']['contour']),
    }

  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=loss_terms,
    objectives=OBJECTIVES,
    metrics=metrics,
    image_shape=(side, side, 1),
    units='fraction of the image range [0, 1]',
    diagnostics=diagnostics,
    compared=compared,
  )


def loss_terms(outputs, batch) -> dict[str, jax.Array]:
  """Returns the terms of L = L_reg + L_seg (eqs. 1-3), [b] each, and L_rec (eq. 12) if any."""
  terms = {'reg': mean_absolute(outputs, batch), 'seg': segmentation_loss(outputs, batch)}
  if 'reconstruction' in outputs:
    terms['rec'] = losses.absolute_error(outputs['reconstruction'], batch['image'])
  return terms


def diagnostics(outputs) -> dict[str, jax.Array]:
  """Returns the share of the pixels whose float32 probability is exactly 0 or 1."""
  probability = jax.nn.sigmoid(outputs['segmentation'])
  hard = (probability == 0) | (probability == 1)
  return {'_saturated': jnp.mean(hard.astype(jnp.float32), axis=(1, 2, 3))}


def compared(outputs, batch) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Returns contour, probability of the mask and reconstruction, if any, with their targets."""
  target = batch['target']
  found = {
    'contour': (outputs['contour'], target['contour']),
    'segmentation': (jax.nn.sigmoid(outputs['segmentation']), target['mask']),
  }
  if 'reconstruction' in outputs:
    found['reconstruction'] = (outputs['reconstruction'], batch['image'])
  return found


def mean_absolute(outputs, batch) -> jax.Array:
  """Returns the mean absolute error of the contour, [b]: L_reg of eq. 1."""
  return losses.absolute_error(outputs['contour'], batch['target']['contour'])


def segmentation_loss(outputs, batch) -> jax.Array:
  """Returns 0.5 BCE + 0.5 (1 - soft Dice), [b], the objective of the authors' training attack."""
  logits, mask = outputs['segmentation'], batch['target']['mask']
  return 0.5 * losses.binary_cross_entropy(logits, mask) + 0.5 * soft_dice_loss(outputs, batch)


def soft_dice_loss(outputs, batch) -> jax.Array:
  """Returns 1 - soft Dice: J_IND_seg of eq. 5."""
  return 1 - losses.soft_dice(jax.nn.sigmoid(outputs['segmentation']), batch['target']['mask'])


def squared_contour(outputs, batch) -> jax.Array:
  """Returns the sum of squared coordinate differences: J_IND_reg of eq. 4."""
  difference = outputs['contour'] - batch['target']['contour']
  return jnp.sum(jnp.square(difference), axis=(1, 2))


def polygon_dice(outputs, batch) -> jax.Array:
  """Returns 1 - soft Dice of the contour's coverage of pixels with the mask, [b]."""
  mask = batch['target']['mask']
  covered = jax.vmap(lambda contour: polygon.coverage(contour, mask.shape[1]))(outputs['contour'])
  return 1 - losses.soft_dice(covered[..., None], mask)


OBJECTIVES = {
  'reg': squared_contour,
  'seg': soft_dice_loss,
  'train_reg': mean_absolute,
  'train_seg': segmentation_loss,
  'polygon_dice': polygon_dice,
  'joint': lambda outputs, batch: sum(loss_terms(outputs, batch).values()),
}

"""Classification of nodules and false candidates: evidential or cross-entropy, and pre-training.

Liu et al. 2020, 'No Surprises: training robust lung nodule detection for low-dose CT scans by
augmenting with adversarial attacks', sections 3.1 and 3.2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.metrics import evidence, overlap
from robustmed.metrics import losses as loss_terms
from robustmed.tasks import networks

Array = jax.Array


def make(
  module: nn.Module,
  *,
  image_shape: tuple[int, ...],
  loss: str = 'beta',
  anneal: float = 0.0,
  units: str = 'fraction of the window of Hounsfield units',
) -> types.Task:
  """Returns the task on patches [b, *spatial, c] in [0, 1].

  batch['target'] has 'target' [b], 1 for a nodule and 0 for none, and, for loss='segmentation',
  'soft' [b, *spatial, 1], the nodule's mask in [0, 1], and 'has_mask' [b]: nodules without a mask
  have no loss there.

  The module's outputs are {'logits': [b, 2]} (against a nodule, for it) and, for 'segmentation',
  {'segmentation': [b, *spatial, 1]}. Losses per example:

  - 'beta': 'evidence' and lambda times 'divergence', see `metrics.evidence`. lambda rises from 0 to
    1 over the first `anneal` of the training, read from batch['progress'] (Sensoy et al. 2018: 10
    epochs); it is 1 with anneal=0 and outside of training;
  - 'ce': binary cross-entropy of the sigmoid of the difference of both logits;
  - 'segmentation': 'dice' and 'bce' of the mask; the classifier is not trained.

  All three have the same parameters, so that each can start from another. Objectives: 'loss' (the
  task's own with lambda 1), 'ce', 'beta', 'confidence' (|target - confidence|); with
  loss='segmentation' 'loss' and 'dice'. Metrics: 'confidence' in a nodule, a / S or the
  sigmoid, 'correct' at confidence 1/2, 'entropy' of the confidence in bits and, for 'beta',
  'uncertainty', 2 / S; for 'segmentation' the 'DICE' of the mask alone.
  """
  kinds = {'beta': _beta, 'ce': _cross_entropy, 'segmentation': _segmentation}
  terms = errors.lookup(kinds, loss, kind='loss of task nodules')
  if not 0 <= anneal <= 1:
    raise errors.UserError(f'task nodules: anneal is a share of the training, not {anneal:g}')
  network = networks.bind(module, image_shape=image_shape)

  def losses(outputs, batch):
    found = terms(outputs, batch)
    if 'divergence' in found and anneal and 'progress' in batch:
      found['divergence'] *= jnp.minimum(batch['progress'] / anneal, 1.0)
    return found

  own = lambda outputs, batch: sum(terms(outputs, batch).values())
  confidence_of = beta_confidence if loss == 'beta' else cross_confidence
  distance = lambda outputs, batch: jnp.abs(_label(batch) - confidence_of(outputs))
  classes = {
    'loss': own,
    'ce': lambda outputs, batch: _cross_entropy(outputs, batch)['ce'],
    'beta': lambda outputs, batch: sum(_beta(outputs, batch).values()),
    'confidence': distance,
  }
  masks = {'loss': own, 'dice': lambda outputs, batch: _segmentation(outputs, batch)['dice']}

  def metrics(outputs, batch):
    p, label = confidence_of(outputs), _label(batch)
    found = {
      'confidence': p,
      'correct': ((p > 0.5) == (label > 0.5)).astype(jnp.float32),
      'entropy': _bits(p) + _bits(1 - p),
    }
    if loss == 'beta':
      found['uncertainty'] = evidence.uncertainty(evidence.from_logits(outputs['logits']))
    return found

  def mask_metrics(outputs, batch):
    found, true = outputs['segmentation'] > 0, batch['target']['soft'] > 0.5
    return {'DICE': overlap.dice(found, true)}

  def compared(outputs, batch):
    if segments:
      found = jax.nn.sigmoid(outputs['segmentation'])
      return {'segmentation': (found, batch['target']['soft'])}
    return {'confidence': (confidence_of(outputs), _label(batch))}

  segments = loss == 'segmentation'
  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=losses,
    objectives=masks if segments else classes,
    metrics=mask_metrics if segments else metrics,
    image_shape=tuple(image_shape),
    units=units,
    diagnostics=(lambda outputs: {})
    if segments
    else (lambda outputs: _saturated(confidence_of(outputs))),
    compared=compared,
  )


def beta_confidence(outputs) -> Array:
  """Returns a / S, [b], the confidence of networks trained with 'beta'."""
  return evidence.confidence(evidence.from_logits(outputs['logits']))


def cross_confidence(outputs) -> Array:
  """Returns the sigmoid of the logits' difference, [b], the confidence with loss 'ce'."""
  return jax.nn.sigmoid(_difference(outputs))


def _difference(outputs):
  return outputs['logits'][:, 1] - outputs['logits'][:, 0]


def _label(batch):
  return batch['target']['target'].astype(jnp.float32)


def _beta(outputs, batch):
  beta, label = evidence.from_logits(outputs['logits']), _label(batch)
  return {
    'evidence': evidence.squared_error(beta, label),
    'divergence': evidence.divergence(beta, label),
  }


def _cross_entropy(outputs, batch):
  return {'ce': loss_terms.binary_cross_entropy(_difference(outputs), _label(batch))}


def _segmentation(outputs, batch):
  logits, target = outputs['segmentation'], batch['target']
  known = (target['has_mask'] | (target['target'] == 0)).astype(jnp.float32)
  dice = 1 - loss_terms.soft_dice(jax.nn.sigmoid(logits), target['soft'], smooth=1.0)
  return {
    'dice': known * dice,
    'bce': known * loss_terms.binary_cross_entropy(logits, target['soft']),
  }


def _bits(p):
  return -p * jnp.log2(jnp.maximum(p, 1e-30))


def _saturated(confidence):
  """Returns 1 where the float32 confidence is exactly 0 or 1."""
  return {'_saturated': ((confidence == 0) | (confidence == 1)).astype(jnp.float32)}

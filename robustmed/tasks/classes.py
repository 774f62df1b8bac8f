"""One class per image: softmax and cross-entropy."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import types
from robustmed.tasks import networks

Array = jax.Array


def make(
  module: nn.Module,
  *,
  image_shape: tuple[int, ...],
  classes: Sequence[str],
  units: str = 'share of the intensity range of the files',
) -> types.Task:
  """Returns the task on images [b, *spatial, c] that show one of `classes` each.

  Target: 'label' [b] int, the number of the class. The module's outputs are {'logits': [b, k]}.
  Loss: 'ce'. Objectives: 'loss' and 'ce', the cross-entropy; 'margin', the best wrong logit minus
  the true one, at most 1. Metrics: ACCURACY, 1 where the class is right; `PROBABILITY`k, the
  probability of the k-th class, P_TRUE, that of the true one, and _label. Outputs may have one more
  logit, of what is none of `classes`.
  """
  network = networks.bind(module, image_shape=image_shape)
  count = len(classes)

  def metrics(outputs, batch):
    logits, label = outputs['logits'], batch['target']['label']
    probability = jax.nn.softmax(logits)
    return {
      'ACCURACY': (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32),
      'P_TRUE': jnp.take_along_axis(probability, label[:, None], axis=-1)[:, 0],
      '_label': label.astype(jnp.float32),
      **{f'{PROBABILITY}{k}': probability[:, k] for k in range(count)},
    }

  def compared(outputs, batch):
    wanted = jax.nn.one_hot(batch['target']['label'], count)
    return {'class': (jax.nn.softmax(outputs['logits'])[:, :count], wanted)}

  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=lambda outputs, batch: {'ce': cross_entropy(outputs, batch)},
    objectives={'loss': cross_entropy, 'ce': cross_entropy, 'margin': margin},
    metrics=metrics,
    image_shape=tuple(image_shape),
    units=units,
    diagnostics=diagnostics,
    compared=compared,
  )


PROBABILITY = '_probability'


def cross_entropy(outputs: dict[str, Array], batch: types.Batch) -> Array:
  """Returns the cross-entropy, [b]."""
  logits = jax.nn.log_softmax(outputs['logits'])
  return -jnp.take_along_axis(logits, batch['target']['label'][:, None], axis=-1)[:, 0]


def margin(outputs: dict[str, Array], batch: types.Batch) -> Array:
  """Returns min(1, best wrong logit - true logit), [b] (Carlini and Wagner 2017, eq. 6)."""
  logits = outputs['logits']
  true = jax.nn.one_hot(batch['target']['label'], logits.shape[-1], dtype=bool)
  other = jnp.max(jnp.where(true, -jnp.inf, logits), axis=-1)
  return jnp.minimum(other - jnp.sum(jnp.where(true, logits, 0), axis=-1), 1.0)


def diagnostics(outputs: dict[str, Array]) -> dict[str, Array]:
  """Returns 1 where the float32 probability of one class is exactly 1."""
  top = jnp.max(jax.nn.softmax(outputs['logits']), axis=-1)
  return {'_saturated': (top == 1).astype(jnp.float32)}

"""Segmentation with deep supervision, over any number of spatial axes.

Loss and supervision of nnU-Net version 1 (Isensee et al. 2021), per example as Ma and Liang 2022
need it for margins of single samples; ADI is their eq. 2.
"""

from collections.abc import Iterable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors, types
from robustmed.metrics import slice_sets
from robustmed.process import parallel
from robustmed.tasks import dense_objectives, networks

Array = jax.Array
SMOOTH, TINY = 1e-5, 1e-8  # of the soft Dice
MOST_CLASSES = 8  # of a task with strata, of which there are 2^classes


def make(
  module: nn.Module,
  *,
  image_shape: tuple[int, ...],
  classes: Sequence[str],
  regions: Mapping[str, Sequence[int]] | None = None,
  units: str = 'standard deviations of the image (z-scores)',
) -> types.Task:
  """Returns the segmentation task on images [b, *spatial, c].

  Target: 'labels' [b, *spatial] int, 0 background, k the k-th of `classes`, -1 outside of the scan,
  which counts as background. With a target 'soft' [b, *spatial, 1 + len(classes)] as well, losses
  and objectives use these probabilities. With a target 'counted' [b, *spatial] bool, pixels where
  it is False (an ignored label) are in no loss, objective or metric.

  The module's outputs are {'head0': [b, *spatial, 1 + len(classes)] logits, 'head1': the same on a
  coarser grid, ...}. Losses are 'ce' and 'dice' over the heads weighted as in `head_weights`, per
  example; the coupled losses have one Dice for the whole batch, as nnU-Net trains in 2D.
  Objectives: 'loss', their sum; of head 0 alone 'ce', 'dice', 'head0' (ce + dice), 'margin' and
  those of `dense_objectives`, 'erase_<class>' among them.
  Metrics: DICE_<class> = 2TP / (2TP + FP + FN + 1e-8), their mean DICE (the term of ADI), their
  maximum _DICE_max (the criterion of the authors' margins), and the counts _tp<k>, _fp<k>, _fn<k>,
  from which `slice_sets.tvdi` computes the TVDI of a set of examples. With `regions`, each some
  numbers of classes, the metrics are those of the regions in place of the classes. Strata, for
  tasks of at most `MOST_CLASSES` classes: see `strata`.
  """
  classes = tuple(classes)
  names = tuple(regions) if regions else classes
  network = networks.bind(module, image_shape=image_shape)
  single = {
    f'erase_{name}': dense_objectives.erase_one(label) for label, name in enumerate(classes, 1)
  }

  def metrics(outputs, batch):
    logits = outputs['head0']
    if logits.shape[-1] != len(classes) + 1:
      raise errors.UserError(
        f'the network has {logits.shape[-1]} outputs for {len(classes)} classes and the background'
      )
    counts = hard_counts(
      logits,
      batch['target']['labels'],
      counted=batch['target'].get('counted'),
      regions=regions.values() if regions else None,
    )
    scores = 2 * counts['tp'] / (2 * counts['tp'] + counts['fp'] + counts['fn'] + slice_sets.TINY)
    return {
      'DICE': jnp.mean(scores, axis=-1),
      '_DICE_max': jnp.max(scores, axis=-1),
      **{f'DICE_{name}': scores[:, k] for k, name in enumerate(names)},
      **{
        f'_{kind}{k + 1}': count[:, k] for kind, count in counts.items() for k in range(len(names))
      },
    }

  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=loss_terms,
    objectives={**OBJECTIVES, **single},
    metrics=metrics,
    image_shape=tuple(image_shape),
    units=units,
    diagnostics=diagnostics,
    compared=compared,
    coupled=coupled_terms,
    strata=strata(classes) if len(classes) <= MOST_CLASSES else None,
  )


def strata(classes: Sequence[str]) -> types.Strata:
  """Returns the strata of images that show the same classes; the last one shows all of them.

  An absent class costs nearly a full Dice term even where the network is right in every pixel, as
  1e-5 is far below the sum of small probabilities over an image. Number: bit k - 1 is class k.
  """
  numbers = range(2 ** len(classes))
  shown = [[name for k, name in enumerate(classes) if number >> k & 1] for number in numbers]

  def of(batch):
    labels = batch['target']['labels']
    there = lambda k: jnp.any(labels == k + 1, axis=tuple(range(1, labels.ndim)))
    return sum(there(k).astype(jnp.int32) << k for k in range(len(classes)))

  return types.Strata(tuple(' and '.join(names) or 'no class' for names in shown), of)


def head_weights(num_heads: int) -> tuple[float, ...]:
  """Returns 2^-i for head i, 0 for the coarsest one (unless it is alone), with sum 1."""
  raw = [2.0**-i for i in range(num_heads)]
  if num_heads > 1:
    raw[-1] = 0.0
  return tuple(weight / sum(raw) for weight in raw)


def _heads(outputs):
  """Returns the logits, the finest grid first."""
  return [outputs[f'head{i}'] for i in range(len(outputs))]


def one_hot(labels: Array, like: Array) -> Array:
  """Returns labels [b, *spatial] one-hot on the grid of `like` [b, *coarse, k], nearest-neighbour.

  A coarse pixel takes the cell at its centre, of two middle ones the higher, as in skimage's order
  0. -1 becomes background.
  """
  labels = on_grid(labels, like)
  classes = jnp.arange(like.shape[-1]).reshape((1,) * labels.ndim + (-1,))
  return (jnp.maximum(labels, 0)[..., None] == classes).astype(like.dtype)


def truth(batch: types.Batch, logits: Array) -> Array:
  """Returns the target as probabilities on the grid of `logits`: 'soft' if given, else one-hot."""
  soft = batch['target'].get('soft')
  if soft is None:
    return one_hot(batch['target']['labels'], logits)
  if soft.shape != logits.shape:
    raise ValueError(f'soft labels {soft.shape} are not on the grid of the logits {logits.shape}')
  return soft


def on_grid(values: Array, like: Array) -> Array:
  """Returns values [b, *spatial] on the grid of `like` [b, *coarse, k], as `one_hot` takes them."""
  factors = [n // m for n, m in zip(values.shape[1:], like.shape[1:-1], strict=True)]
  return values[(slice(None), *(slice(f // 2, None, f) for f in factors))]


def _soft_terms(logits, target, counted=None):
  """Returns the mean cross-entropy [b], and overlap and sizes [b, classes] of the foreground."""
  space = tuple(range(1, logits.ndim - 1))
  log_probability = jax.nn.log_softmax(logits)
  entropies = jnp.sum(target * log_probability, axis=-1)
  probability, target = jnp.exp(log_probability)[..., 1:], target[..., 1:]
  if counted is None:
    entropy = -jnp.mean(entropies, axis=space)
  else:
    counted = on_grid(counted, logits).astype(logits.dtype)
    count = jnp.maximum(jnp.sum(counted, axis=space), 1)
    entropy = -jnp.sum(entropies * counted, axis=space) / count
    probability, target = probability * counted[..., None], target * counted[..., None]
  overlap = jnp.sum(probability * target, axis=space)
  return entropy, {'overlap': overlap, 'sizes': jnp.sum(probability + target, axis=space)}


def _dice_loss(sums):
  """Returns 1 - mean over classes of (2TP + 1e-5) / (2TP + FP + FN + 1e-5 + 1e-8)."""
  scores = (2 * sums['overlap'] + SMOOTH) / (sums['sizes'] + SMOOTH + TINY)
  return 1 - jnp.mean(scores, axis=-1)


def _weighted(outputs, batch, dice_of):
  heads = _heads(outputs)
  terms = {'ce': 0.0, 'dice': 0.0}
  for weight, logits in zip(head_weights(len(heads)), heads, strict=True):
    if weight:
      entropy, sums = _soft_terms(logits, truth(batch, logits), batch['target'].get('counted'))
      terms['ce'] += weight * entropy
      terms['dice'] += weight * dice_of(sums)
  return terms


def loss_terms(outputs, batch) -> dict[str, Array]:
  """Returns cross-entropy and 1 - soft Dice of each example (nnU-Net has - Dice)."""
  return _weighted(outputs, batch, _dice_loss)


def coupled_terms(outputs, batch) -> dict[str, Array]:
  """Returns the terms with TP, FP and FN summed over the global batch of all devices."""
  return _weighted(outputs, batch, lambda sums: parallel.coupled(_dice_loss, sums, batch['mask']))


def hard_counts(
  logits: Array,
  labels: Array,
  *,
  counted: Array | None = None,
  regions: Iterable[Sequence[int]] | None = None,
) -> dict[str, Array]:
  """Returns counts of true positive, false positive and false negative pixels, [b, classes].

  Of pixels that are `counted` alone, and of `regions`, each some classes, in place of the classes.
  """
  found = jnp.argmax(logits, axis=-1)[..., None] == jnp.arange(1, logits.shape[-1]).reshape(
    (1,) * (logits.ndim - 1) + (-1,)
  )
  true = one_hot(labels, logits)[..., 1:] > 0
  if regions is not None:
    of = lambda maps, several: jnp.any(maps[..., np.array(several) - 1], axis=-1)
    regions = list(regions)
    found, true = (jnp.stack([of(maps, r) for r in regions], axis=-1) for maps in (found, true))
  if counted is not None:
    found, true = found & counted[..., None], true & counted[..., None]
  count = lambda pixels: jnp.sum(pixels.astype(jnp.float32), axis=tuple(range(1, logits.ndim - 1)))
  return {'tp': count(found & true), 'fp': count(found & ~true), 'fn': count(~found & true)}


def _head0_terms(outputs, batch):
  logits = outputs['head0']
  return _soft_terms(logits, truth(batch, logits), batch['target'].get('counted'))


def cross_entropy(outputs, batch) -> Array:
  """Returns the cross-entropy of head 0, [b]."""
  return _head0_terms(outputs, batch)[0]


def dice(outputs, batch) -> Array:
  """Returns 1 - soft Dice of head 0, [b]."""
  return _dice_loss(_head0_terms(outputs, batch)[1])


def head0(outputs, batch) -> Array:
  """Returns `cross_entropy` + `dice`, [b]."""
  entropy, sums = _head0_terms(outputs, batch)
  return entropy + _dice_loss(sums)


def margin(outputs, batch) -> Array:
  """Returns the mean over pixels of min(1, best wrong logit - true logit), [b].

  Carlini and Wagner 2017, eq. 6. The cap keeps misclassified pixels from outweighing the others.
  """
  logits = outputs['head0']
  target = one_hot(batch['target']['labels'], logits)
  own = jnp.sum(target * logits, axis=-1)
  other = jnp.max(jnp.where(target > 0, -jnp.inf, logits), axis=-1)
  values, space = jnp.minimum(other - own, 1.0), tuple(range(1, own.ndim))
  counted = batch['target'].get('counted')
  if counted is None:
    return jnp.mean(values, axis=space)
  return jnp.sum(values * counted, axis=space) / jnp.maximum(jnp.sum(counted, axis=space), 1)


def diagnostics(outputs) -> dict[str, Array]:
  """Returns the share of the pixels whose float32 probability of one class is exactly 1."""
  top = jnp.max(jax.nn.softmax(outputs['head0']), axis=-1)
  return {'_saturated': jnp.mean((top == 1).astype(jnp.float32), axis=tuple(range(1, top.ndim)))}


def compared(outputs, batch) -> dict[str, tuple[Array, Array]]:
  """Returns the probabilities of all classes but the background with the labels, one-hot."""
  logits = outputs['head0']
  truth = one_hot(batch['target']['labels'], logits)
  return {'segmentation': (jax.nn.softmax(logits)[..., 1:], truth[..., 1:])}


OBJECTIVES = {
  'loss': lambda outputs, batch: sum(loss_terms(outputs, batch).values()),
  'ce': cross_entropy,
  'dice': dice,
  'head0': head0,
  'margin': margin,
  **dense_objectives.OBJECTIVES,
}

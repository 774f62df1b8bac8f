"""Brain tumours: soft Dice, the regions of BraTS, and the distance of an image from the clean one.

Liu et al. 2021, 'Robustifying Deep Networks for Medical Image Segmentation': eq. 5 is the loss and
what the attacks ascend, with the mean over the classes in its sum (the paper divides by one more).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.metrics import image_quality, regions
from robustmed.tasks import dense_objectives, segmentation

Array = jax.Array
CLASSES = ('necrosis', 'oedema', 'enhancing')
WANTED = 1  # the label towards which targeted attacks push every pixel: necrosis


def make(
  module: nn.Module,
  *,
  image_shape: tuple[int, ...],
  terms: Sequence[str] = ('dice',),
  units: str = 'fraction of the image range [0, 1]',
) -> types.Task:
  """Returns the task on images [b, *spatial, c] in [0, 1], volumes or slices.

  Target: 'labels' [b, *spatial] int, 0 background and k the k-th of `CLASSES`. The module's outputs
  are {'head0': logits}.

  `terms` names the losses trained on, of 'dice' (the paper's) and 'ce'; the coupled form has one
  Dice for the whole batch, which batches with tumour-free slices need. Objectives: 'dice', 'ce' and
  'margin' as in `segmentation`, 'scaled' (`scaled_dice`), and 'ti', the Dice loss towards label 1
  everywhere, for attacks that minimise, and those of `dense_objectives`. Metrics: dice_wt, dice_tc,
  dice_et (see `regions`), for slices also the counts from which `regions.volume_dice` computes that
  of their volume; PSNR, SSIM and RMSE of batch['image'] against batch['clean'].
  """
  if not terms:
    raise errors.UserError("task brats: terms must name a loss, 'dice' or 'ce'")
  for name in terms:
    errors.lookup({'dice': None, 'ce': None}, name, kind='loss of task brats')
  base = segmentation.make(module, image_shape=image_shape, classes=CLASSES, units=units)
  chosen = lambda found: {name: found[name] for name in terms}
  volumes = len(image_shape) == 4

  def metrics(outputs, batch):
    labels = batch['target']['labels']
    logits = outputs['head0']
    if logits.shape[-1] != len(CLASSES) + 1:
      raise errors.UserError(f'task brats needs a network with 4 outputs, not {logits.shape[-1]}')
    found = jnp.argmax(logits, axis=-1)
    image, clean = batch['image'], batch['clean']
    return {
      **regions.dice(found, labels),
      **({} if volumes else regions.counts(found, labels)),
      'psnr': image_quality.psnr(image, clean),
      'ssim': image_quality.ssim(image, clean),
      'rmse': image_quality.rmse(image, clean),
    }

  return base._replace(
    losses=lambda outputs, batch: chosen(segmentation.loss_terms(outputs, batch)),
    coupled=lambda outputs, batch: chosen(segmentation.coupled_terms(outputs, batch)),
    objectives=OBJECTIVES,
    metrics=metrics,
    diagnostics=diagnostics,
    soften=soften,
  )


def soften(outputs, temperature):
  """Returns (outputs / T, {'soft': softmax(logits / T)}) (Hinton et al. 2015)."""
  scaled = jax.tree.map(lambda logits: logits / temperature, outputs)
  return scaled, {'soft': jax.nn.softmax(scaled['head0'])}


def logit_scale(logits: Array) -> Array:
  """Returns the mean over pixels of the largest logit minus the second largest, [b]."""
  top = jax.lax.top_k(logits, 2)[0]
  return jnp.mean(top[..., 0] - top[..., 1], axis=tuple(range(1, logits.ndim - 1)))


def scaled_dice(outputs, batch) -> Array:
  """Returns the Dice loss of logits divided by `logit_scale`, which is held constant.

  A network distilled at temperature T has logits that are up to T times too large; where its
  softmax is exactly 0 or 1, the Dice loss has no gradient (Carlini and Wagner 2016). This loss is
  the same for a network and for the same network with its logits multiplied by any number.
  """
  logits = outputs['head0']
  scale = jax.lax.stop_gradient(jnp.maximum(logit_scale(logits), 1e-12))
  scale = scale.reshape(-1, *(1,) * (logits.ndim - 1))
  return segmentation.dice({'head0': logits / scale}, batch)


def target_dice(outputs, batch) -> Array:
  """Returns the Dice loss towards label 1 everywhere, which targeted attacks minimise."""
  labels = jnp.full_like(batch['target']['labels'], WANTED)
  return segmentation.dice(outputs, {'target': {'labels': labels}})


def diagnostics(outputs) -> dict[str, Array]:
  """Returns `segmentation.diagnostics` and '_logit_scale', which grows with the temperature."""
  return {
    **segmentation.diagnostics(outputs),
    '_logit_scale': logit_scale(outputs['head0']),
  }


OBJECTIVES = {
  'dice': segmentation.dice,
  'ti': target_dice,
  'ce': segmentation.cross_entropy,
  'margin': segmentation.margin,
  'scaled': scaled_dice,
  **dense_objectives.OBJECTIVES,
}

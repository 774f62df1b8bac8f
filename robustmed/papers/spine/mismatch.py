"""What an out-of-distribution attack on the disk-shape task minimises, and what it is judged by.

`own` outputs are those of the network on the in-distribution image, which the attacked image from
elsewhere is to reproduce: 'contour' [b, 176, 2] and 'probability' [b, side, side, 1] (authors'
code). 'mask' is the segmentation thresholded at logit 0, by which agreement is measured.
"""

import jax
import jax.numpy as jnp
from jax import lax

from robustmed.metrics import losses, overlap
from robustmed.ops import polygon

DETECTOR_WEIGHT = 10.0  # of the reconstruction error in the adaptive attack


def own(outputs):
  """The outputs that an attack is to reproduce."""
  logits = outputs['segmentation']
  wanted = {
    'contour': outputs['contour'],
    'probability': jax.nn.sigmoid(logits),
    'mask': (logits > 0).astype(jnp.float32),
  }
  return lax.stop_gradient(wanted)


def score(outputs, image) -> jax.Array:
  """The reconstruction error, mean |x_rec - x|: the detector's score; nan without that channel."""
  if 'reconstruction' not in outputs:
    return jnp.full(image.shape[:1], jnp.nan)
  return losses.absolute_error(outputs['reconstruction'], image)


def contour_distance(outputs, wanted, image) -> jax.Array:
  """Mean |s_hat - s|, J_OOD_reg of the paper up to a factor."""
  return losses.absolute_error(outputs['contour'], wanted['contour'])


def mask_distance(outputs, wanted, image) -> jax.Array:
  """1 - soft Dice of both probabilities, J_OOD_seg of the paper turned round."""
  return 1 - losses.soft_dice(jax.nn.sigmoid(outputs['segmentation']), wanted['probability'])


def joint(outputs, wanted, image) -> jax.Array:
  """MSE of the contour + 1 - soft Dice, what the authors' code minimises."""
  both = losses.squared_error(outputs['contour'], wanted['contour'])
  return both + mask_distance(outputs, wanted, image)


def joint_rec(outputs, wanted, image, *, weight: float = 1.0) -> jax.Array:
  """`joint` and the reconstruction error: the outputs and the detector are fooled together."""
  return joint(outputs, wanted, image) + weight * score(outputs, image)


def adaptive(outputs, wanted, image) -> jax.Array:
  """`joint_rec` with the detector at ten times the weight."""
  return joint_rec(outputs, wanted, image, weight=DETECTOR_WEIGHT)


MISMATCHES = {
  'joint': joint,
  'reg': contour_distance,
  'seg': mask_distance,
  'joint_rec': joint_rec,
  'adaptive': adaptive,
}
DETECTING = ('joint_rec', 'adaptive')  # those that need a reconstruction


def agreement(outputs, wanted, *, side: int):
  """How alike the outputs are to the wanted ones: {name: [b]}."""
  fill = jax.vmap(lambda contour: polygon.fill(contour, side))
  distance = jnp.linalg.norm(outputs['contour'] - wanted['contour'], axis=-1)
  return {
    'agree_seg': overlap.dice(outputs['segmentation'] > 0, wanted['mask'] > 0.5),
    'agree_reg': overlap.dice(fill(outputs['contour']), fill(wanted['contour'])),
    'agree_error': jnp.mean(distance, axis=-1),
  }


def object_dice(change: jax.Array, mask: jax.Array) -> jax.Array:
  """Dice of the true mask with an 'object' in a change of an image [b, side, side, 1], [b].

  The change is averaged over side/16 x side/16 pixels, then its largest values are kept, as many
  as the mask has pixels; the same with its smallest, and the better of the two counts. The Dice of
  a change that knows nothing of the mask is about the mask's share of the image.
  """
  size = max(1, change.shape[1] // 16)
  window = (1, size, size, 1)
  smooth = lax.reduce_window(change, 0.0, lax.add, window, (1, 1, 1, 1), 'SAME') / size**2
  flat = smooth.reshape(len(smooth), -1)
  wanted = mask.reshape(len(mask), -1) > 0.5
  count = jnp.sum(wanted, axis=1)

  def extreme(values):
    order = jnp.argsort(jnp.argsort(-values, axis=1), axis=1)
    return overlap.dice(order < count[:, None], wanted)

  return jnp.maximum(extreme(flat), extreme(-flat))

"""nnU-Net v2 from the voxels of a file to logits on the same grid, as one pure function.

For attacks on what is deployed: crop, normalisation, resampling, windows, mirror images, folds and
the way back. The backward pass recomputes each window and needs the memory of one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustmed import errors
from robustmed.networks import nnunet_plans, nnunet_predict, nnunet_preprocess
from robustmed.networks.deployed import resampling

Array = jax.Array
PyTree = Any
STATISTICS = ('differentiated', 'held')
OUTSIDE = 30.0  # log-odds of the background outside of the non-zero box
_SMALLEST = 1e-8


def predictor(
  network: nnunet_predict.NnUNet,
  image: np.ndarray,
  *,
  spacing: Sequence[float],
  statistics: str = 'differentiated',
  step: float = 0.5,
  mirror: bool = True,
) -> Callable[[PyTree, Array], dict[str, Array]]:
  """Returns (variables, image [1, z, y, x, c]) -> {'head0': logits [1, z, y, x, classes]}.

  For images like `image` [c, z, y, x], whose box of non-zero voxels and mask of them are held: both
  are what the predictor finds as long as an attack leaves zeros alone. Mean and deviation, or the
  extremes, of a normalisation are those of the image that is given; 'differentiated', the gradient
  flows through them, too, and is that of the whole predictor; 'held', they are constants to it. The
  extremes by which splines are clipped are differentiated.
  """
  errors.lookup(dict.fromkeys(STATISTICS), statistics, kind='way of statistics')
  plan, prepared = network.plan, network.prepare(image, spacing=spacing)
  turned = np.asarray(image, np.float32).transpose(0, *(axis + 1 for axis in plan.forward))
  box, inside = nnunet_preprocess.nonzero(turned)
  size, shape, wanted = inside.shape, prepared.image.shape[1:], (1, *image.shape[1:], len(image))
  there, back = (prepared.spacing, prepared.target), (prepared.target, prepared.spacing)
  to = resampling.of(size, shape, plan.resample_image, spacings=there)
  fro = resampling.of(shape, size, plan.resample_logits, spacings=back)
  flat = len(plan.patch) == 2
  backward = np.argsort(plan.forward)
  background = [-OUTSIDE] * network.classes if plan.labels.regions else None
  background = background or [OUTSIDE, *[0.0] * (network.classes - 1)]

  def predict(variables, image):
    if image.shape != wanted:
      raise errors.UserError(f'the predictor was made for images {wanted}, not {image.shape}')
    x = image[0].transpose(*plan.forward, 3)[box]
    channels = [
      normalised(x[..., c], how, inside=inside, held=statistics == 'held')
      for c, how in enumerate(plan.normalisations)
    ]
    x = to(jnp.stack(channels, axis=-1))
    found = network.logits(variables, x if flat else x[None], step=step, mirror=mirror)
    found = fro(found if flat else found[0])
    full = jnp.broadcast_to(
      jnp.asarray(background, found.dtype).reshape(1, 1, 1, -1),
      (*prepared.shape, network.classes),
    )
    return {'head0': full.at[box].set(found).transpose(*backward, 3)[None]}

  return predict


def normalised(
  x: Array, how: nnunet_plans.Normalisation, *, inside: np.ndarray, held: bool
) -> Array:
  """Returns `nnunet_preprocess.normalise` of one channel [*spatial], its statistics held or not."""
  keep = lax.stop_gradient if held else lambda value: value
  if how.name == 'ZScoreNormalization':
    where = inside if how.masked else np.ones(x.shape, bool)
    mean = jnp.mean(x, where=where)
    # the root of a variance of 0 would have no gradient
    deviation = jnp.sqrt(jnp.maximum(jnp.mean(jnp.square(x - mean), where=where), _SMALLEST**2))
    return jnp.where(where, (x - keep(mean)) / keep(deviation), x)
  if how.name == 'CTNormalization':
    known = how.properties
    x = jnp.clip(x, known['percentile_00_5'], known['percentile_99_5'])
    return (x - known['mean']) / max(known['std'], _SMALLEST)
  if how.name == 'RescaleTo01Normalization':
    x = x - keep(jnp.min(x))
    return x / keep(jnp.maximum(jnp.max(x), _SMALLEST))
  return x / 255 if how.name == 'RGBTo01Normalization' else x

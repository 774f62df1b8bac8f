"""The tumour regions of BraTS: Dice of unions of labels, per example.

Labels: 0 background, 1 necrosis, 2 oedema, 3 enhancing tumour (4 in the challenge's files). The
Dice of two empty regions is 1, that of one empty region 0 (`overlap.dice`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from robustmed.metrics import overlap

REGIONS = {'wt': (1, 2, 3), 'tc': (1, 3), 'et': (3,)}  # whole tumour, core, enhancing


def mask(labels: jax.Array, region: str) -> jax.Array:
  """Returns whether each label of a map [...] is in the region, bool."""
  return jnp.any(jnp.stack([labels == label for label in REGIONS[region]]), axis=0)


def dice(prediction: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """Returns the Dice of two label maps [b, ...]: {'dice_wt': [b], 'dice_tc', 'dice_et'}."""
  return {
    f'dice_{name}': overlap.dice(mask(prediction, name), mask(labels, name)) for name in REGIONS
  }


def counts(prediction: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """Returns intersection '_both_<region>' and total size '_size_<region>' [b] per region.

  `volume_dice` computes the Dice of a volume from those of its slices.
  """
  axes = tuple(range(1, prediction.ndim))
  found = {}
  for name in REGIONS:
    one, two = mask(prediction, name), mask(labels, name)
    found[f'_both_{name}'] = jnp.sum(one & two, axis=axes).astype(jnp.float32)
    size = jnp.sum(one, axis=axes) + jnp.sum(two, axis=axes)
    found[f'_size_{name}'] = size.astype(jnp.float32)
  return found


def volume_dice(columns: Mapping[str, np.ndarray], groups: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the Dice per volume from `counts` of slices: {'group': [g], 'dice_wt': [g], ...}."""
  names, inverse = np.unique(np.asarray(groups), return_inverse=True)
  total = lambda column: np.bincount(inverse, np.asarray(columns[column], np.float64))
  found = {'group': names}
  for name in REGIONS:
    both, size = total(f'_both_{name}'), total(f'_size_{name}')
    found[f'dice_{name}'] = np.where(size == 0, 1.0, 2 * both / np.maximum(size, 1))
  return found

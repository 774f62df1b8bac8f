"""A results folder of nnU-Net v2 as one object that predicts what `nnUNetv2_predict` does.

Isensee et al., Nature Methods 2021: sliding windows half a patch apart, logits averaged with
Gaussian weights, over mirror images of the axes that training mirrored, and over the folds.
`NnUNet.logits` is a pure function of weights and image, for attacks; `NnUNet.predict` runs on the
host and compiles once for all sizes.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustmed import errors
from robustmed.networks import nnunet_files, nnunet_network, nnunet_plans, nnunet_preprocess
from robustmed.tasks import sliding

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class NnUNet:
  """A network that nnU-Net v2 trained; `variables` have a leading axis over the folds."""

  plan: nnunet_plans.Plan
  network: nnunet_network.UNet
  variables: PyTree

  @property
  def classes(self) -> int:
    return self.network.classes

  def apply(self, variables: PyTree, window: Array) -> Array:
    """Returns logits [b, *patch, classes] of windows [b, *patch, c], the mean over folds."""
    one = lambda total, fold: (total + self.network.apply(fold, window)['head0'], None)
    shape = (*window.shape[:-1], self.classes)
    total, _ = lax.scan(one, jnp.zeros(shape, window.dtype), variables)
    return total / len(self.plan.folds)

  def mirrored(self, variables: PyTree, window: Array) -> Array:
    """Returns `apply` averaged over the mirror images that training allows."""
    flips = _flips(self.plan.mirrored)
    found = [jnp.flip(self.apply(variables, jnp.flip(window, axes)), axes) for axes in flips]
    return sum(found[1:], found[0]) / len(found)

  def logits(
    self, variables: PyTree, image: Array, *, step: float = 0.5, mirror: bool = True
  ) -> Array:
    """Returns logits [b, *spatial, classes] of a preprocessed image [b, *spatial, c].

    Spatial axes are those of the patch: of a 2D network, slices are the batch. Differentiable by
    both; the backward pass recomputes each window, and needs the memory of one.
    """
    return sliding.averaged(
      functools.partial(self.apply, variables),
      image,
      patch=self.plan.patch,
      step=step,
      mirrored=self.plan.mirrored if mirror else (),
      blend='nnunet',
    )

  def prepare(
    self, image: np.ndarray, *, spacing: Sequence[float], what: str = 'the image'
  ) -> nnunet_preprocess.Prepared:
    """Returns image [c, z, y, x] as the network reads it; spacing in millimetres, [z, y, x]."""
    return nnunet_preprocess.prepare(image, self.plan, spacing=spacing, what=what)

  def predict_logits(
    self, prepared: nnunet_preprocess.Prepared, *, step: float = 0.5, mirror: bool = True
  ) -> np.ndarray:
    """Returns logits [classes, *spatial] of a prepared image."""
    image = np.moveaxis(prepared.image, 0, -1)
    function = self._mirrored if mirror else self._apply
    run = functools.partial(function, self.variables)
    if len(self.plan.patch) == 2:
      found = np.stack([self._windows(run, plane, step) for plane in image])
    else:
      found = self._windows(run, image, step)
    if not np.isfinite(found).all():
      raise errors.UserError(f'{self.plan.folder}: the network gives NaN or infinite values')
    return np.moveaxis(found, -1, 0)

  def predict(
    self, image: np.ndarray, *, spacing: Sequence[float], what: str = 'the image', **options
  ) -> np.ndarray:
    """Returns the label map [z, y, x] of image [c, z, y, x] on its own grid."""
    prepared = self.prepare(image, spacing=spacing, what=what)
    logits = self.predict_logits(prepared, **options)
    return nnunet_preprocess.restore(logits, prepared, self.plan)

  def predict_probabilities(
    self, image: np.ndarray, *, spacing: Sequence[float], what: str = 'the image', **options
  ) -> np.ndarray:
    """Returns probabilities [classes or regions, z, y, x] of image [c, z, y, x] on its own grid."""
    prepared = self.prepare(image, spacing=spacing, what=what)
    logits = self.predict_logits(prepared, **options)
    return nnunet_preprocess.restore_probabilities(logits, prepared, self.plan)

  def predict_files(
    self, paths: Sequence[pathlib.Path | str], output: pathlib.Path | str, **options
  ) -> np.ndarray:
    """Writes the label map of one case, a file per channel, and returns it as [z, y, x]."""
    case = nnunet_files.read([pathlib.Path(path) for path in paths], reader=self.plan.reader)
    what = str(paths[0])
    labels = self.predict(case.image, spacing=case.spacing, what=what, **options)
    nnunet_files.write(pathlib.Path(output), labels, case)
    return labels

  def describe(self) -> dict[str, str]:
    """Returns what the network reads and gives, in words."""
    plan = self.plan
    labels = ', '.join(f'{v} {n}' for v, n in zip(plan.labels.values, plan.labels.names))
    return {
      'network': f'{plan.architecture.kind} U-Net, {plan.configuration}, {plan.trainer}',
      'folds': ', '.join(fold.path.parent.name for fold in plan.folds),
      'checkpoint': plan.folds[0].path.name,
      'channels': ', '.join(plan.channels),
      'patch': ' x '.join(map(str, plan.patch)),
      'spacing': ' x '.join(f'{value:g}' for value in plan.spacing) + ' mm',
      'normalisation': ', '.join(how.name for how in plan.normalisations),
      'output': ('regions: ' if plan.labels.regions else 'labels: ') + labels,
      'ignored label': 'none' if plan.labels.ignored is None else str(plan.labels.ignored),
      'mirrored axes': ', '.join(map(str, plan.mirrored)) or 'none',
    }

  @functools.cached_property
  def _apply(self):
    return jax.jit(self.apply)

  @functools.cached_property
  def _mirrored(self):
    return jax.jit(self.mirrored)

  def _windows(self, run, image, step):
    """Returns logits [*spatial, classes] of image [*spatial, c], window by window."""
    patch, size = self.plan.patch, image.shape[:-1]
    weights = sliding.half_gaussian(patch)[..., None]
    total = np.zeros((*size, self.classes), np.float32)
    norm = np.zeros((*size, 1), np.float32)
    for tile in sliding.tiles(run, image, patch=patch, step=step):
      first = np.maximum(tile.corner, 0)
      last = np.minimum(tile.corner + np.array(patch), size)
      here = tuple(map(slice, first, last))
      there = tuple(map(slice, first - tile.corner, last - tile.corner))
      total[here] += (tile.outputs * weights)[there]
      norm[here] += weights[there]
    return total / norm


def load(
  folder: pathlib.Path | str, *, folds: Sequence[str | int] = (), checkpoint: str = ''
) -> NnUNet:
  """Returns the network of a results folder (`Dataset.../TRAINER__PLANS__CONFIGURATION`).

  folds: by default every one that is there. checkpoint: by default the final one, or else the best
  one. No code in the files is run; what cannot be read is one `UserError` line.
  """
  plan = nnunet_plans.read(folder, folds=tuple(folds), checkpoint=checkpoint)
  network = nnunet_network.UNet(plan.architecture, len(plan.labels.values))
  wanted = nnunet_network.shapes(network, channels=len(plan.channels))
  trees = [nnunet_network.load(wanted, fold.weights, path=fold.path) for fold in plan.folds]
  return NnUNet(plan, network, jax.tree.map(lambda *leaves: np.stack(leaves), *trees))


def _flips(axes):
  """Returns all sets of spatial axes as axes of [b, *spatial, c], the empty one first."""
  return [
    tuple(axis + 1 for axis in some)
    for count in range(len(axes) + 1)
    for some in itertools.combinations(axes, count)
  ]

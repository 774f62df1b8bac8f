"""Distances between the surfaces of label maps, in mm. Plain numpy and scipy, float64."""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage

_SLACK = 1e-9  # of a tolerance: a distance of exactly the tolerance is within it


def per_class(
  prediction: np.ndarray,
  target: np.ndarray,
  *,
  classes: Sequence[int],
  spacing: Sequence[float],
  tolerance: float | Sequence[float],
) -> dict[str, np.ndarray]:
  """{'HD95': [K] mm, 'NSD': [K] in [0, 1]} of two label maps [*spatial], one entry per class.

  spacing: mm per axis. tolerance: mm, one for all classes or one each. For empty masks see `hd95`
  and `nsd`.
  """
  limits = np.broadcast_to(np.asarray(tolerance, np.float64), len(classes))
  found = {'HD95': [], 'NSD': []}
  for label, limit in zip(classes, limits):
    there, back = directed_distances(prediction == label, target == label, spacing=spacing)
    found['HD95'].append(_hd95(there, back, diagonal(prediction.shape, spacing)))
    found['NSD'].append(_nsd(there, back, limit))
  return {name: np.array(values, np.float64) for name, values in found.items()}


def hd95(prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float]) -> float:
  """The larger of the two directed 95th percentiles of surface distances, in mm.

  Two empty masks agree: 0. One empty mask against a filled one is as far as anything can be: the
  diagonal of the volume.
  """
  there, back = directed_distances(prediction, target, spacing=spacing)
  return _hd95(there, back, diagonal(prediction.shape, spacing))


def nsd(
  prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float], tolerance: float
) -> float:
  """Normalised surface Dice: the share of both surfaces within `tolerance` mm of the other one.

  Nikolov et al. 2021, with surfaces counted in voxels. Two empty masks: 1; one: 0.
  """
  return _nsd(*directed_distances(prediction, target, spacing=spacing), tolerance)


def directed_distances(
  prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """(distances of the prediction's surface to the target's, those of the target's back), in mm.

  An empty mask has no surface: no distances from it, infinite ones to it. A surface are
  the voxels of a mask with a neighbour along an axis outside it; beyond the edge is outside.
  """
  prediction, target = np.asarray(prediction, bool), np.asarray(target, bool)
  if prediction.shape != target.shape or prediction.ndim != len(spacing):
    raise ValueError(f'masks {prediction.shape}, {target.shape} and spacing {tuple(spacing)}')
  # Nothing outside the box around both masks has a part in any distance.
  box = _box(prediction | target)
  ours, theirs = (_surface(mask[box]) for mask in (prediction, target))
  return _distances(ours, theirs, spacing), _distances(theirs, ours, spacing)


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
  """Length of the diagonal of a volume in mm."""
  return float(np.linalg.norm(np.asarray(shape, np.float64) * np.asarray(spacing, np.float64)))


def _hd95(there, back, farthest):
  if not there.size and not back.size:
    return 0.0
  if not there.size or not back.size:
    return farthest
  return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _nsd(there, back, tolerance):
  if not there.size and not back.size:
    return 1.0
  limit = tolerance * (1 + _SLACK)
  return float((np.sum(there <= limit) + np.sum(back <= limit)) / (there.size + back.size))


def _box(mask):
  if not mask.any():
    return tuple(slice(0, 0) for _ in mask.shape)
  return scipy.ndimage.find_objects(mask.astype(np.uint8))[0]


def _surface(mask):
  return mask & ~scipy.ndimage.binary_erosion(mask) if mask.size else mask


def _distances(surface, other, spacing):
  if not surface.any():
    return np.zeros(0)
  if not other.any():
    return np.full(int(surface.sum()), np.inf)
  return scipy.ndimage.distance_transform_edt(~other, sampling=spacing)[surface]

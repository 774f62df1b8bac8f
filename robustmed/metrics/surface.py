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
  """Returns {'HD95': [K] mm, 'NSD': [K] in [0, 1]} of two label maps [*spatial], per class.

  spacing: mm per axis. tolerance: mm, one for all classes or one each. For empty masks see `hd95`
  and `nsd`.
  """
  limits = np.broadcast_to(np.asarray(tolerance, np.float64), len(classes))
  found = [
    pair(prediction == label, target == label, spacing=spacing, tolerance=limit)
    for label, limit in zip(classes, limits)
  ]
  shares, distances = np.array(found, np.float64).reshape(-1, 2).T
  return {'HD95': distances, 'NSD': shares}


def pair(
  prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
  """Returns (`nsd`, `hd95`) of two masks; distances are computed once."""
  there, back = directed_distances(prediction, target, spacing=spacing)
  return _nsd(there, back, tolerance), _hd95(there, back, diagonal(prediction.shape, spacing))


def hd95(prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float]) -> float:
  """Returns the larger of the two directed 95th percentiles of surface distances, in mm.

  It is 0 for two empty masks, and the diagonal of the volume for one empty mask.
  """
  there, back = directed_distances(prediction, target, spacing=spacing)
  return _hd95(there, back, diagonal(prediction.shape, spacing))


def nsd(
  prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float], tolerance: float
) -> float:
  """Returns the share of both surfaces that is within `tolerance` mm of the other one.

  Normalised surface Dice of Nikolov et al. 2021, counted in voxels. 1 for two empty masks, 0 for
  one.
  """
  return _nsd(*directed_distances(prediction, target, spacing=spacing), tolerance)


def directed_distances(
  prediction: np.ndarray, target: np.ndarray, *, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns distances from the prediction's surface to the target's, and the reverse, in mm.

  The surface of a mask is its voxels with a neighbour along an axis outside it; beyond the edge of
  the volume is outside. An empty mask has no distances from it and infinite ones to it.
  """
  prediction, target = np.asarray(prediction, bool), np.asarray(target, bool)
  if prediction.shape != target.shape or prediction.ndim != len(spacing):
    raise ValueError(f'masks {prediction.shape}, {target.shape} and spacing {tuple(spacing)}')
  # Voxels outside the box around both masks do not change any distance.
  box = _box(prediction | target)
  ours, theirs = (_surface(mask[box]) for mask in (prediction, target))
  return _distances(ours, theirs, spacing), _distances(theirs, ours, spacing)


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
  """Returns the length of the diagonal of a volume in mm."""
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

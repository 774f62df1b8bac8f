"""N4 bias field correction (Tustison et al. 2010) by SimpleITK, its fields kept on disk."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from robustmed import errors
from robustmed.ops import resize
from robustmed.process import files

LEVELS = 4  # of the fit, each with twice as many control points along an axis
KNOTS = 33  # points per axis at which a field is kept, four for each of its finest control points


class Settings(NamedTuple):
  shrink: int = 4  # the fit sees every n-th voxel per axis, as far as 4 are left
  iterations: int = 50  # at most, on each level


def check(settings: Settings) -> None:
  if settings.shrink < 1 or settings.iterations < 1:
    raise errors.UserError(f'data fields n4_shrink and n4_iterations must be >= 1, not {settings}')


def correct(volume: np.ndarray, knots: np.ndarray) -> np.ndarray:
  """The volume [d, h, w] divided by the field that `log_field` found, float32."""
  field = np.asarray(knots, np.float64)
  for size in volume.shape:  # each turn takes the first axis and puts its result last
    weights = resize.matrix(field.shape[0], size, align_corners=True)
    field = np.tensordot(field, weights, ((0,), (1,)))
  return (volume / np.exp(field)).astype(np.float32)


def log_field(volume: np.ndarray, settings: Settings) -> np.ndarray:
  """The logarithm of the bias field of `volume` [d, h, w] at up to 33 points per axis, float32.

  Fitted to the voxels above 0, on one thread, so it is the same every time. Without any such voxel
  the field is flat.
  """
  count = [max(2, min(n, KNOTS)) for n in volume.shape]
  if not (volume > 0).any():
    return np.zeros(count, np.float32)
  step = [max(1, min(settings.shrink, n // 4)) for n in volume.shape[::-1]]
  image = sitk.GetImageFromArray(np.ascontiguousarray(volume, np.float32))
  small = sitk.Shrink(image, step)
  mask = sitk.Cast(small > 0, sitk.sitkUInt8)
  if not sitk.GetArrayViewFromImage(mask).any():
    return np.zeros(count, np.float32)
  fit = sitk.N4BiasFieldCorrectionImageFilter()
  fit.SetMaximumNumberOfIterations([settings.iterations] * LEVELS)
  fit.SetNumberOfThreads(1)
  fit.Execute(small, mask)
  reference = sitk.Image([int(n) for n in count[::-1]], sitk.sitkFloat32)
  extent = [(n - 1) / (m - 1) for n, m in zip(volume.shape, count)]
  reference.SetSpacing([max(float(spacing), 1e-3) for spacing in extent[::-1]])
  return sitk.GetArrayFromImage(fit.GetLogBiasFieldAsImage(reference))


def cached_log_field(
  volume: np.ndarray, settings: Settings, *, folder: pathlib.Path, key: Mapping[str, Any] | list
) -> np.ndarray:
  """`log_field`, computed once per `key` (plain data that says which volume this is)."""
  text = json.dumps([key, settings, LEVELS, KNOTS])
  path = folder / f'{hashlib.sha256(text.encode()).hexdigest()[:24]}.npy'
  try:
    return np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError):  # not there yet, or not whole
    knots = log_field(volume, settings)
    with files.replacing(path) as temporary:
      np.save(temporary, knots, allow_pickle=False)
    return knots

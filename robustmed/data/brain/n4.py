"""N4 bias field correction (Tustison et al. 2010) by SimpleITK, with a cache of fields on disk."""

import contextlib
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

LEVELS = 4  # of the fit, each with twice as many control points along an axis as the one before
KNOTS = 33  # points per axis at which a field is stored, four per control point of the last level


class Settings(NamedTuple):
  shrink: int = 4  # the fit uses every n-th voxel per axis, but at least 4 of them
  iterations: int = 50  # at most, on each level


def check(settings: Settings) -> None:
  if settings.shrink < 1 or settings.iterations < 1:
    raise errors.UserError(f'data fields n4_shrink and n4_iterations must be >= 1, not {settings}')


def correct(volume: np.ndarray, knots: np.ndarray) -> np.ndarray:
  """Returns the volume [d, h, w] divided by the field whose logarithm is `knots`, float32."""
  field = np.asarray(knots, np.float64)
  for size in volume.shape:  # tensordot contracts the first axis and appends the new one
    weights = resize.matrix(field.shape[0], size, align_corners=True)
    field = np.tensordot(field, weights, ((0,), (1,)))
  return (volume / np.exp(field)).astype(np.float32)


def log_field(volume: np.ndarray, settings: Settings) -> np.ndarray:
  """Returns the log bias field of `volume` [d, h, w] at up to 33 points per axis, float32.

  It is fitted to the voxels above 0, on one thread, so that it is reproducible. Without any such
  voxel the field is flat.
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


def field_file(settings: Settings, *, folder: pathlib.Path, key: Mapping[str, Any] | list):
  """Returns where `cached_log_field` keeps the field of `key`."""
  text = json.dumps([key, settings, LEVELS, KNOTS])
  return folder / f'{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz'


def cached_log_field(
  volume: np.ndarray, settings: Settings, *, folder: pathlib.Path, key: Mapping[str, Any] | list
) -> np.ndarray:
  """Returns `log_field`, computed once per `key` (plain data that identifies the volume).

  A damaged file of it, which its check sum shows, is computed again.
  """
  path = field_file(settings, folder=folder, key=key)
  if path.is_file():
    with contextlib.suppress(errors.UserError, KeyError):
      return files.read_arrays(path)['knots']
  knots = log_field(volume, settings)
  with files.replacing(path) as temporary:
    np.savez(temporary, knots=knots)
  return knots

"""Writes results on the grid of the file that they come from, in patient space."""

import gzip
import pathlib
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

from robustmed.data.files import cubes
from robustmed.process import files


def labels(path: pathlib.Path, classes: np.ndarray, case: Mapping[str, Any], *, values=()) -> None:
  """Writes classes [*spatial] of a case as NIfTI with the values of its label maps.

  case: of `Source.info['cases']`. classes may be on the resampled grid; `values` are those of the
  classes, () is their numbers.
  """
  numbers = cubes.resize(np.asarray(classes, np.int32), case['shape'], order=0)
  if len(values):
    numbers = np.asarray(values, np.int64)[np.maximum(numbers, 0)]
  write(path, numbers, case, dtype=np.uint8 if numbers.max(initial=0) < 256 else np.int32)


def image(path: pathlib.Path, values: np.ndarray, case: Mapping[str, Any]) -> None:
  """Writes stored values [*spatial, c] as NIfTI, rounded and clipped to the file's integer type."""
  array = cubes.resize(np.asarray(values, np.float32), case['shape'], order=1)
  write(path, rounded(array, case), case, dtype=np.float32)


def numbers(path: pathlib.Path, whole: np.ndarray, case: Mapping[str, Any]) -> None:
  """Writes whole numbers [*spatial, c] as NIfTI in the file's integer type, with its slope."""
  kind = np.dtype(case['dtype']).newbyteorder('=')
  write(path, whole, case, dtype=kind, rescale=case['rescale'])


def number(value: float, case: Mapping[str, Any]) -> int:
  """Returns the whole number that is nearest to a value in a file of the case's integer type."""
  kind, (slope, intercept) = np.dtype(case['dtype']), case['rescale']
  return int(np.clip(np.round((value - intercept) / slope), *_ends(kind)))


def rounded(values: np.ndarray, case: Mapping[str, Any]) -> np.ndarray:
  """Returns the values that a file of the case's integer type can hold; others are unchanged.

  Values are those of the header's slope and intercept: stored * slope + intercept.
  """
  kind, (slope, intercept) = np.dtype(case['dtype']), case['rescale']
  if kind.kind not in 'iu':
    return values
  stored = np.clip(np.round((values - intercept) / slope), *_ends(kind))
  return (stored * slope + intercept).astype(np.float32)


def _ends(kind: np.dtype) -> tuple[int, int]:
  return np.iinfo(kind).min, np.iinfo(kind).max


def write(
  path: pathlib.Path, array: np.ndarray, case: Mapping[str, Any], *, dtype, rescale=None
) -> None:
  """Writes an array [*spatial] or [*spatial, c], whole or not at all, with the case's affine.

  rescale: slope and intercept of the header, where the array holds the numbers of a file.
  """
  rank = len(case['shape'])
  if array.ndim > rank and array.shape[-1] == 1:
    array = array[..., 0]
  turned = array.transpose(*reversed(range(rank)), *range(rank, array.ndim))  # [x, y(, z), ...]
  if rank == 2:
    turned = np.expand_dims(turned, 2)
  turned = turned.astype(dtype)
  made = nib.Nifti1Image(turned, np.asarray(case['affine'], np.float64), dtype=turned.dtype)
  if rescale is not None:
    made.header.set_slope_inter(*rescale)
  made.header.set_xyzt_units('mm')
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as temporary:
    content = made.to_bytes()
    # no time stamp: the same array makes the same file
    packed = gzip.compress(content, 6, mtime=0) if path.name.endswith('.gz') else content
    temporary.write_bytes(packed)


def slice_of(case: Mapping[str, Any], axis: int, place: int) -> dict[str, Any]:
  """Returns the case as the one slice `place` of it along `axis` of [z, y, x], where it lies."""
  shape, affine = list(case['shape']), np.array(case['affine'], np.float64)
  shape[axis] = 1
  affine[:3, 3] += place * affine[:3, len(shape) - 1 - axis]
  return {**case, 'shape': shape, 'affine': affine}

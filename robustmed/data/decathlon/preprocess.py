"""Turns volumes into z-scored slices of one in-plane spacing, as nnU-Net v1 does for 2D.

Isensee et al. 2021 and the authors' preprocessing of version 1: crop to the nonzero box, resample
in the plane alone, z-score per case and modality. One volume at a time is in memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import skimage.transform

MASK_BELOW = 3 / 4  # median crop ratio below which statistics are over the nonzero mask alone


class Volume(NamedTuple):
  """One volume: [z, y, x] as read, with the slice axis first after `slices_first`."""

  image: np.ndarray  # [z, y, x, c] float32
  labels: np.ndarray  # [z, y, x] int8; -1 is background outside the nonzero mask
  spacing: tuple[float, float, float]  # millimetres


class Survey(NamedTuple):
  """What the fingerprint needs of one case."""

  shape: tuple[int, int, int]  # after cropping, [z, y, x]
  spacing: tuple[float, float, float]
  ratio: float  # voxels after cropping to voxels before


class Fingerprint(NamedTuple):
  """What nnU-Net's planner needs of a data set; plain numbers, the slice axis first."""

  axis: int  # of [z, y, x], the one across slices
  spacing: tuple[float, float, float]  # median
  shape: tuple[int, int, int]  # median of the cases resampled to that spacing
  cases: int
  modalities: int
  classes: int  # with the background
  crop_ratio: float  # median
  mask_norm: bool  # z-scores over the nonzero mask alone, zero outside
  voxels: int  # cases times the voxels of the median shape


def box(image: np.ndarray) -> tuple[slice, slice, slice]:
  """Returns the bounding box of voxels with any modality not zero; `ValueError` without any."""
  filled = (image != 0).any(axis=-1)
  found = []
  for axis in range(3):
    line = np.flatnonzero(filled.any(axis=tuple({0, 1, 2} - {axis})))
    if not len(line):
      raise ValueError('the image is zero everywhere')
    found.append(slice(int(line[0]), int(line[-1]) + 1))
  return tuple(found)


def crop(volume: Volume) -> Volume:
  """Returns the volume inside `box`; labels 0 outside the hole-filled nonzero mask become -1."""
  part = box(volume.image)
  image, labels = volume.image[part], volume.labels[part]
  outside = ~scipy.ndimage.binary_fill_holes((image != 0).any(axis=-1))
  return volume._replace(
    image=image, labels=np.where(outside & (labels == 0), -1, labels).astype(np.int8)
  )


def survey(volume: Volume) -> Survey:
  """Returns what the fingerprint needs of one volume that is not cropped yet."""
  shape = tuple(part.stop - part.start for part in box(volume.image))
  spacing = tuple(float(value) for value in volume.spacing)
  return Survey(shape, spacing, float(np.prod(shape) / volume.labels.size))


def fingerprint(cases: Sequence[Survey], *, modalities: int, classes: int) -> Fingerprint:
  """Returns the medians over all cases, with the rules and rounding of nnU-Net's 2D planner."""
  spacings = np.array([case.spacing for case in cases], np.float64)
  spacing = np.median(spacings, axis=0)
  shapes = spacings / spacing * np.array([case.shape for case in cases])
  axis = int(np.argmax(spacing))  # the first one on ties
  order = [axis, *(other for other in range(3) if other != axis)]
  shape = np.round(np.median(shapes, axis=0)[order]).astype(int)
  ratio = float(np.median([case.ratio for case in cases]))
  return Fingerprint(
    axis=axis,
    spacing=tuple(spacing[order].tolist()),
    shape=tuple(shape.tolist()),
    cases=len(cases),
    modalities=modalities,
    classes=classes,
    crop_ratio=ratio,
    mask_norm=ratio < MASK_BELOW,
    voxels=len(cases) * int(np.prod(shape, dtype=np.int64)),
  )


def apply(volume: Volume, found: Fingerprint) -> Volume:
  """Returns a raw volume cropped, slices first, resampled in the plane and z-scored."""
  volume = resample(slices_first(crop(volume), found.axis), found.spacing[1:])
  inside = volume.labels >= 0 if found.mask_norm else None
  return volume._replace(image=normalise(volume.image, inside))


def slices_first(volume: Volume, axis: int) -> Volume:
  spacing = list(volume.spacing)
  return Volume(
    np.moveaxis(volume.image, axis, 0),
    np.moveaxis(volume.labels, axis, 0),
    (spacing.pop(axis), *spacing),
  )


def resample(volume: Volume, spacing: Sequence[float]) -> Volume:
  """Returns the volume resampled slice by slice to an in-plane `spacing` (rows, columns).

  Images are resized with cubic splines and clipped to the slice's range. The 0/1 map of each label
  is resized linearly; the label is where it is at least 1/2. Edges are repeated, without smoothing.
  """
  old = np.array(volume.spacing[1:], np.float64)
  shape = np.maximum(1, np.round(old / spacing * volume.labels.shape[1:])).astype(int)
  spacing = (volume.spacing[0], *(float(value) for value in spacing))
  if tuple(shape) == volume.labels.shape[1:]:
    return volume._replace(spacing=spacing)
  count, _, _, modalities = volume.image.shape
  image = np.empty((count, *shape, modalities), np.float32)
  labels = np.zeros((count, *shape), np.int8)
  known = np.unique(volume.labels)
  for z in range(count):
    for c in range(modalities):
      image[z, ..., c] = _resize(volume.image[z, ..., c], shape, order=3)
    for label in known:
      labels[z][_resize(volume.labels[z] == label, shape, order=1) >= 0.5] = label
  return Volume(image, labels, spacing)


def _resize(plane, shape, *, order):
  return skimage.transform.resize(
    plane.astype(np.float64), shape, order=order, mode='edge', clip=True, anti_aliasing=False
  )


def normalise(image: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
  """Returns z-scores [z, y, x, c] per modality; with `inside`, over its voxels and 0 elsewhere."""
  where = np.ones(image.shape[:3], bool) if inside is None else inside
  result = np.zeros(image.shape, np.float32)
  for c in range(image.shape[-1]):
    values = image[..., c][where].astype(np.float64)
    result[where, c] = (values - values.mean()) / (values.std() + 1e-8)
  return result

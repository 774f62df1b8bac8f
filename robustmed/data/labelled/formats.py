"""Reads an image or a label map of any supported format, with its place in the patient.

Arrays have the axes of the file in reverse order, [z, y, x] or [h, w], channels last. `affine` maps
the voxel (x, y, z) of the file to millimetres (right, front, head).
"""

import pathlib
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from robustmed import errors
from robustmed.data.files import itk, nifti, pictures

ITK = ('.mha', '.mhd', '.nrrd')
SUFFIXES = (*nifti.SUFFIXES, *ITK, *pictures.PHOTOS, *pictures.ARRAYS)
_LARGEST = float(np.finfo(np.float32).max)
LOSSY = ('.jpg', '.jpeg')


class Stored(NamedTuple):
  array: np.ndarray  # as stored, with slope and intercept of the header applied
  spatial: int | None  # axes that are no channels; None where the format does not say
  spacing: tuple[float, ...] | None  # millimetres along [z, y, x]; None where the file has none
  affine: np.ndarray  # [4, 4]
  dtype: str  # the type of the stored numbers
  rescale: tuple[float, float] = (1.0, 0.0)  # slope and intercept


def suffix_of(path: pathlib.Path) -> str:
  """Returns the supported ending of a file's name, '' if it has none."""
  name = path.name.lower()
  return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), '')


def stem_of(path: pathlib.Path) -> str:
  """Returns the name of a file without its supported ending."""
  return path.name[: len(path.name) - len(suffix_of(path))]


def read(path: pathlib.Path) -> Stored:
  """Returns the content of a file; a damaged or unsupported one is a `UserError`."""
  suffix = suffix_of(path)
  if suffix in nifti.SUFFIXES:
    found = _nifti(path)
  elif suffix in ITK:
    found = _itk(path)
  elif suffix in pictures.ARRAYS:
    found = _array(path)
  elif suffix:
    found = _picture(path)
  else:
    raise errors.UserError(f'{path}: unknown ending; known are {", ".join(SUFFIXES)}')
  if found.array.dtype.kind not in 'biuf' or min(found.array.shape, default=0) < 1:
    raise errors.UserError(
      f'{path}: must hold plain numbers, not {found.array.dtype} {list(found.array.shape)}'
    )
  if not np.isfinite(found.array).all():
    raise errors.UserError(f'{path}: has NaN or infinite values')
  if found.array.dtype.kind == 'f' and float(np.abs(found.array).max()) > _LARGEST:
    raise errors.UserError(f'{path}: has values beyond {_LARGEST:.3g}, which float32 does not hold')
  native = found.array.dtype.newbyteorder('=')
  return found._replace(array=found.array.astype(native, copy=False), dtype=_native(found.dtype))


def _native(dtype: str) -> str:
  return str(np.dtype(dtype).newbyteorder('='))


def _damaged(path, reason):
  return errors.UserError(
    f'{path}: cannot be read ({reason}); damaged or not a {suffix_of(path)} file, copy it again'
  )


def _nifti(path):
  try:
    image = nifti.checked(path)
    with np.errstate(over='ignore', invalid='ignore'):  # `read` looks for what is not finite
      array = np.asanyarray(image.dataobj)
    zooms = tuple(float(value) for value in image.header.get_zooms()[:3])
    slope, intercept = image.header.get_slope_inter()
    affine = np.asarray(image.affine, np.float64)
    dtype = str(image.get_data_dtype())
  except errors.UserError:
    raise
  except Exception as error:  # for a damaged file the reader raises exceptions of any kind
    raise _damaged(path, f'{type(error).__name__}: {error}') from error
  zooms = (*zooms, 1.0, 1.0)[:3]
  if not all(np.isfinite(zooms)) or min(zooms) <= 0 or not np.isfinite(affine).all():
    raise errors.UserError(f'{path}: voxel spacing {zooms} is not three positive numbers')
  while array.ndim > 3 and array.shape[3] == 1:
    array = array[:, :, :, 0]
  if array.ndim == 2:
    array = array[:, :, None]
  if array.ndim not in (3, 4):
    raise errors.UserError(f'{path}: has {array.ndim} axes; needs three, or four with channels')
  rescale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
  return _flat(array.transpose(2, 1, 0, *range(3, array.ndim)), zooms[::-1], affine, dtype, rescale)


def _flat(array, spacing, affine, dtype, rescale=(1.0, 0.0)):
  """The volume [z, y, x, ...], or the image [y, x, ...] where there is one slice alone."""
  spatial = 3
  if array.shape[0] == 1:
    array, spacing, spatial = array[0], spacing[1:], 2
  return Stored(array, spatial, tuple(spacing), affine, dtype, rescale)


def _itk(path):
  image = itk.read(path)
  rank = image.GetDimension()
  if rank not in (2, 3):
    raise errors.UserError(f'{path}: has {rank} axes; needs two or three, and channels')
  array = sitk.GetArrayFromImage(image)
  affine, flip = np.eye(4), np.diag([-1.0, -1.0, 1.0])  # ITK: (left, back, head)
  direction, origin = np.eye(3), np.zeros(3)
  direction[:rank, :rank] = np.reshape(image.GetDirection(), (rank, rank))
  origin[:rank] = image.GetOrigin()
  spacing = (*image.GetSpacing(), 1.0)[:3]
  affine[:3, :3], affine[:3, 3] = flip @ direction * np.array(spacing), flip @ origin
  if rank == 2:
    return Stored(array, 2, image.GetSpacing()[::-1], affine, str(array.dtype))
  return _flat(array, spacing[::-1], affine, str(array.dtype))


def _array(path):
  with pictures.opened(path) as file:
    array = pictures.array_of(file, path)
  if array.ndim not in (2, 3, 4):
    raise errors.UserError(f'{path}: has {array.ndim} axes; needs two or three, and channels')
  return Stored(array, 2 if array.ndim == 2 else None, None, np.eye(4), str(array.dtype))


def _picture(path):
  with pictures.opened(path) as file, pictures.picture_of(file, path) as picture:
    frames = getattr(picture, 'n_frames', 1)
    pages = []
    for number in range(frames):  # a stack of slices
      if frames > 1:
        picture.seek(number)
      pages.append(pictures.page_of(picture, path, pages=frames))
      if pages[-1].shape != pages[0].shape:
        raise errors.UserError(f'{path}: its pages have different sizes')
    array = np.stack(pages) if frames > 1 else pages[0]
  spatial = 2 if frames == 1 else 3
  if array.ndim not in (spatial, spatial + 1):
    raise errors.UserError(f'{path}: must be an image, not an array of {list(array.shape)}')
  return Stored(array, spatial, None, np.eye(4), str(array.dtype))

"""Reads NIfTI volumes, turns them to one orientation and writes results on the grid of their file.

Arrays in the package have the axes [d, h, w]: feet to head, front to back, the patient's right to
left, whatever the order in the file (`oriented`). `restore` puts a result on the file's own grid.
"""

import gzip
import logging
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from robustmed import errors
from robustmed.data.files import cubes, pictures
from robustmed.process import files

AXES = ('S', 'P', 'L')  # where the axes d, h, w point to
SUFFIXES = ('.nii.gz', '.nii')
GEOMETRY = ('affine', 'grid', 'box')
_CHUNK = 2**20
_ENDS_AT = {348: (108, 'f'), 540: (168, 'q')}  # bytes of a header: where the voxels' place stands
_LONGEST_HEADER = 544
# What is wrong with a header is said in one line of our own; the library would print it as well.
nib.imageglobals.logger.setLevel(logging.CRITICAL + 1)


class Volume(NamedTuple):
  array: np.ndarray  # [i, j, k] or [i, j, k, c], in the file's order
  affine: np.ndarray  # [4, 4] float64, voxel indices -> millimetres (right, front, head)


class Geometry(NamedTuple):
  """Where a cropped and resized cube lies on the grid of its file."""

  affine: np.ndarray  # [4, 4] of the file
  grid: np.ndarray  # [3], shape of the file
  box: np.ndarray  # [3, 2], first and past-the-last voxel of the crop on the axes d, h, w


class Header(NamedTuple):
  shape: tuple[int, ...]
  affine: np.ndarray  # [4, 4]


def _check_size(image: nib.Nifti1Pair, path: pathlib.Path) -> None:
  """Raises a ValueError unless a file has the voxels that its header declares, and no more.

  Nothing is allocated. A compressed file is read to its end, where its check sum is.
  """
  header = image.header
  declared = math.prod(image.shape) * header.get_data_dtype().itemsize
  whole = image.dataobj.offset + declared
  if path.suffix == '.gz':
    size = 0
    with gzip.open(path) as file:
      while part := file.read(_CHUNK):
        size += len(part)
  else:
    size = pathlib.Path(image.file_map['image'].filename).stat().st_size
  if size != whole:
    raise ValueError(f'its header declares {whole} bytes, the file has {size}')


def _check_extensions(path: pathlib.Path) -> None:
  """Raises a ValueError for an extension of the header that declares more bytes than there are.

  The library would take memory for them.
  """
  with gzip.open(path) if path.suffix == '.gz' else path.open('rb') as file:
    head = file.read(_LONGEST_HEADER)
    found = [(size, order) for size in _ENDS_AT for order in '<>' if _size(head, order) == size]
    if not found:
      return  # the library says that it is no NIfTI file
    (size, order), (place, kind) = found[0], _ENDS_AT[found[0][0]]
    if len(head) < size + 4 or not head[size]:
      return
    (end,) = struct.unpack_from(order + kind, head, place)
    place = size + 4
    end = end if end > place else math.inf
    while end - place >= 16:
      file.seek(place)
      start = file.read(8)
      if not start:
        return
      length = _size(start, order)
      file.seek(0 if length < 16 else place + length - 1)
      if length < 16 or not file.read(1) or place + length > end:
        raise ValueError(f'an extension of its header declares {length} bytes')
      place += length


def _size(content, order):
  return struct.unpack_from(f'{order}i', content)[0] if len(content) >= 4 else 0


def header(path: pathlib.Path) -> Header:
  """Returns shape and affine from a file's header; the voxels are not read."""
  image = opened(path)
  return Header(tuple(int(n) for n in image.shape), _affine(image, path))


def order(affine: np.ndarray) -> tuple[int, int, int]:
  """Returns the axes of the file that become d, h, w."""
  transform = _to_axes(np.asarray(affine, np.float64))
  return tuple(int(axis) for axis in np.argsort(transform[:, 0]))


def shape(path: pathlib.Path) -> tuple[int, ...]:
  """Returns the shape from a file's header; the voxels are not read."""
  return tuple(int(n) for n in opened(path).shape)


def read(path: pathlib.Path, *, axes: int = 3) -> Volume:
  """Returns a file of `axes` axes as float32, finite; anything else is a `UserError`.

  Trailing axes of length 1 beyond `axes` are dropped.
  """
  image = checked(path)
  stored = image.get_data_dtype()
  if stored.kind not in 'iuf':
    raise errors.UserError(f'{path}: must hold plain numbers, not {stored}')
  try:
    with np.errstate(over='ignore', invalid='ignore'):  # looked for below
      array = image.get_fdata(dtype=np.float32, caching='unchanged')
  except Exception as error:  # for a damaged file readers raise exceptions of any kind
    raise damaged(path, error) from error
  while array.ndim > axes and array.shape[-1] == 1:
    array = array[..., 0]
  if array.ndim != axes or min(array.shape) < 1:
    raise errors.UserError(f'{path}: must be a volume of {axes} axes, not {list(array.shape)}')
  if not np.isfinite(array).all():
    raise errors.UserError(
      f'{path}: has {np.count_nonzero(~np.isfinite(array))} NaN or infinite values'
    )
  return Volume(array, _affine(image, path))


def labels(path: pathlib.Path) -> Volume:
  """Returns a label map [i, j, k] as whole numbers from 0 on (int64)."""
  volume = read(path)
  return volume._replace(array=pictures.checked_labels(volume.array, path, ndim=3))


def write(path: pathlib.Path | str, array: np.ndarray, affine: np.ndarray) -> None:
  """Writes `array` as float32 with this affine, whole or not at all; .nii.gz or .nii."""
  path = pathlib.Path(path)
  suffix = next((one for one in SUFFIXES if path.name.endswith(one)), None)
  if suffix is None:
    raise errors.UserError(f'{path}: a NIfTI file must be named *.nii.gz or *.nii')
  image = nib.Nifti1Image(np.asarray(array, np.float32), np.asarray(affine, np.float64))
  image.header.set_xyzt_units('mm')
  content = image.to_bytes()
  with files.replacing(path) as temporary:
    # no time stamp: the same array makes the same file
    temporary.write_bytes(content if suffix == '.nii' else gzip.compress(content, 6, mtime=0))


def oriented(volume: Volume) -> np.ndarray:
  """Returns the array with axes [d, h, w] or [d, h, w, c], permuted and flipped, not resampled."""
  return nib.orientations.apply_orientation(volume.array, _to_axes(volume.affine))


def spacing(affine: np.ndarray) -> np.ndarray:
  """Returns the millimetres per voxel along the axes of the file, [3]."""
  return np.sqrt(np.sum(np.asarray(affine, np.float64)[:3, :3] ** 2, axis=0))


def geometry_of(example: Mapping[str, Any]) -> Geometry:
  """Returns the geometry in the features 'affine', 'grid' and 'box' of an example."""
  return Geometry(*(np.asarray(example[name]) for name in GEOMETRY))


def restore(cube: np.ndarray, geometry: Geometry, *, order: int = 0) -> np.ndarray:
  """Returns `cube` [d, h, w] or [d, h, w, c] on the grid of its file, zero outside the crop.

  order: 0 for labels (nearest voxel), 1 for intensities (linear).
  """
  cube = np.asarray(cube)
  axes = np.argsort(_to_axes(np.asarray(geometry.affine, np.float64))[:, 0])
  grid = np.asarray(geometry.grid)
  full = np.zeros([*(int(n) for n in grid[axes]), *cube.shape[3:]], cube.dtype)
  low, high = np.asarray(geometry.box).T
  place = tuple(slice(int(a), int(b)) for a, b in zip(low, high))
  full[place] = cubes.resize(cube, high - low, order=order)
  back = nib.orientations.ornt_transform(
    nib.orientations.axcodes2ornt(AXES),
    nib.orientations.io_orientation(np.asarray(geometry.affine, np.float64)),
  )
  return np.ascontiguousarray(nib.orientations.apply_orientation(full, back))


def _to_axes(affine):
  """Returns nibabel's orientation transform from the axes of a file to `AXES`."""
  wanted = nib.orientations.axcodes2ornt(AXES)
  return nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), wanted)


def opened(path: pathlib.Path) -> nib.Nifti1Pair:
  """Returns a NIfTI file of which the header alone was read; any other is a `UserError`."""
  path = files.regular(pathlib.Path(path))
  try:
    _check_extensions(path)
    image = nib.load(path)
  except Exception as error:
    raise damaged(path, error) from error
  if not isinstance(image, nib.Nifti1Pair):
    raise errors.UserError(f'{path}: is {type(image).__name__}, not a NIfTI file')
  return image


def checked(path: pathlib.Path) -> nib.Nifti1Pair:
  """Returns a NIfTI file as `opened` does, of which size and check sum were verified."""
  image = opened(path)
  try:
    _check_size(image, path)
  except Exception as error:  # for a damaged file readers raise exceptions of any kind
    raise damaged(path, error) from error
  return image


def _affine(image, path):
  affine = np.asarray(image.affine, np.float64)
  if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
    raise errors.UserError(f'{path}: its affine cannot be inverted; repair the header')
  return affine


def damaged(path: pathlib.Path, error: Exception) -> errors.UserError:
  """Returns what a user reads of an exception of the library."""
  return errors.UserError(
    f'{path}: cannot be read ({type(error).__name__}: {str(error)[:200]}); damaged or not a '
    'NIfTI file, copy it again'
  )

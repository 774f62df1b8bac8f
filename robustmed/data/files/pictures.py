"""Reads one picture or array file as numpy, whatever its format."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from robustmed import errors

PHOTOS = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp')
ARRAYS = ('.npy', '.npz')


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields the open file; any exception that a reader raises for it is a `UserError`."""
  try:
    with path.open('rb') as file:  # given a path, readers do not close a damaged file
      yield file
  except errors.UserError:
    raise
  except Exception as error:
    raise errors.UserError(
      f'{path}: cannot be read ({type(error).__name__}: {error}); damaged or not a '
      f'{path.suffix} file, copy it again'
    ) from error


def read(path: pathlib.Path) -> np.ndarray:
  """Returns the array of a file, [h, w] or [h, w, c], as stored; a bad file is a `UserError`.

  A palette picture gives its indices; an .npz must hold exactly one array.
  """
  with opened(path) as file:
    if path.suffix.lower() == '.npz':
      archive = np.load(file, allow_pickle=False)
      if len(archive.files) != 1:
        raise errors.UserError(f'{path}: must hold one array, not {sorted(archive.files)}')
      array = archive[archive.files[0]]
    elif path.suffix.lower() == '.npy':
      array = np.load(file, allow_pickle=False)
    else:
      with Image.open(file) as picture:
        array = np.array(picture)
      if path.suffix.lower() == '.png':
        file.seek(0)
        with Image.open(file) as picture:
          picture.verify()  # the check sums of all parts, also of those after the pixels
  if array.ndim not in (2, 3) or min(array.shape) < 1 or array.dtype.kind not in 'biuf':
    raise errors.UserError(f'{path}: must be one image, not {array.dtype} {list(array.shape)}')
  if not np.isfinite(array).all():
    raise errors.UserError(f'{path}: has NaN or infinite values')
  return array


def grey(path: pathlib.Path) -> np.ndarray:
  """Returns the first channel of a file's image, [h, w] float64."""
  array = read(path)
  return (array if array.ndim == 2 else array[..., 0]).astype(np.float64)


def labels(path: pathlib.Path) -> np.ndarray:
  """Returns the label map [h, w] of a file, whole numbers from 0; one channel only."""
  return checked_labels(read(path), path)


def checked_labels(array: np.ndarray, path: pathlib.Path, *, ndim: int = 2) -> np.ndarray:
  """Returns `array` as whole numbers; a `UserError` where it cannot be a label map."""
  if array.ndim != ndim:
    raise errors.UserError(
      f'{path}: a label map must have {ndim} axes and one number a pixel, '
      f'not shape {list(array.shape)}'
    )
  whole = np.asarray(array, np.int64) if np.isfinite(array).all() else None
  if whole is None or (whole != array).any() or (whole < 0).any():
    raise errors.UserError(f'{path}: labels must be whole numbers from 0 on')
  return whole

"""Reads one picture or array file as numpy, whatever its format."""

import contextlib
import pathlib
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from robustmed import errors
from robustmed.process import files

PHOTOS = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp')
ARRAYS = ('.npy', '.npz')
_WARNINGS = threading.Lock()  # their filters belong to all threads


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields the open file; any exception that a reader raises for it is a `UserError`."""
  try:
    with files.regular(path).open(
      'rb'
    ) as file:  # given a path, readers do not close a damaged file
      yield file
  except errors.UserError:
    raise
  except Exception as error:
    raise errors.UserError(
      f'{path}: cannot be read ({type(error).__name__}: {str(error)[:200]}); damaged or not a '
      f'{path.suffix} file, copy it again'
    ) from error


def read(path: pathlib.Path) -> np.ndarray:
  """Returns the array of a file, [h, w] or [h, w, c], as stored; a bad file is a `UserError`.

  A palette picture gives its indices; an .npz must hold exactly one array.
  """
  with opened(path) as file:
    if path.suffix.lower() in ARRAYS:
      array = array_of(file, path)
    else:
      with picture_of(file, path) as picture:
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


@contextlib.contextmanager
def picture_of(file: BinaryIO, path: pathlib.Path) -> Iterator[Image.Image]:
  """Yields the picture in an open file.

  What the library says about a TIFF file while it goes on, e.g. that data are missing, is an
  exception: the format has no check sums.
  """
  if path.suffix.lower() not in ('.tif', '.tiff'):
    with Image.open(file) as picture:
      yield picture
    return
  with _WARNINGS, warnings.catch_warnings():
    warnings.simplefilter('error')
    warnings.filterwarnings('ignore', message='Metadata Warning')  # about names, not pixels
    with Image.open(file) as picture:
      yield picture


def array_of(file: BinaryIO, path: pathlib.Path) -> np.ndarray:
  """Returns the array of an open .npy file, or the one array of an .npz file."""
  if path.suffix.lower() == '.npy':
    return files.array_of(file, path.stat().st_size)
  found = files.archived_arrays(file)
  if len(found) != 1:
    raise errors.UserError(f'{path}: must hold one array, not {sorted(found)}')
  return next(iter(found.values()))


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


def write_png(
  path: pathlib.Path,
  image: np.ndarray,
  *,
  low: float = 0.0,
  high: float = 1.0,
  whole: np.ndarray | None = None,
) -> None:
  """Writes an image [h, w, c] with values in [low, high] as a PNG of 8 bits, one channel as grey.

  whole: the numbers of the PNG, None for the nearest ones.
  """
  pixels = whole
  if whole is None:
    pixels = np.round((np.clip(image, low, high) - low) * (255 / (high - low)))
  pixels = pixels.astype(np.uint8)
  pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
  with files.replacing(path) as temporary:
    Image.fromarray(pixels).save(temporary)

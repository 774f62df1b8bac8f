"""Reads one picture or array file as numpy, whatever its format."""

import contextlib
import math
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
LARGEST = 2**31  # bytes of a picture, all pages together
_KINDS = ('PNG', 'JPEG', 'BMP')  # the library knows many more, some of which start programs
_BYTES = {'I': 4, 'F': 4, 'I;16': 2, 'I;16B': 2, 'I;16L': 2}  # of a number, by mode
_LABELS = 2**24  # from here on float32 takes neighbours for one
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
        array = page_of(picture, path)
      if path.suffix.lower() == '.png':
        file.seek(0)
        with picture_of(file, path) as picture:
          picture.verify()  # the check sums of all parts, also of those after the pixels
  if array.ndim not in (2, 3) or min(array.shape) < 1 or array.dtype.kind not in 'biuf':
    raise errors.UserError(f'{path}: must be one image, not {array.dtype} {list(array.shape)}')
  if not np.isfinite(array).all():
    raise errors.UserError(f'{path}: has NaN or infinite values')
  return array


@contextlib.contextmanager
def picture_of(file: BinaryIO, path: pathlib.Path) -> Iterator[Image.Image]:
  """Yields the picture in an open file, of which the header alone was read; see `page_of`.

  What the library says about a TIFF file while it goes on, e.g. that data are missing, is an
  exception: the format has no check sums.
  """
  if path.suffix.lower() not in ('.tif', '.tiff'):
    with _WARNINGS, warnings.catch_warnings():
      warnings.simplefilter('ignore')  # about sizes, which are compared here, and about metadata
      picture = Image.open(file, formats=_KINDS)
    with picture:
      yield picture
    return
  with _WARNINGS, warnings.catch_warnings():
    warnings.simplefilter('error')
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    warnings.filterwarnings('ignore', message='Metadata Warning')  # about names, not pixels
    with Image.open(file, formats=(*_KINDS, 'TIFF')) as picture:
      yield picture


def page_of(picture: Image.Image, path: pathlib.Path, *, pages: int = 1) -> np.ndarray:
  """Returns the pixels of the present page; more than `LARGEST` bytes in all are refused."""
  size = math.prod(picture.size) * len(picture.getbands()) * _BYTES.get(picture.mode, 1) * pages
  if size > LARGEST:
    raise errors.UserError(
      f'{path}: declares {pages} x {picture.width} x {picture.height} pixels, {size} bytes; a '
      f'picture may have {LARGEST}; store large images as NIfTI, MetaImage, NRRD or NPY'
    )
  return np.array(picture)


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
  with np.errstate(invalid='ignore'):  # beyond int64, which the comparison below finds
    whole = np.asarray(array, np.int64) if np.isfinite(array).all() else None
  if whole is not None and whole.max(initial=0) >= _LABELS:
    raise errors.UserError(f'{path}: label {whole.max()} is not below {_LABELS}; no label map')
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

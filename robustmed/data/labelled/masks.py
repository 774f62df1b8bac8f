"""Reads label maps, also those that were stored as pictures.

A label map of one number per pixel holds those numbers; a colour map holds classes by colour, whose
number is 65536 red + 256 green + blue. A map with more than `MOST_VALUES` numbers, and every JPEG,
is a picture of a mask, smoothed or lossy, and then so are all maps of its folder: what is brighter
than half of the range, in the brightest channel, is the one class. A picture that has less than
`PLAIN` of its pixels within an eighth of the range from black or from full is refused, since its
classes cannot be told.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.labelled import formats

MOST_VALUES = 64
PLAIN = 0.97


class Mask(NamedTuple):
  numbers: np.ndarray  # [*spatial] int64; of a picture 0 and 1
  picture: bool  # it is smoothed or lossy
  plain: bool  # it can be read as a picture of one class
  colour: bool = False  # the numbers are colours


def read(path: pathlib.Path, *, picture: bool = False) -> Mask:
  """Returns the label map of a file; with `picture` it is thresholded whatever its values."""
  stored = formats.read(path)
  array = stored.array.astype(np.uint8) if stored.array.dtype == bool else stored.array
  spatial = stored.spatial or array.ndim
  colours = array[..., : min(3, array.shape[-1])] if array.ndim > spatial else array[..., None]
  if colours.shape[-1] == 2:
    colours = colours[..., :1]  # grey and alpha
  if colours.min() < 0:
    raise errors.UserError(f'{path}: label {colours.min():g} is below 0')
  numbers = None if formats.suffix_of(path) in formats.LOSSY else _numbers(colours, path)
  grey = colours.max(axis=-1).astype(np.float64)
  full = 255.0 if array.dtype.itemsize == 1 else max(float(grey.max()), 1.0)
  share = np.mean((grey <= full / 8) | (grey >= full * 7 / 8))
  bright = grey > full / 2
  plain = bool(share >= PLAIN and (bright.any() or not grey.any()))
  if numbers is not None and not picture:
    return Mask(numbers, False, plain, bool((colours != colours[..., :1]).any()))
  if not plain:
    raise errors.UserError(
      f'{path}: has {len(np.unique(grey))} values, {100 * (1 - share):.0f} % of its pixels are '
      'neither black nor full, so its classes cannot be told; store label maps as PNG, a number '
      'or a colour per class'
    )
  return Mask(bright.astype(np.int64), True, True)


def _numbers(colours, path):
  """The numbers of a label map of few values or colours, else None."""
  if (colours == colours[..., :1]).all():
    whole = colours[..., 0].astype(np.int64)
    if (whole != colours[..., 0]).any():
      raise errors.UserError(f'{path}: labels must be whole numbers')
  else:
    if colours.dtype != np.uint8:
      raise errors.UserError(f'{path}: a label map must have one number, or a colour, per pixel')
    red, green, blue = (colours[..., n].astype(np.int64) for n in range(3))
    whole = (red << 16) + (green << 8) + blue
  return whole if len(np.unique(whole)) <= MOST_VALUES else None

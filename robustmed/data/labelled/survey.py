"""Reads labelled images whole and says what each is: shape, place, type, intensities, labels.

A folder is surveyed once; the result is kept beside the prepared data, by the files' times.

Masks. A label map of one number per pixel holds those numbers. A colour map holds classes by colour
(the number is 65536 red + 256 green + blue). A map with more than `MOST_VALUES` numbers, and every
JPEG, is a picture of a mask, smoothed or lossy: if at least `PLAIN` of its pixels lie within an
eighth of the range from black or from full, what is brighter than half is the one class; if not, it
is refused, since its classes cannot be told.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data import store
from robustmed.data.files import exams, threads
from robustmed.data.labelled import folders, formats
from robustmed.process import files

VERSION = 1  # to be raised when the same files give another survey
MOST_VALUES = 64
PLAIN = 0.97
_MOST_SAMPLES = 200_000  # of the intensities of one channel, evenly spaced
_EMPTY = 0.25  # share of zeros from which they count as outside of the body


class Survey(NamedTuple):
  """What is known of one case; plain data, arrays in the order [z, y, x] or [h, w]."""

  shape: list[int]
  spacing: list[float] | None  # millimetres
  affine: list[list[float]]
  dtype: str
  rescale: list[float]  # slope and intercept
  channels: int
  mean: list[float]  # per channel, of the inside of the body
  std: list[float]
  low: list[float]  # the 0.5 and 99.5 per cent quantiles
  high: list[float]
  values: Sequence[int] = ()  # of the label map
  picture: bool = False  # the label map is a picture of a mask
  filled: Sequence[list[int]] = ()  # per axis, the slices with foreground
  inner: Sequence[list[float]] = ()  # per channel: quantiles, mean, deviation of the foreground


def survey(folder: folders.Folder, *, cache_dir: str) -> tuple[Survey, ...]:
  """Returns the survey of every case; reads all files the first time."""
  return _survey(folder.root, repr((key(folder), folder.kind)), folder, cache_dir)


def key(folder: folders.Folder) -> list[Any]:
  """Returns the cases with their files' sizes and times."""
  stamps = []
  for case in folder.cases:
    label = [case.label] if isinstance(case.label, pathlib.Path) else []
    stamps.append([case.name, case.part, exams.stamp([*case.images, *label, *case.tables])])
  return stamps


_known: dict[str, tuple[Survey, ...]] = {}


def _survey(root, stamp, folder, cache_dir):
  name = hashlib.sha256(json.dumps([VERSION, stamp]).encode()).hexdigest()[:16]
  if name in _known:
    return _known[name]
  place = store.cache_root(cache_dir) / 'labelled_surveys' / f'{name}.json'
  if place.is_file():
    found = tuple(Survey(**line) for line in files.read_json(place))
  else:
    one = functools.partial(_one, kind=folder.kind)
    found = tuple(threads.map_in_order(one, folder.cases, name=f'reading {root.name}'))
    try:
      place.parent.mkdir(parents=True, exist_ok=True)
      files.write_json(place, [line._asdict() for line in found])
    except OSError as error:
      raise errors.UserError(
        f'cannot write {place}: {error.strerror or error}; set the data field cache_dir or '
        '$ROBUSTMED_CACHE to a writable folder with space'
      ) from error
  _known[name] = found
  return found


def _one(case: folders.Case, *, kind: str) -> Survey:
  image, stored = read_image(case, rank=_rank(case, kind))
  if kind != 'segmentation':
    return measured(image, stored)
  numbers, picture = _numbers(case.label)
  check_shapes(case, image, numbers)
  if numbers.min() < 0:
    raise errors.UserError(f'{case.label}: label {numbers.min()} is below 0')
  return measured(image, stored, numbers, picture=picture)


def measured(
  image: np.ndarray,
  stored: formats.Stored,
  numbers: np.ndarray | None = None,
  *,
  picture: bool = False,
) -> Survey:
  """Returns the survey of an image [*spatial, c] with the numbers [*spatial] of its label map."""
  made = _intensities(image)._replace(
    shape=list(image.shape[:-1]),
    spacing=None if stored.spacing is None else [float(value) for value in stored.spacing],
    affine=stored.affine.tolist(),
    dtype=stored.dtype,
    rescale=list(stored.rescale),
    channels=image.shape[-1],
  )
  if numbers is None:
    return made
  foreground = numbers > 0
  rest = lambda axis: tuple(n for n in range(numbers.ndim) if n != axis)
  return made._replace(
    values=np.unique(numbers).tolist(),
    picture=picture,
    filled=[np.flatnonzero(foreground.any(rest(n))).tolist() for n in range(numbers.ndim)],
    inner=[_quantiles(image[..., c][foreground]) for c in range(image.shape[-1])],
  )


def _rank(case, kind) -> int | None:
  """The spatial axes that the label map says, for images whose files do not."""
  if kind != 'segmentation':
    return None
  stored = formats.read(case.label)
  return stored.spatial or stored.array.ndim


def check_shapes(case: folders.Case, image: np.ndarray, numbers: np.ndarray) -> None:
  if numbers.shape != image.shape[:-1]:
    raise errors.UserError(
      f'{case.label}: labels of {list(numbers.shape)} for an image of {list(image.shape[:-1])} '
      f'({case.images[0].name}); they must have equal sizes'
    )


def read_image(case: folders.Case, *, rank: int | None = None) -> tuple[np.ndarray, formats.Stored]:
  """Returns the image [*spatial, c] of a case and what its first file says.

  rank: the number of spatial axes, for files that do not say it.
  """
  channels, first = [], None
  for path in case.images:
    stored = formats.read(path)
    array, spatial = stored.array, stored.spatial
    if spatial is None:
      spatial = rank or (2 if array.ndim == 2 or array.shape[-1] <= 4 else 3)
      if array.ndim not in (spatial, spatial + 1):
        raise errors.UserError(f'{path}: has {array.ndim} axes, its labels have {spatial}')
    if array.ndim == spatial:
      array = array[..., None]
    elif len(case.images) > 1:
      raise errors.UserError(f'{path}: has {array.shape[-1]} channels; needs one file for each')
    if first is not None and array.shape != channels[0].shape:
      raise errors.UserError(
        f'{path}: is {list(array.shape[:-1])}, {case.images[0].name} is '
        f'{list(channels[0].shape[:-1])}; channels must have equal sizes'
      )
    first = first or stored
    channels.append(array)
  image = np.concatenate(channels, axis=-1) if len(channels) > 1 else channels[0]
  if image.dtype.kind in 'iu' and image.dtype.itemsize > 2 and np.abs(image).max() > 2**24:
    raise errors.UserError(f'{case.images[0]}: has whole numbers above 2^24; store it as float32')
  return image.astype(np.float32), first


def read_labels(path: pathlib.Path, *, picture: bool) -> np.ndarray:
  """Returns the numbers [*spatial] of a label map; of a `picture` of a mask 0 and 1."""
  numbers, is_picture = _numbers(path)
  if picture and not is_picture:  # a clean one among smoothed ones
    numbers = (numbers > numbers.max() / 2).astype(np.int64)
  return numbers


def _numbers(path) -> tuple[np.ndarray, bool]:
  """(the numbers of a label map, whether it is a picture of a mask)."""
  stored = formats.read(path)
  array = stored.array
  if array.dtype == bool:
    array = array.astype(np.uint8)
  spatial = stored.spatial or array.ndim
  colours = array[..., : min(3, array.shape[-1])] if array.ndim > spatial else array[..., None]
  if colours.shape[-1] == 2:
    colours = colours[..., :1]  # grey and alpha
  if formats.suffix_of(path) not in formats.LOSSY:
    numbers = _plain_numbers(colours, path)
    if numbers is not None:
      return numbers, False
  grey = colours.max(axis=-1).astype(np.float64)
  top = float(np.iinfo(array.dtype).max) if array.dtype.kind in 'iu' else float(grey.max())
  top = top if array.dtype.itemsize == 1 else max(float(grey.max()), 1.0)
  plain = np.mean((grey <= top / 8) | (grey >= top * 7 / 8))
  if plain < PLAIN or grey.min() < 0:
    raise errors.UserError(
      f'{path}: has {len(np.unique(grey))} values, {100 * (1 - plain):.0f} % of its pixels are '
      'neither black nor full, so its classes cannot be told; store label maps as PNG, a number '
      'or a colour per class'
    )
  return (grey > top / 2).astype(np.int64), True


def _plain_numbers(colours, path):
  """The numbers of a label map of few values or colours, else None."""
  same = (colours == colours[..., :1]).all()
  flat = colours[..., 0] if same else colours
  if same:
    whole = flat.astype(np.int64)
    if (whole != flat).any():
      raise errors.UserError(f'{path}: labels must be whole numbers')
  else:
    if colours.dtype != np.uint8:
      raise errors.UserError(f'{path}: a label map must have one number, or a colour, per pixel')
    red, green, blue = (colours[..., n].astype(np.int64) for n in range(3))
    whole = (red << 16) + (green << 8) + blue
  return whole if len(np.unique(whole)) <= MOST_VALUES else None


def _intensities(image) -> Survey:
  rows = []
  for c in range(image.shape[-1]):
    values = image[..., c].reshape(-1)
    values = values[:: max(1, len(values) // _MOST_SAMPLES)].astype(np.float64)
    filled = values[values != 0]
    if 1 - len(filled) / len(values) >= _EMPTY and len(filled):
      values = filled
    rows.append((values.mean(), values.std(), *np.quantile(values, [0.005, 0.995])))
  mean, std, low, high = np.array(rows).T.tolist()
  return Survey([], None, [], '', [], 0, mean, std, low, high)


def _quantiles(values: np.ndarray) -> list[float]:
  if not len(values):
    return []
  values = values[:: max(1, len(values) // _MOST_SAMPLES)].astype(np.float64)
  return [*np.quantile(values, [0.005, 0.995]).tolist(), float(values.mean()), float(values.std())]


def pooled(rows: Sequence[Sequence[float]]) -> list[float] | None:
  """Returns the mean of the quantiles, the mean and the deviation over cases of `Survey.inner`."""
  rows = np.array([row for row in rows if row])
  if not len(rows):
    return None
  low, high, mean, std = rows.T
  deviation = np.sqrt(np.mean(std**2) + np.var(mean))
  return [float(low.mean()), float(high.mean()), float(mean.mean()), float(deviation)]

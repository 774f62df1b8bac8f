"""Reads labelled images whole and says what each is: shape, place, type, intensities, labels.

A folder is surveyed once; the result is kept beside the prepared data, by the files' times.
"""

import contextlib
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
from robustmed.data.labelled import folders, formats, masks
from robustmed.process import files

VERSION = 1  # to be raised when the same files give another survey
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
  digest: str = ''  # equal for equal images
  values: Sequence[int] = ()  # of the label map
  picture: bool = False  # the label map is a picture of a mask, see `masks`
  plain: bool = False  # the label map can be read as one
  colour: bool = False  # its numbers are colours
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
  found = ()
  if place.is_file():
    with contextlib.suppress(errors.UserError, TypeError):  # damaged notes are made again
      found = tuple(Survey(**line) for line in files.read_json(place))
  if len(found) != len(folder.cases):
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
  if kind != 'segmentation':
    return measured(*read_image(case))
  mask = masks.read(case.label)
  image, stored = read_image(case, rank=mask.numbers.ndim)
  check_shapes(case, image, mask.numbers)
  made = measured(image, stored, mask.numbers)
  return made._replace(picture=mask.picture, plain=mask.plain, colour=mask.colour)


def measured(
  image: np.ndarray, stored: formats.Stored, numbers: np.ndarray | None = None
) -> Survey:
  """Returns the survey of an image [*spatial, c] with the numbers [*spatial] of its label map."""
  made = _intensities(image)._replace(
    shape=list(image.shape[:-1]),
    spacing=None if stored.spacing is None else [float(value) for value in stored.spacing],
    affine=stored.affine.tolist(),
    dtype=stored.dtype,
    rescale=list(stored.rescale),
    channels=image.shape[-1],
    digest=hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).hexdigest(),
  )
  if numbers is None:
    return made
  foreground = numbers > 0
  rest = lambda axis: tuple(n for n in range(numbers.ndim) if n != axis)
  return made._replace(
    values=np.unique(numbers).tolist(),
    filled=[np.flatnonzero(foreground.any(rest(n))).tolist() for n in range(numbers.ndim)],
    inner=[_quantiles(image[..., c][foreground]) for c in range(image.shape[-1])],
  )


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

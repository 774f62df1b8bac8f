"""Makes examples of disk crops from sagittal slices with label masks.

Images show the front of the body on the left and the head at the top, with square pixels.
"""

import collections
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.spine import contours, tracing

MODES = ('complete', 'central', 'mid', 'every')


class Slice(NamedTuple):
  """One sagittal slice with the number of a disk, or 0, at every pixel."""

  name: str
  path: pathlib.Path  # the file to name in a message
  image: np.ndarray  # [h, w]
  mask: np.ndarray  # [h, w], whole numbers


def check_fields(fields: Mapping[str, Any]) -> None:
  contours.check_side(fields['side'])
  if fields['slices'] not in MODES:
    raise errors.UserError(f'data field slices must be one of {MODES}, not {fields["slices"]!r}')


def choose(
  slices: Iterable[Slice], *, mode: str, counts: collections.Counter | None = None
) -> list[tuple[Slice, list[int]]]:
  """Returns the slices of one exam that are used, each with its usable labels.

  mode: 'complete' keeps the slices that show all disks of the exam, 'central' the middle half of
  those, 'mid' the middle one, 'every' all slices with any disk. Labels of fewer than
  `tracing.MIN_PIXELS` connected pixels are not usable. What is left out is added to `counts`.
  """
  counts = collections.Counter() if counts is None else counts
  kept = []
  for one in slices:
    present = np.unique(one.mask[one.mask > 0])
    usable = tracing.labels_of(one.mask)
    counts['slices'] += 1
    counts['slices_without_labels'] += len(present) == 0
    counts['small_labels_left_out'] += len(present) - len(usable)
    if usable:
      kept.append((one, usable))
  found = len(kept)
  if mode != 'every':
    known = {label for _, usable in kept for label in usable}
    kept = [row for row in kept if len(row[1]) == len(known)]
  if mode == 'central':
    kept = kept[len(kept) // 4 : len(kept) - len(kept) // 4]
  if mode == 'mid':
    kept = kept[len(kept) // 2 :][:1]
  counts['slices_left_out'] += found - len(kept)
  return kept


def examples(
  chosen: Iterable[tuple[Slice, list[int]]],
  *,
  side: int,
  group: int,
  first: int,
  counts: collections.Counter,
) -> Iterator[dict[str, Any]]:
  """Yields the examples of the chosen slices, their index from `first` on; adds to `counts`."""
  index = first
  for one, usable in chosen:
    for label in usable:
      whole = one.mask == label
      part, parts = tracing.largest_part(whole)
      if part.sum() < 0.5 * whole.sum():
        raise errors.UserError(
          f'{one.path}: label {label} has {parts} separate parts in slice {one.name}, all of them '
          'smaller than half of it; give every disk a label of its own'
        )
      counts['loose_parts'] += parts - 1
      yield example(
        one.image,
        tracing.trace(part),
        side=side,
        group=group,
        index=index,
        name=f'{one.name}_{label}',
        path=one.path,
        counts=counts,
      )
      index += 1


def example(
  image: np.ndarray,
  contour: np.ndarray,
  *,
  side: int,
  path: pathlib.Path,
  counts: collections.Counter,
  **labels,
) -> dict[str, Any]:
  """Returns the example of the crop around one contour; `labels`: index, group and name."""
  try:
    crop = tracing.crop(image, contour, side=side)
  except ValueError as error:
    raise errors.UserError(f'{path}: {labels["name"]}: {error}') from error
  counts['padded_crops'] += crop.padded
  return contours.example(crop.image, crop.contour, **labels)

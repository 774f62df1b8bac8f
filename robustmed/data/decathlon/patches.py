"""Samples slices and patches for training and evaluation as the 2D loader of nnU-Net v1 does."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robustmed.data import pipeline

FORCED = 0.33  # share of a batch whose slice and patch are chosen to show foreground
_SMALLEST_ZOOM = 0.85  # the network's patch is at most this share of the loader's
_ROTATION, _LONG_ROTATION, _LONG = 180.0, 15.0, 1.5  # degrees; for patches longer than _LONG
_STREAM = 0x9A7C  # keeps these random numbers apart from those of permutations


class CropParams(NamedTuple):
  """How the patch of a chosen slice is drawn."""

  rng: np.random.Generator
  label: int  # the class that the patch must show; 0: any place


def loader_patch(patch: Sequence[int]) -> tuple[int, int]:
  """Returns the size of the patch to load so that the network's `patch` can be rotated and scaled.

  It holds the network's patch rotated by the largest angle (at most 90 degrees), divided by 0.85.
  """
  height, width = patch
  long = max(patch) / min(patch) > _LONG
  angle = np.deg2rad(min(90.0, _LONG_ROTATION if long else _ROTATION))
  turned = (
    abs(height * np.cos(angle) + width * np.sin(angle)),
    abs(width * np.cos(angle) - height * np.sin(angle)),
  )
  return tuple(int(max(old, new) / _SMALLEST_ZOOM) for old, new in zip(patch, turned))


def is_forced(draw: int, *, batch_size: int, share: float = FORCED) -> bool:
  """Returns whether a draw is in the last `share` of its global batch, which shows foreground."""
  return draw % batch_size >= round(batch_size * (1 - share))


def sampling(
  groups: Sequence[int],
  present: Sequence[int],
  *,
  patch: Sequence[int],
  loader: Sequence[int],
  forced: float = FORCED,
) -> pipeline.Sampling:
  """Returns the sampling of a uniform case, then a slice, then a patch; from (seed, draw) alone.

  groups and present: the volume of every slice and, as bits, the foreground classes that it shows
  (bit 0 is class 1). A forced draw takes a foreground class of the case, a slice with that class
  and a patch about one of its pixels. patch: the network's; loader: what is loaded around it;
  forced: the share of forced draws.
  """
  volumes = _table(groups, present)

  def choose(draw, *, seed, batch_size, size):
    rng = np.random.default_rng([seed % 2**32, draw, _STREAM])
    slices, holding = volumes[rng.integers(len(volumes))]
    label = 0
    if holding and is_forced(draw, batch_size=batch_size, share=forced):
      label = list(holding)[rng.integers(len(holding))]
      slices = holding[label]
    return int(slices[rng.integers(len(slices))]), CropParams(rng, label)

  def crop(example, params):
    return cut(example, _corner(example, params, patch, loader), loader)

  return pipeline.Sampling(choose, crop)


def _table(groups, present):
  """Returns, per volume, its slices and {foreground class: its slices with that class}."""
  groups, present = np.asarray(groups), np.asarray(present)
  volumes = []
  for group in np.unique(groups):
    slices = np.flatnonzero(groups == group)
    bits = present[slices]
    labels = range(1, int(np.bitwise_or.reduce(bits)).bit_length() + 1)
    holding = {label: slices[(bits >> (label - 1)) & 1 == 1] for label in labels}
    volumes.append((slices, {label: found for label, found in holding.items() if len(found)}))
  return volumes


def _corner(example, params, patch, loader):
  """Returns the first row and column of a patch, which may lie outside by the loader's margin."""
  shape = example['labels'].shape
  at = None
  if params.label:
    pixels = np.argwhere(example['labels'] == params.label)
    at = pixels[params.rng.integers(len(pixels))]
  corner = []
  for axis in range(2):
    spare = max(loader[axis] - patch[axis], loader[axis] - shape[axis])
    low, high = -spare // 2, shape[axis] + spare // 2 + spare % 2 - loader[axis]
    if at is None:
      corner.append(int(params.rng.integers(low, high + 1)))
    else:
      corner.append(max(low, int(at[axis]) - loader[axis] // 2))
  return corner


def centred(patch: Sequence[int]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the crop of evaluation: the patch about the middle of the slice."""

  def crop(example):
    shape = example['labels'].shape
    return cut(example, [(shape[axis] - patch[axis]) // 2 for axis in range(2)], patch)

  return crop


def cut(example: Mapping[str, Any], corner: Sequence[int], patch: Sequence[int]) -> dict[str, Any]:
  """Returns the example with 'image' and 'labels' cut to `patch`; outside they are 0 and -1."""
  shape = example['labels'].shape
  source, target = [], []
  for axis in range(2):
    low, high = max(corner[axis], 0), min(corner[axis] + patch[axis], shape[axis])
    source.append(slice(low, max(low, high)))
    target.append(slice(low - corner[axis], max(low, high) - corner[axis]))
  image = np.zeros((*patch, example['image'].shape[-1]), np.float32)
  labels = np.full(tuple(patch), -1, np.int32)
  image[tuple(target)] = example['image'][tuple(source)]
  labels[tuple(target)] = example['labels'][tuple(source)]
  return {**example, 'image': image, 'labels': labels}

"""Patch, poolings, features and batch size from a data set's fingerprint, as nnU-Net v1 plans 2D.

Isensee et al., Nature Methods 2021, and the rules of plans version 2.1; no image is read.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robustmed import errors

MIN_EDGE = 4  # of the coarsest grid
BASE, MAX_FEATURES = 32, 480
REFERENCE_MEMORY = 19_739_648 * 25  # feature values of two slices in the reference network
MEMORY_BASE, MEMORY_MAX = 30, 512  # features that the memory estimate assumes
MAX_SHARE = 0.05  # of all voxels of the data set that one batch may hold
WIDE_ASPECT = 1.5  # patches of a larger aspect ratio are rotated by 15 degrees only
CONTEXT = 0.85  # smallest zoom at which the loader's patch still fills the patch


class Fingerprint(NamedTuple):
  """The input of planning; axes (z, y, x) after cropping, z being the axis of the slices."""

  shape: tuple[int, int, int]  # median
  spacing: tuple[float, float, float]  # median, the target of resampling
  modalities: int
  classes: int  # with the background
  cases: int


class Plan(NamedTuple):
  patch: tuple[int, int]
  pools: tuple[int, int]  # per axis
  strides: tuple[tuple[int, int], ...]  # per pooling, from the top
  features: tuple[int, ...]  # per stage, from the top
  batch_size: int
  uncapped_batch_size: int  # what memory alone would allow
  loader_patch: tuple[int, int]  # with the context that rotation and scaling need
  max_angle: float  # degrees


def plan(fingerprint: Fingerprint, *, recount: bool = True) -> Plan:
  """Returns the 2D configuration of nnU-Net for a data set.

  Axes whose spacing is within a factor of 2 of the finest are halved while they keep 2 * MIN_EDGE
  cells; the patch is the median slice padded to a multiple of the poolings, cut down while two
  slices do not fit the reference memory. The batch fills that memory but holds at most MAX_SHARE
  of the data set. Slices with spacings a factor of 2 apart are a `UserError`: they would need other
  kernels than 3x3.

  With `recount` the poolings are counted again on the padded patch, which may allow one more: the
  heart's 232 columns, padded to 256, are halved 6 times, which gives the network of 29,966,112
  parameters; without it 5 times, 29,505,312 parameters.
  """
  _check(fingerprint)
  spacing, median = fingerprint.spacing[1:], fingerprint.shape[1:]
  strides, patch = _poolings(spacing, median)
  if recount:
    strides, patch = _poolings(spacing, patch)
  while (memory := _memory(patch, strides, fingerprint)) > REFERENCE_MEMORY:
    axis = int(np.argmax([n / m for n, m in zip(patch, median, strict=True)]))
    smaller = list(patch)
    smaller[axis] -= math.prod(s[axis] for s in strides)
    shorter, _ = _poolings(spacing, smaller)
    patch = list(patch)
    patch[axis] -= math.prod(s[axis] for s in shorter)
    strides, patch = _poolings(spacing, patch)
  uncapped = 2 * math.floor(REFERENCE_MEMORY / memory)
  voxels = math.prod(fingerprint.shape) * fingerprint.cases
  cap = round(MAX_SHARE * voxels / math.prod(patch))
  angle = 180.0 if max(patch) / min(patch) < WIDE_ASPECT else 15.0
  return Plan(
    patch=patch,
    pools=tuple(sum(s[axis] == 2 for s in strides) for axis in (0, 1)),
    strides=strides,
    features=tuple(min(BASE * 2**stage, MAX_FEATURES) for stage in range(len(strides) + 1)),
    batch_size=max(1, min(uncapped, cap)),
    uncapped_batch_size=uncapped,
    loader_patch=_loader_patch(patch, angle),
    max_angle=angle,
  )


def poolings(patch: Sequence[int]) -> tuple[tuple[int, int], ...]:
  """Returns the strides of every pooling for slices of `patch` with square pixels, from the top.

  A patch that is not divisible by its poolings is a `UserError`.
  """
  strides, padded = _poolings((1.0, 1.0), tuple(patch))
  if padded != tuple(patch) or not strides:
    raise errors.UserError(f'patch {tuple(patch)} is not divisible by its poolings; use {padded}')
  return strides


def planned(
  size: Sequence[int], *, spacing: Sequence[float], most: int = 5
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
  """Returns (the strides of at most `most` poolings, `size` padded to multiples of their product).

  For images of any rank, by the rule of `plan`; without strides where no side can be halved.
  """
  strides, _ = _poolings(tuple(spacing), tuple(size))
  strides = strides[:most]
  whole = [math.prod(axis) for axis in zip(*strides, strict=True)] or [1] * len(size)
  return strides, tuple(-(-n // m) * m for n, m in zip(size, whole, strict=True))


def _check(fingerprint):
  smallest = min(fingerprint.shape[1:])
  if smallest < 2 * MIN_EDGE or min(fingerprint.shape) < 1 or fingerprint.cases < 1:
    raise errors.UserError(
      f'cannot plan a network for a median shape {fingerprint.shape} of {fingerprint.cases} cases: '
      f'slices must be at least {2 * MIN_EDGE} pixels wide'
    )
  fine, coarse = sorted(fingerprint.spacing[1:])
  if not 0 < coarse < 2 * fine:
    raise errors.UserError(
      f'in-plane spacings {fine:g} and {coarse:g} mm are a factor of 2 apart; resample them first'
    )


def _poolings(spacing: Sequence[float], size: Sequence[int]):
  """Returns (strides per pooling, size padded to a multiple of their product)."""
  spacing, cells, strides = list(spacing), list(size), []
  while True:
    finest = min(spacing)
    halved = [s / finest < 2 and n >= 2 * MIN_EDGE for s, n in zip(spacing, cells, strict=True)]
    if not any(halved):
      break
    strides.append(tuple(2 if half else 1 for half in halved))
    spacing = [s * f for s, f in zip(spacing, strides[-1], strict=True)]
    cells = [n / f for n, f in zip(cells, strides[-1], strict=True)]
  whole = [math.prod(axis) for axis in zip(*strides, strict=True)] or [1] * len(size)
  return tuple(strides), tuple(-(-n // m) * m for n, m in zip(size, whole, strict=True))


def _memory(patch, strides, fingerprint):
  """Returns the feature values of one slice: of 5 layers a stage, of 2 at the bottom."""
  cells = math.prod(patch)
  total = cells * (5 * MEMORY_BASE + fingerprint.modalities + fingerprint.classes)
  features = MEMORY_BASE
  for stage, factor in enumerate(strides):
    cells //= math.prod(factor)
    features = min(2 * features, MEMORY_MAX)
    total += (5 if stage < len(strides) - 1 else 2) * cells * features
  return total


def _loader_patch(patch, angle):
  """Returns the box that holds the patch rotated by up to `angle` (at most 90) and zoomed out."""
  radians = math.radians(min(angle, 90.0))
  height, width = patch
  rotated = (
    abs(math.cos(radians) * height - math.sin(radians) * width),
    abs(math.sin(radians) * height + math.cos(radians) * width),
  )
  # Rounded first: cos(90 degrees) leaves 1e-14 behind.
  return tuple(int(round(max(n, m), 6) / CONTEXT) for n, m in zip(patch, rotated, strict=True))

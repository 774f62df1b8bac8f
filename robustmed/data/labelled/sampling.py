"""Patches of labelled images of any rank: random ones for training, windows for evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robustmed.data import pipeline

FORCED = 1 / 3  # share of a batch whose patch shows foreground, as nnU-Net takes it
_STREAM = 0x1ABE1  # keeps these random numbers apart from those of permutations
_FILL = {'labels': -1, 'counted': True}  # outside of the image; what counts as background there


class Draw(NamedTuple):
  rng: np.random.Generator
  label: int  # the class that the patch must show; 0: any place


def sampling(
  groups: Sequence[int], present: Sequence[int], *, patch: Sequence[int], forced: float = FORCED
) -> pipeline.Sampling:
  """Returns the sampling of a uniform case, then one of its examples, then a patch.

  groups: the case of every example; present: the foreground classes that it shows, as bits (bit 0
  is class 1). A forced draw takes a class of the case, an example with it and a patch about one of
  its voxels. Everything follows from (seed, number of the draw).
  """
  cases = _table(groups, present)

  def choose(draw, *, seed, batch_size, size):
    rng = np.random.default_rng([seed % 2**32, draw, _STREAM])
    examples, holding = cases[rng.integers(len(cases))]
    label = 0
    if holding and draw % batch_size >= round(batch_size * (1 - forced)):
      label = list(holding)[rng.integers(len(holding))]
      examples = holding[label]
    return int(examples[rng.integers(len(examples))]), Draw(rng, label)

  def crop(example, draw):
    return cut(example, _corner(example, draw, patch), patch)

  return pipeline.Sampling(choose, crop)


def _table(groups, present):
  """Returns, per case, its examples and {class: its examples with that class}."""
  groups, found = np.asarray(groups), []
  bits = [int(value) for value in present]
  for group in np.unique(groups):
    examples = np.flatnonzero(groups == group)
    every = 0
    for place in examples:
      every |= bits[place]
    holding = {
      label: [place for place in examples if bits[place] >> (label - 1) & 1]
      for label in range(1, every.bit_length() + 1)
    }
    found.append((examples, {label: places for label, places in holding.items() if places}))
  return found


def _corner(example, draw, patch):
  shape = example['labels'].shape
  at = None
  if draw.label:
    voxels = np.argwhere(example['labels'] == draw.label)
    at = voxels[draw.rng.integers(len(voxels))]
  corner = []
  for axis, (have, want) in enumerate(zip(shape, patch, strict=True)):
    if have <= want:
      corner.append((have - want) // 2)
    elif at is None:
      corner.append(int(draw.rng.integers(0, have - want + 1)))
    else:
      low = max(0, int(at[axis]) - want + 1)
      high = min(have - want, int(at[axis]))
      corner.append(int(draw.rng.integers(low, high + 1)))
  return corner


def centred(patch: Sequence[int]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
  """Returns the crop of evaluation: `patch` about the middle of an image, padded where needed."""

  def crop(example):
    shape = example['labels'].shape
    corner = [(have - want) // 2 for have, want in zip(shape, patch, strict=True)]
    return cut(example, corner, patch)

  return crop


def extended(example: Mapping[str, Any], shape: Sequence[int], *, mirror: bool) -> dict[str, Any]:
  """Returns the example with its image padded evenly to at least `shape`.

  By its own mirror images, so that statistics over the image stay about what they were; without
  `mirror` by stored zeros. Labels are -1 there, and no pixel counts.
  """
  found, labels = dict(example), example['labels']
  found['counted'] = np.asarray(example.get('counted', np.ones(labels.shape, bool)))
  missing = [max(0, want - have) for have, want in zip(labels.shape, shape, strict=True)]
  if not any(missing):
    return found
  # the odd pixel is where `centred` has it
  width = [(more - more // 2, more // 2) for more in missing]
  found['labels'] = np.pad(labels, width, constant_values=-1)
  found['counted'] = np.pad(found['counted'], width)
  width = [*width, (0, 0)]
  if mirror:
    found['image'] = np.pad(example['image'], width, mode='symmetric')
  else:
    zero = (-example['units'][0] / example['units'][1]).astype(np.float32)
    found['image'] = np.pad(example['image'] - zero, width) + zero
  return found


def cut(example: Mapping[str, Any], corner: Sequence[int], patch: Sequence[int]) -> dict[str, Any]:
  """Returns the example with all arrays on the image's grid cut to `patch`.

  Outside of the image they are 0 in the units of the image, labels -1 (background).
  """
  shape, result = example['labels'].shape, dict(example)
  source, target = [], []
  for start, have, want in zip(corner, shape, patch, strict=True):
    low, high = max(start, 0), min(start + want, have)
    source.append(slice(low, max(low, high)))
    target.append(slice(low - start, max(low, high) - start))
  for name in ('image', 'labels', 'counted'):
    if name in example:
      array = example[name]
      whole = np.full((*patch, *array.shape[len(patch) :]), _FILL.get(name, 0), array.dtype)
      whole[tuple(target)] = array[tuple(source)]
      result[name] = whole
  return result


def uncut(array: np.ndarray, shape: Sequence[int], *, fill: float = 0) -> np.ndarray:
  """Returns a centred window [*patch, ...] put back into an image of `shape`; `centred` undone."""
  rank = len(shape)
  whole = np.full((*shape, *array.shape[rank:]), fill, array.dtype)
  into, out_of = [], []
  for have, want in zip(shape, array.shape, strict=False):
    start = (have - want) // 2
    into.append(slice(max(start, 0), min(start + want, have)))
    out_of.append(slice(max(-start, 0), min(have - start, want)))
  whole[tuple(into)] = array[tuple(out_of)]
  return whole

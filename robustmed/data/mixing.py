"""Mixes training examples of several kinds at fixed shares: real, synthetic, attacked ones."""

import bisect
import fractions
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustmed import errors
from robustmed.data import pipeline, store

LONGEST = 10_000  # draws of the longest period, in which the shares hold exactly
_STREAM = 0x3135


class Concatenated(store.Split):
  """Splits one after the other; `starts` has the position of the first example of each."""

  def __init__(self, parts: Sequence[store.Split]):
    self.groups = tuple(itertools.chain.from_iterable(part.groups for part in parts))
    self._parts = tuple(parts)
    self.starts = tuple(itertools.accumulate((len(part) for part in parts), initial=0))

  def __len__(self) -> int:
    return self.starts[-1]

  def __getitem__(self, index) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(f'{index} of {len(self)}')
    number = bisect.bisect_right(self.starts, int(index)) - 1
    return self._parts[number][int(index) - self.starts[number]]


def check(shares: Mapping[str, Mapping[str, float]]) -> None:
  """Raises a `UserError` unless the shares within every class are at least 0 and add up to 1."""
  for name, kinds in shares.items():
    if any(share < 0 for share in kinds.values()) or not math.isclose(sum(kinds.values()), 1):
      raise errors.UserError(f'the shares of {name} must be at least 0 and add up to 1: {kinds}')


def resolve(
  shares: Mapping[str, Mapping[str, float]], available: Mapping[str, Any]
) -> dict[str, float]:
  """Returns 'class/kind' -> share of all draws; classes are drawn equally often.

  shares: class -> kind -> share within the class, which must add up to 1. The share of a kind that
  is not in `available` is added to that of the first kind of its class.
  """
  check(shares)
  result = {}
  for name, kinds in shares.items():
    first = f'{name}/{next(iter(kinds))}'
    if first not in available:
      raise errors.UserError(
        f'training needs examples of the kind {first}, of which there are none'
      )
    for kind, share in kinds.items():
      drawn = f'{name}/{kind}' if f'{name}/{kind}' in available else first
      result[drawn] = result.get(drawn, 0.0) + share / len(shares)
  return {name: share for name, share in result.items() if share > 0}


def mix(
  parts: Mapping[str, store.Split],
  shares: Mapping[str, float],
  *,
  samplings: Mapping[str, pipeline.Sampling] = {},
) -> tuple[store.Split, pipeline.Sampling]:
  """Returns all parts with a positive share as one split, and how to sample from it.

  The shares, relative to their sum, hold exactly in every period of draws, which is the shortest
  one that allows it; within a period the order is random. The draws of a part, numbered from 0, are
  chosen and cropped by its entry of `samplings`, by default every pass a new permutation. All of it
  depends on the seed and the number of the draw alone. Examples keep the index that they have in
  their part, so the indices of different parts must differ.
  """
  for name in shares:
    if not len(errors.lookup(parts, name, kind='part of a mixture')):
      raise errors.UserError(f'there are no examples of the kind {name} to train on')
  names = [name for name, share in shares.items() if share > 0]
  counts = _counts([shares[name] for name in names])
  joined = Concatenated([parts[name] for name in names])
  kinds = np.repeat(np.arange(len(names)), counts)
  inner = [samplings.get(name, pipeline.Sampling()) for name in names]

  @functools.lru_cache(maxsize=8)
  def period(seed, number):
    """Returns the kind of every draw of a period and how many of that kind come before it."""
    order = kinds
    if len(names) > 1:
      order = np.random.default_rng([seed % 2**32, number, _STREAM]).permutation(kinds)
    earlier = np.empty(len(order), int)
    for kind, count in enumerate(counts):
      earlier[order == kind] = np.arange(count)
    return order, earlier

  def choose(draw, *, seed, batch_size, size):
    del size
    number, place = divmod(draw, len(kinds))
    order, earlier = period(seed, number)
    kind = int(order[place])
    own = number * counts[kind] + int(earlier[place])
    length = len(parts[names[kind]])
    # Parts of equal length must not have the same permutations.
    position, params = inner[kind].choose(
      own, seed=seed + 7919 * kind, batch_size=batch_size, size=length
    )
    return joined.starts[kind] + position, (kind, params)

  def crop(example, params):
    kind, own = params
    return inner[kind].crop(example, own)

  return joined, pipeline.Sampling(choose, crop)


def _counts(shares: Sequence[float]) -> list[int]:
  """Returns the smallest whole numbers in the ratio of the shares."""
  exact = [fractions.Fraction(share).limit_denominator(1000) for share in shares]
  scale = math.lcm(*(share.denominator for share in exact))
  whole = [int(share * scale) for share in exact]
  whole = [count // math.gcd(*whole) for count in whole]
  if min(whole) < 1 or sum(whole) > LONGEST:
    raise errors.UserError(
      f'shares of training examples {shares} must be multiples of about 1/1000 and hold exactly '
      f'within {LONGEST} draws; round them'
    )
  return whole

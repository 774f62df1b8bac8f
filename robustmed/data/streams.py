"""Splits of phantoms whose images each have a random stream of their own."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from robustmed import errors

SPLITS = ('train', 'validation', 'test')


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of images per split, without drawing any."""
  return {name: fields[f'{name}_images'] for name in SPLITS}


def check(fields: Mapping[str, Any]) -> None:
  """Raises a `UserError` for a split without images or a noise outside of [0, 1]."""
  for name, count in sizes(fields).items():
    if count < 1:
      raise errors.UserError(f'data field {name}_images must be at least 1')
  if not 0 <= fields['noise'] <= 1:
    raise errors.UserError(f'data field noise must lie in [0, 1], not {fields["noise"]}')


def splits(
  fields: Mapping[str, Any], draw: Callable[..., dict[str, Any]]
) -> dict[str, Iterator[dict[str, Any]]]:
  """Returns the examples `draw(rng, index=..., name=...)` of each split.

  Image i of a split is the same whatever the number of images; `index` counts through all splits.
  """
  counts = sizes(fields)

  def examples(stream, name):
    first = sum(list(counts.values())[:stream])
    for number in range(counts[name]):
      rng = np.random.default_rng([fields['seed'], stream, number])
      yield draw(rng, index=first + number, name=f'phantom_{name}_{number:04d}')

  return {name: examples(stream, name) for stream, name in enumerate(SPLITS)}

"""How far a network's outputs move from image to image, beside how far their targets move.

An output [b, ...] of any shape is stored as `SKETCHES` sums per example, each with a sign for every
element that looks random and is always the same. The mean square of such sums over signs is the
squared length of the vector, so that a few of them stand for its spread. The columns are
`_output.<name>.<k>` and `_target.<name>.<k>`, on clean images.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

SKETCHES = 4
OUTPUT, TARGET = '_output.', '_target.'
FEW = 3  # images without which nothing is said


def columns(compared: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
  """The columns [b] of outputs [b, ...] and their targets, {name: (output, target)}."""
  found = {}
  for name, pair in compared.items():
    for prefix, values in zip((OUTPUT, TARGET), pair, strict=True):
      for place in range(SKETCHES):
        found[f'{prefix}{name}.{place}'] = _sketch(values, place)
  return found


def shares(rows: pd.DataFrame) -> dict[str, float]:
  """{output: its mean absolute deviation over that of its target} of one network's clean rows.

  Deviations are from the median over images, summed over the sketches. An output of share r leaves
  at least 1 - r of the mean absolute error that the best constant has, however well it moves. An
  output is left out where it is not known for `FEW` images or where its target is always the same.
  """
  found = {}
  for name in names(rows):
    pair = []
    for prefix in (OUTPUT, TARGET):
      values = rows[[f'{prefix}{name}.{place}' for place in range(SKETCHES)]].to_numpy(np.float64)
      values = values[np.isfinite(values).all(axis=1)]
      pair.append(values)
    if min(map(len, pair)) < FEW:
      continue
    output, target = (np.abs(v - np.median(v, axis=0)).mean(axis=0).sum() for v in pair)
    if target > 0:
      found[name] = float(output / target)
  return found


def is_column(name: str) -> bool:
  """Whether a column is one of these."""
  return name.startswith((OUTPUT, TARGET))


def names(rows: pd.DataFrame) -> list[str]:
  """The outputs that the rows have columns of."""
  last = f'.{SKETCHES - 1}'
  return [
    column[len(OUTPUT) : -len(last)]
    for column in rows.columns
    if column.startswith(OUTPUT) and column.endswith(last)
  ]


def _sketch(values, place: int):
  """The sums [b] of the elements of values [b, ...] times the signs of this sketch."""
  import jax  # here: reports read the columns without JAX
  import jax.numpy as jnp

  flat = jnp.asarray(values, jnp.float32).reshape(len(values), -1)
  # Hashed numbers of the elements: a stored array of signs would be as large as the outputs.
  bits = jax.lax.iota(jnp.uint32, flat.shape[1]) + jnp.uint32(0x9E3779B9 * (place + 1) & 0xFFFFFFFF)
  for factor in (0x7FEB352D, 0x846CA68B):
    bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
  signs = 1.0 - 2.0 * (bits >> 31).astype(jnp.float32)
  return jnp.sum(flat * signs[None], axis=1)

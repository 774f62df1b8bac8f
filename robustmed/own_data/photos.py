"""What images in 2D without label maps share: every image is a case and is written as a PNG."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustmed.attacks.stored import lattice
from robustmed.data.files import pictures as picture_files
from robustmed.evaluation import examples
from robustmed.process import files

lattice_of = lattice.of_png()


def cases(chosen, rows: pd.DataFrame) -> pd.DataFrame:
  """Returns the rows: an image is a case."""
  del chosen
  return rows


def pictures(found: examples.Example) -> dict[str, np.ndarray]:
  """Returns nothing besides the images."""
  del found
  return {}


def write(
  folder: pathlib.Path,
  image: np.ndarray,
  example: Mapping[str, Any],
  facts: Sequence[Mapping[str, Any]],
  lines: Sequence[str],
  whole: np.ndarray | None = None,
) -> None:
  """Writes NAME.png, 8 bits of an image in [0, 1], and the lines as NAME.csv.

  whole: the numbers of the PNG, None for the nearest ones.
  """
  name = facts[int(example['target']['case'])]['name'].replace('/', '_')
  picture_files.write_png(pathlib.Path(folder) / f'{name}.png', image, whole=whole)
  files.write_text(pathlib.Path(folder) / f'{name}.csv', '\n'.join([*lines, '']))

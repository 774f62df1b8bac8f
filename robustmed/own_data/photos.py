"""What images in 2D without label maps share: every image is a case and is written as a PNG."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from robustmed.attacks.stored import lattice
from robustmed.evaluation import examples
from robustmed.process import files


def cases(chosen, rows: pd.DataFrame) -> pd.DataFrame:
  """Returns the rows: an image is a case."""
  del chosen
  return rows


def pictures(found: examples.Example) -> dict[str, np.ndarray]:
  """Returns nothing besides the images."""
  del found
  return {}


def lattice_of(example: Mapping[str, Any]) -> lattice.Lattice:
  """Returns the images that a PNG of 8 bits holds."""
  del example
  return lattice.Lattice(0.0, 1 / 255, 0, 255)


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
  pixels = np.round(np.clip(image, 0, 1) * 255) if whole is None else whole
  pixels = pixels.astype(np.uint8)
  pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
  with files.replacing(pathlib.Path(folder) / f'{name}.png') as temporary:
    Image.fromarray(pixels).save(temporary)
  files.write_text(pathlib.Path(folder) / f'{name}.csv', '\n'.join([*lines, '']))

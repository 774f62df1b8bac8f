"""Small trained networks that come with the package: `networks.load('hippocampus/amat')`.

Each is a folder FAMILY/NAME as `checkpoint.pack` writes it. Its card also says, under 'about', on
which data it was trained, their licence, how, and what it scores.
"""

import pathlib
from typing import Any

from robustmed.process import files

FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
  """Returns the names of all networks that come with the package."""
  return sorted(card.parent.relative_to(FOLDER).as_posix() for card in FOLDER.glob('*/*/*.json'))


def find(name: str) -> pathlib.Path | None:
  """Returns the folder of the network of that name, None if there is none."""
  return FOLDER / name if name in names() else None


def about(name: str) -> dict[str, Any]:
  """Returns what the card of a network says of its data, training and scores."""
  return files.read_json(FOLDER / name / 'network.json')['about']

"""One small valid input for every reader of files, and the values that it gives."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fuzz import damages

Special = Callable[[bytes, damages.Rng], bytes]


class Reader(NamedTuple):
  """A reader with its input."""

  name: str
  make: Callable[[pathlib.Path], None]  # writes the valid input into an empty folder
  target: str  # the file that is damaged
  read: Callable[[pathlib.Path], Any]  # the folder -> the values
  covers: tuple[str, ...]  # modules below robustmed, with dots
  groups: tuple[str, ...] = ('content', 'place')  # of damages.GROUPS
  special: Mapping[str, Special] = {}  # damages of this format alone, by name
  silent: Mapping[str, str] = {}  # damage -> why changed values cannot be noticed
  confined: bool = False  # whether links that lead out of the folder are refused

  def damages(self) -> dict[str, Any]:
    """Returns the damages of this reader by name."""
    found = {one.__name__: one for group in self.groups for one in damages.GROUPS[group]}
    return {**found, **self.special}


def table() -> dict[str, Reader]:
  """Returns all readers by name."""
  from fuzz import images, networks, runs, sources, stored, tables

  found: dict[str, Reader] = {}
  for module in (images, tables, stored, sources, networks, runs):
    for reader in module.READERS:
      assert reader.name not in found, reader.name
      found[reader.name] = reader
  return found


def unchecked(what: str, *names: str) -> dict[str, str]:
  """Returns the reason why damages of a format without a check sum may change values."""
  names = names or ('flip', 'flips', 'zeros', 'noise')
  if 'name' in names:  # a name in a text
    names = (*names, 'outside')
  return dict.fromkeys(names, f'{what} has no check sum')


def declared(offset: int, content: bytes) -> Special:
  """Returns a damage that puts `content`, a declared size, at `offset`."""
  return lambda whole, rng: whole[:offset] + content + whole[offset + len(content) :]


def numbers(shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
  """Returns the numbers 1, 2, 3, ... in this shape."""
  return np.arange(1, 1 + int(np.prod(shape)), dtype=dtype).reshape(shape)

"""The table of damages: what may happen to a file before it is read.

A damage of `CONTENT`, `TEXT` or `JSON` returns the damaged content; one of `PLACE` puts something
else in the place of the file. All take their chance from `rng` alone. Beside the folder of the file
lies `outside`, with a copy of every file of the whole input; `HERE` in a content is that folder.
"""

import json
import os
import pathlib
import re

import numpy as np

Rng = np.random.Generator
_NUMBER = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?')
_NAME = re.compile(rb'[A-Za-z][A-Za-z0-9_]*\.[a-z]{2,4}')
_NUMBERS = (
  b'-1',
  b'0',
  b'1e308',
  b'1e400',
  b'NaN',
  b'inf',
  b'-inf',
  b'99999999999999999999',
  b'30000',
  b'9' * 6000,
  b'',
  b'one',
)
HERE = b'@OUTSIDE@'
_TOKEN = re.compile(rb'[\w./-]*?([A-Za-z0-9][\w-]*(?:\.[a-z0-9]{2,4}){1,2})(?!\w)')
_PATHS = (
  b'../../secret.txt',
  b'/etc/passwd',
  b'/dev/zero',
  b'..',
  b'a\x00b',
  b'\xed\xa0\x80',
  b'a' * 300,
)
_VALUES = (None, True, -1, 0, 1e308, float('nan'), 10**20, '', 'text', [], {}, [[]], '../../x', 1.5)
_VALUES += ('../outside/canary.txt', f'{HERE.decode()}/canary.txt')
_DEEP = 100_000


# Bytes ----------------------------------------------------------------------------------------


def flip(content: bytes, rng: Rng) -> bytes:
  """Flips one bit."""
  return _xor(content, rng, 1)


def flips(content: bytes, rng: Rng) -> bytes:
  """Flips eight bits."""
  return _xor(content, rng, 8)


def _xor(content, rng, count):
  changed = bytearray(content)
  for place in rng.integers(0, len(content), count):
    changed[place] ^= 1 << int(rng.integers(8))
  return bytes(changed)


def truncate(content: bytes, rng: Rng) -> bytes:
  return content[: int(rng.integers(1, len(content)))]


def shorten(content: bytes, rng: Rng) -> bytes:
  """Leaves out the last one to sixteen bytes."""
  return content[: max(1, len(content) - int(rng.integers(1, 17)))]


def empty(content: bytes, rng: Rng) -> bytes:
  del content, rng
  return b''


def extend(content: bytes, rng: Rng) -> bytes:
  return content + rng.bytes(int(rng.integers(1, 65)))


def zeros(content: bytes, rng: Rng) -> bytes:
  """Sets a block to zero, as a lost sector of a disk does."""
  low, high = _block(content, rng)
  return content[:low] + bytes(high - low) + content[high:]


def remove(content: bytes, rng: Rng) -> bytes:
  """Leaves out a block."""
  low, high = _block(content, rng)
  return content[:low] + content[high:]


def double(content: bytes, rng: Rng) -> bytes:
  """Repeats a block."""
  low, high = _block(content, rng)
  return content[:high] + content[low:]


def _block(content, rng):
  low = int(rng.integers(0, len(content)))
  return low, min(len(content), low + int(rng.integers(1, 65)))


def noise(content: bytes, rng: Rng) -> bytes:
  """Replaces everything."""
  return rng.bytes(len(content))


CONTENT = (flip, flips, truncate, shorten, empty, extend, zeros, remove, double, noise)


# Text -----------------------------------------------------------------------------------------


def bom(content: bytes, rng: Rng) -> bytes:
  del rng
  return b'\xef\xbb\xbf' + content


def nul(content: bytes, rng: Rng) -> bytes:
  place = int(rng.integers(0, len(content)))
  return content[:place] + b'\x00' + content[place:]


def not_utf8(content: bytes, rng: Rng) -> bytes:
  place = int(rng.integers(0, len(content)))
  return content[:place] + b'\xff\xfe' + content[place:]


def number(content: bytes, rng: Rng) -> bytes:
  """Replaces one number by an impossible one."""
  return _replaced(content, rng, _NUMBER, _NUMBERS)


def name(content: bytes, rng: Rng) -> bytes:
  """Replaces the name of a file by a hostile one."""
  return _replaced(content, rng, _NAME, _PATHS)


def outside(content: bytes, rng: Rng) -> bytes:
  """Lets one name of a file lead to the copy outside of the folder."""
  found = list(_TOKEN.finditer(content))
  if not found:
    return content
  match = found[int(rng.integers(len(found)))]
  folder = (HERE, *(b'../' * up + b'outside' for up in (1, 2, 3)))[int(rng.integers(4))]
  return content[: match.start()] + folder + b'/' + match[1] + content[match.end() :]


def _replaced(content, rng, pattern, values):
  found = list(pattern.finditer(content))
  if not found:
    return content
  match = found[int(rng.integers(len(found)))]
  return content[: match.start()] + values[int(rng.integers(len(values)))] + content[match.end() :]


def line_lost(content: bytes, rng: Rng) -> bytes:
  lines = content.splitlines(keepends=True)
  del lines[int(rng.integers(len(lines)))]
  return b''.join(lines)


def line_doubled(content: bytes, rng: Rng) -> bytes:
  lines = content.splitlines(keepends=True)
  place = int(rng.integers(len(lines)))
  return b''.join([*lines[: place + 1], *lines[place:]])


def comma(content: bytes, rng: Rng) -> bytes:
  """Puts a comma at the end of every line or of one."""
  lines = content.splitlines()
  chosen = range(len(lines)) if rng.integers(2) else [int(rng.integers(len(lines)))]
  return b'\n'.join(line + b',' * (at in chosen) for at, line in enumerate(lines)) + b'\n'


def quote(content: bytes, rng: Rng) -> bytes:
  """Puts in a quotation mark that nothing closes."""
  place = int(rng.integers(0, len(content)))
  return content[:place] + b'"' + content[place:]


def long_field(content: bytes, rng: Rng) -> bytes:
  place = int(rng.integers(0, len(content)))
  return content[:place] + b'x' * 200_000 + content[place:]


def cell_doubled(content: bytes, rng: Rng) -> bytes:
  """Repeats one cell of one line of a table, so that all that follow move."""
  lines = content.splitlines(keepends=True)
  place = int(rng.integers(len(lines)))
  cells = lines[place].split(b',')
  one = int(rng.integers(len(cells) - 1)) if len(cells) > 1 else None
  lines[place] = lines[place] if one is None else b','.join([*cells[: one + 1], *cells[one:]])
  return b''.join(lines)


TEXT = (
  bom,
  nul,
  not_utf8,
  number,
  name,
  outside,
  line_lost,
  line_doubled,
  comma,
  quote,
  long_field,
)


# JSON -----------------------------------------------------------------------------------------


def field_lost(content: bytes, rng: Rng) -> bytes:
  return _edited(content, rng, lambda at, key: at.pop(key))


def wrong_kind(content: bytes, rng: Rng) -> bytes:
  def put(at, key):
    at[key] = _VALUES[int(rng.integers(len(_VALUES)))]

  return _edited(content, rng, put)


def deep(content: bytes, rng: Rng) -> bytes:
  """Puts lists in lists in place of a value."""

  def put(at, key):
    at[key] = '@deep@'

  nested = b'[' * _DEEP + b']' * _DEEP
  return _edited(content, rng, put).replace(b'"@deep@"', nested)


def key_doubled(content: bytes, rng: Rng) -> bytes:
  """Repeats a key of the outermost object with another value."""
  found = json.loads(content)
  if not isinstance(found, dict):
    return content
  key = list(found)[int(rng.integers(len(found)))]
  return content.rstrip()[:-1] + b', ' + json.dumps(key).encode() + b': 7}'


def other_root(content: bytes, rng: Rng) -> bytes:
  del content
  return json.dumps(_VALUES[int(rng.integers(len(_VALUES)))]).encode()


def _edited(content, rng, edit):
  found = json.loads(content)
  places = list(_places(found))
  if places:
    edit(*places[int(rng.integers(len(places)))])
  return json.dumps(found).encode()


def _places(value):
  pairs = value.items() if isinstance(value, dict) else enumerate(value)
  for key, item in list(pairs):
    yield value, key
    if isinstance(item, dict | list):
      yield from _places(item)


JSON = (field_lost, wrong_kind, deep, key_doubled, other_root)


# Place ----------------------------------------------------------------------------------------


def missing(path: pathlib.Path, outside: pathlib.Path) -> None:
  path.unlink()


def folder(path: pathlib.Path, outside: pathlib.Path) -> None:
  path.unlink()
  path.mkdir()


def fifo(path: pathlib.Path, outside: pathlib.Path) -> None:
  path.unlink()
  os.mkfifo(path)


def link_out(path: pathlib.Path, outside: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to('/etc/passwd')


def link_copy(path: pathlib.Path, outside: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to(outside / 'tree' / path.relative_to(outside.parent / 'case'))


def link_folder(path: pathlib.Path, outside: pathlib.Path) -> None:
  """Moves the folder of the file to the outside and links it."""
  if path.parent.parent != outside.parent:
    path.parent.rename(outside / 'moved')
    path.parent.symlink_to(outside / 'moved')


def dangling(path: pathlib.Path, outside: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to('nowhere')


def circle(path: pathlib.Path, outside: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to(path.name)


def endless(path: pathlib.Path, outside: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to('/dev/zero')


PLACE = (missing, folder, fifo, link_out, link_copy, link_folder, dangling, circle, endless)
GROUPS = {'content': CONTENT, 'text': TEXT, 'json': JSON, 'place': PLACE}

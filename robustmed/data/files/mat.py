"""Reads arrays of numbers from a MATLAB file (version 5: save -v6 or -v7).

SciPy takes memory for what a header declares. Here declared sizes are compared with those of the
data first, compressed ones to their end, where their check sum is.
"""

import math
import struct
import zlib
from collections.abc import Collection
from typing import BinaryIO

import numpy as np
import scipy.io

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = range(6, 16)  # classes double, single, int8 ... uint64
_COMPLEX = 0x800
_SIZES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # bytes, by type of data
_HEAD = 4096  # bytes in which flags, shape and name of an array lie
_CHUNK = 2**20


def read(file: BinaryIO, names: Collection[str]) -> dict[str, np.ndarray]:
  """Returns the arrays of these names that are in an open file; a damaged one is a ValueError."""
  _check(file, names)
  file.seek(0)
  content = scipy.io.loadmat(file, variable_names=list(names))
  return {name: content[name] for name in names if name in content}


def _check(file, names):
  end = file.seek(0, 2)
  file.seek(0)
  header = file.read(_HEADER)
  order = {b'IM': '<', b'MI': '>'}.get(header[126:])
  if order is None or struct.unpack(f'{order}H', header[124:126])[0] != 0x0100:
    raise ValueError('is no MATLAB file of version 5; save it with -v7')
  found = set()
  while file.tell() < end:
    kind, size = _tag(file.read(8), order)
    if size > end - file.tell():
      raise ValueError(f'declares {size} bytes where {end - file.tell()} are left')
    after = file.tell() + size
    head, whole = file.read(min(size, _HEAD)), size
    if kind == _COMPRESSED:
      file.seek(after - size)
      head, whole = _unpacked(file, size)
      kind, inner = _tag(head[:8], order)
      head, whole = head[8:], whole - 8
      if inner != whole:
        raise ValueError(f'declares {inner} bytes, but has {whole}')
    if kind != _MATRIX:
      raise ValueError(f'has an element of the kind {kind}')
    name = _check_array(head, whole, order, names)
    if name in found:
      raise ValueError(f'has two arrays of the name {name}')
    found.add(name)
    file.seek(after)


def _tag(content, order) -> tuple[int, int]:
  if len(content) < 8:
    raise ValueError('ends within an element')
  return struct.unpack(f'{order}II', content[:8])


def _unpacked(file, size) -> tuple[bytes, int]:
  """Returns the beginning and the size of a compressed element; nothing more is kept."""
  reader, head, whole = zlib.decompressobj(), b'', 0
  while size and not reader.eof:
    part = file.read(min(size, _CHUNK))
    size -= len(part)
    while part and not reader.eof:
      piece = reader.decompress(part, _CHUNK)
      head, whole = (head + piece)[:_HEAD], whole + len(piece)
      part = reader.unconsumed_tail
  if not reader.eof:
    raise ValueError('its compressed data end too early')
  return head, whole


def _check_array(head, size, order, names) -> str:
  """Returns the name of an array, checked if it is one of `names`."""
  flags, place = _data(head, 0, order)
  shape, place = _data(head, place, order)
  name, place = _data(head, place, order)
  name = name.decode('latin-1')
  if name not in names:
    return name
  (flags,) = struct.unpack(f'{order}I', flags[:4])
  shape = struct.unpack(f'{order}{len(shape) // 4}i', shape[: len(shape) // 4 * 4])
  if flags & 0xFF not in _NUMBERS or flags & _COMPLEX:
    raise ValueError(f'{name} is no array of real numbers')
  kind, declared = _tag(head[place : place + 8].ljust(8, b'\0'), order)
  held = size - place - 8
  if kind >> 16:  # at most four bytes, within the tag
    kind, declared, held = kind & 0xFFFF, kind >> 16, 4
  wanted = math.prod(shape) * _SIZES.get(kind, 0)
  if min(shape, default=-1) < 0 or kind not in _SIZES or wanted != declared or declared > held:
    raise ValueError(f'{name} declares {list(shape)} numbers, but has {min(declared, held)} bytes')
  return name


def _data(head, place, order) -> tuple[bytes, int]:
  """Returns the content of the element at `place`, and where the next one begins."""
  kind, size = _tag(head[place : place + 8], order)
  if kind >> 16:
    return head[place + 4 : place + 4 + min(4, kind >> 16)], place + 8
  if place + 8 + size > len(head):
    raise ValueError('ends within the description of an array')
  return head[place + 8 : place + 8 + size], place + 8 + -(-size // 8) * 8

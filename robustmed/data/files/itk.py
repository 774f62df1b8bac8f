"""Checks headers and voxels of MetaImage and NRRD files before ITK reads them.

ITK prints about a damaged file, fills missing voxels and ignores check sums; here all of these are
a `UserError`. Voxels in a file of their own must lie beside the header.
"""

import bz2
import math
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import SimpleITK as sitk

from robustmed import errors
from robustmed.data.files import nifti, quiet
from robustmed.process import files, links

# Headers that ITK warns of are compared here; it would print beside the one line of an error.
sitk.ProcessObject.SetGlobalWarningDisplay(False)
_HEADER_BYTES = 65_536
_CHUNK = 2**20
_LARGEST = 1e9  # millimetres; ITK does not come back from directions of 1e308
_TYPES = {
  'MET_CHAR': 1,
  'MET_UCHAR': 1,
  'MET_SHORT': 2,
  'MET_USHORT': 2,
  'MET_INT': 4,
  'MET_UINT': 4,
  'MET_LONG': 4,
  'MET_ULONG': 4,
  'MET_LONG_LONG': 8,
  'MET_ULONG_LONG': 8,
  'MET_FLOAT': 4,
  'MET_DOUBLE': 8,
}
_NRRD_TYPES = {
  **dict.fromkeys(('signed char', 'int8', 'int8_t', 'uchar', 'unsigned char', 'uint8'), 1),
  'uint8_t': 1,
  **dict.fromkeys(('short', 'short int', 'signed short', 'signed short int', 'int16'), 2),
  **dict.fromkeys(('int16_t', 'ushort', 'unsigned short', 'unsigned short int', 'uint16'), 2),
  'uint16_t': 2,
  **dict.fromkeys(('int', 'signed int', 'int32', 'int32_t', 'uint', 'unsigned int'), 4),
  **dict.fromkeys(('uint32', 'uint32_t', 'float'), 4),
  **dict.fromkeys(('longlong', 'long long', 'long long int', 'signed long long'), 8),
  **dict.fromkeys(('signed long long int', 'int64', 'int64_t', 'ulonglong'), 8),
  **dict.fromkeys(('unsigned long long', 'unsigned long long int', 'uint64', 'uint64_t'), 8),
  'double': 8,
}
_NUMBERS = {'ElementSpacing': 1, 'Offset': 1, 'Position': 1, 'Origin': 1, 'TransformMatrix': 2}
_NUMBERS |= {'Orientation': 2, 'Rotation': 2, 'CenterOfRotation': 1}
_NUMBER = r'[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?'
_VECTOR = rf'\(\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*\)'
_VECTORS = re.compile(rf'(?:{_VECTOR}|none)(?:\s+(?:{_VECTOR}|none))*')
_NRRD_FIELDS = re.compile(
  'dimension|type|block ?size|encoding|endian|content|min|max|old ?min|old ?max|data ?file|'
  'line ?skip|byte ?skip|number|sample ?units|space|space dimension|space units|space origin|'
  'space directions|measurement frame|sizes|spacings|thicknesses|axis ?mins|axis ?maxs|centers|'
  'centerings|labels|units|kinds'
)


class _Voxels(NamedTuple):
  path: pathlib.Path
  offset: int  # of the first byte
  declared: int  # bytes, decompressed
  packed: str  # '', 'gzip' (with zlib's own form) or 'bzip2'
  packed_size: int | None = None  # where the header says


class _Damaged(Exception):
  """Says what is wrong with a file."""


def read(path: pathlib.Path) -> sitk.Image:
  """Returns the image in a .mha, .mhd, .nrrd, .nhdr or NIfTI file that was checked before."""
  return _with_reader(path, lambda reader: reader.Execute())


def grid(path: pathlib.Path) -> sitk.ImageFileReader:
  """Returns size, spacing, origin and direction of a checked file; no voxels are kept."""
  return _with_reader(path, lambda reader: reader)


def _with_reader(path, function):
  if path.name.lower().endswith(nifti.SUFFIXES):
    nifti.checked(path)
  else:
    check(path)
  reader = sitk.ImageFileReader()
  reader.SetFileName(str(path))
  try:
    with quiet.unless_read():
      reader.ReadImageInformation()
      return function(reader)
  except RuntimeError as error:
    reason = str(error).strip().splitlines()[-1][:200]
    raise errors.UserError(f'{path}: cannot be read ({reason}); damaged, copy it again') from error


def volume(path: pathlib.Path) -> sitk.Image:
  """Returns an image as `read` does; more or fewer than three axes or one channel are refused."""
  image = read(path)
  if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
    raise errors.UserError(f'{path}: must be one volume of three axes')
  return image


def check(path: pathlib.Path) -> None:
  """Raises a `UserError` unless header and voxels of a .mha, .mhd, .nrrd or .nhdr file agree."""
  try:
    with files.regular(path).open('rb') as file:
      head = file.read(_HEADER_BYTES)
    nrrd = path.name.lower().endswith(('.nrrd', '.nhdr'))
    voxels = _nrrd(path, head) if nrrd else _metaimage(path, head)
    if voxels is not None:
      _check_voxels(voxels)
  except _Damaged as error:
    raise errors.UserError(
      f'{path}: cannot be read ({error}); damaged or not a {path.suffix} file, copy it again'
    ) from error
  except (OSError, EOFError, zlib.error, ValueError) as error:
    raise errors.UserError(
      f'{path}: cannot be read ({type(error).__name__}: {str(error)[:200]}); damaged, copy it again'
    ) from error


def _metaimage(path, head) -> _Voxels | None:
  fields: dict[str, str] = {}
  place = 0
  while 'ElementDataFile' not in fields:
    end = head.find(b'\n', place)
    end = end if end >= 0 else len(head)
    if place >= len(head):
      raise _Damaged('its header names no ElementDataFile')
    line, place = _text(head[place:end]), end + 1
    if not line.strip():
      continue
    name, equals, value = line.partition('=')
    name = name.strip()
    if not equals or not re.fullmatch(r'[\w .|-]+', name):
      raise _Damaged(f'its header has the line {line[:60]!r}')
    if name in fields:
      raise _Damaged(f'its header has {name} twice')
    fields[name] = value.strip()
  if fields.get('ObjectType', 'Image') != 'Image':
    raise _Damaged(f'it is a {fields["ObjectType"][:40]}')
  (rank,) = _whole(fields, 'NDims', 1)
  sizes = _whole(fields, 'DimSize', rank)
  channels = _whole({'ElementNumberOfChannels': '1', **fields}, 'ElementNumberOfChannels', 1)[0]
  kind = fields.get('ElementType', '').removesuffix('_ARRAY')
  if kind not in _TYPES:
    raise _Damaged(f'its ElementType is {kind[:40]!r}')
  for name, power in _NUMBERS.items():
    if name in fields:
      values = _decimals(fields[name], name, rank**power)
      if name == 'ElementSpacing' and min(values) <= 0:
        raise _Damaged(f'its ElementSpacing is {fields[name][:60]}')
  declared = math.prod(sizes) * channels * _TYPES[kind]
  packed = _flag(fields, 'CompressedData', False)
  if not _flag(fields, 'BinaryData', True):
    raise _Damaged('its voxels are text; save it as binary')
  where, offset = path, min(place, len(head))
  local = fields['ElementDataFile'].upper() == 'LOCAL'
  if not local:
    where, offset = _beside(path, fields['ElementDataFile']), 0
  if 'HeaderSize' in fields:
    skipped = int(_decimals(fields['HeaderSize'], 'HeaderSize', 1)[0])
    offset = where.stat().st_size - declared if skipped == -1 else offset + skipped
    # ITK counts from the start of the file, also where the voxels follow the header.
    if offset < 0 or skipped < -1 or (skipped > 0 and (local or packed)):
      raise _Damaged(f'its HeaderSize is {skipped}')
  stored = _whole(fields, 'CompressedDataSize', 1)[0] if 'CompressedDataSize' in fields else None
  if packed and local and stored is None:  # ITK would take the header for the voxels
    raise _Damaged('its header has no CompressedDataSize')
  return _Voxels(where, offset, declared, 'gzip' if packed else '', stored if packed else None)


def _flag(fields, name, default):
  text = fields.get(name, str(default)).lower()
  if text not in ('true', 'false', '1', '0'):
    raise _Damaged(f'its {name} is {text[:40]!r}')
  return text in ('true', '1')


def _whole(fields, name, count) -> list[int]:
  texts = fields.get(name, '').split()
  if len(texts) != count or not all(re.fullmatch(r'\d{1,12}', one) for one in texts):
    raise _Damaged(f'its {name} is {fields.get(name, "missing")[:60]!r}')
  values = [int(text) for text in texts]
  if min(values, default=0) < 1:
    raise _Damaged(f'its {name} is {fields[name][:60]!r}')
  return values


def _decimals(text, name, count) -> list[float]:
  texts = text.split()
  if len(texts) != count or not all(re.fullmatch(_NUMBER, one) for one in texts):
    raise _Damaged(f'its {name} is {text[:60]!r}')
  values = [float(one) for one in texts]
  if max(map(abs, values), default=0) > _LARGEST:
    raise _Damaged(f'its {name} is {text[:60]!r}')
  return values


def _text(line) -> str:
  if b'\x00' in line:
    raise _Damaged('its header holds bytes that are no text')
  try:
    return line.decode('ascii').rstrip('\r')
  except UnicodeDecodeError:
    raise _Damaged('its header holds bytes that are no text') from None


def _nrrd(path, head) -> _Voxels | None:
  if not re.match(rb'NRRD000[1-6]\r?\n', head):
    raise _Damaged('it does not begin with NRRD')
  fields: dict[str, str] = {}
  place = head.index(b'\n') + 1
  while place < len(head):
    end = head.find(b'\n', place)
    end = end if end >= 0 else len(head)
    raw, place = head[place:end], end + 1
    if not raw.strip():
      break
    if raw.startswith(b'#') or b':=' in raw:
      continue
    name, colon, value = _text(raw).partition(': ')
    name = name.strip().lower()
    if not colon or not _NRRD_FIELDS.fullmatch(name):
      raise _Damaged(f'its header has the line {_text(raw)[:60]!r}')
    if name in fields:
      raise _Damaged(f'its header has {name} twice')
    fields[name] = value.strip()
  (rank,) = _whole(fields, 'dimension', 1)
  sizes = _whole(fields, 'sizes', rank)
  kind = fields.get('type', '').lower()
  if kind not in _NRRD_TYPES:
    raise _Damaged(f'its type is {kind[:40]!r}')
  for name in ('space directions', 'space origin', 'measurement frame'):
    numbers = map(float, re.findall(_NUMBER, fields.get(name, '')))
    if name in fields and (
      not _VECTORS.fullmatch(fields[name]) or max(map(abs, numbers), default=0) > _LARGEST
    ):
      raise _Damaged(f'its {name} is {fields[name][:60]!r}')
  if 'spacings' in fields:
    texts = ['1' if one.lower() == 'nan' else one for one in fields['spacings'].split()]
    _decimals(' '.join(texts), 'spacings', rank)
  encoding = {'gz': 'gzip', 'bz2': 'bzip2'}.get(fields.get('encoding'), fields.get('encoding'))
  if encoding not in ('raw', 'gzip', 'bzip2'):
    raise _Damaged(f'its encoding is {str(encoding)[:40]!r}; known are raw, gzip and bzip2')
  if fields.get('endian', 'little') not in ('little', 'big'):
    raise _Damaged(f'its endian is {fields["endian"][:40]!r}')
  if any(
    fields.get(name, '0') != '0' for name in ('line skip', 'byte skip', 'lineskip', 'byteskip')
  ):
    raise _Damaged('it skips lines or bytes; save it again without')
  name = fields.get('data file', fields.get('datafile'))
  where, offset = (path, place) if name is None else (_beside(path, name), 0)
  declared = math.prod(sizes) * _NRRD_TYPES[kind]
  return _Voxels(where, offset, declared, encoding.replace('raw', ''))


def _beside(path, name) -> pathlib.Path:
  if '/' in name or name in ('', '.', '..'):
    raise errors.UserError(f'{path}: its voxels are in {name}, outside of its folder; refused')
  other = path.parent / name
  if not files.present(other):
    raise errors.UserError(f'{path}: its voxels are not there; copy {name} beside it too')
  return links.inside(path.parent, other)


def _check_voxels(voxels: _Voxels) -> None:
  """Raises `_Damaged` unless there are as many bytes as declared; check sums are verified."""
  there = voxels.path.stat().st_size - voxels.offset
  name = voxels.path.name
  if voxels.packed_size is not None and voxels.packed_size > there:
    raise _Damaged(f'{name} has {there} bytes of voxels, {voxels.packed_size} are declared')
  with voxels.path.open('rb') as file:
    file.seek(voxels.offset)
    parts = iter(lambda: file.read(_CHUNK), b'')
    if voxels.packed_size is not None:
      parts = [file.read(voxels.packed_size)]
    size = sum(map(len, _unpacked(parts, voxels.packed))) if voxels.packed else there
  if size != voxels.declared:
    raise _Damaged(f'{name} has {size} bytes of voxels, {voxels.declared} are declared')


def _unpacked(parts: Iterable[bytes], kind: str) -> Iterator[bytes]:
  """Yields the decompressed bytes in pieces; the end and its check sum must be there."""
  reader = bz2.BZ2Decompressor() if kind == 'bzip2' else zlib.decompressobj(wbits=47)
  for part in parts:
    while part and not reader.eof:
      yield reader.decompress(part, _CHUNK)
      if kind == 'bzip2':
        while not reader.needs_input and not reader.eof:
          yield reader.decompress(b'', _CHUNK)
        part = b''
      else:
        part = reader.unconsumed_tail
    if reader.eof:
      return
  if kind != 'bzip2':
    yield reader.flush()
  if not reader.eof:
    raise _Damaged('its compressed voxels end too early')

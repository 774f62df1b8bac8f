"""Reads and writes files on disks and in object stores; a file is written whole or not at all.

On a disk everything is written under a temporary name and then renamed. In an object store, where
a rename is a copy, a file is written to the local disk and uploaded as one object.
"""

import contextlib
import csv
import errno
import importlib.util
import io
import json
import math
import os
import pathlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from robustmed import errors
from robustmed.process import checksums, leftovers

_DEFLATED = 1032  # bytes that one compressed byte can become
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HALF = re.compile(r'\\u[dD][89a-fA-F]')
_EMPTY_ZIP = 22  # bytes of an archive without files
iter_files = checksums.iter_files
_DRIVERS = {'gs': 'gcsfs', 's3': 's3fs'}  # of fsspec
Path = pathlib.Path | epath.Path
# What the readers raise for a damaged archive of arrays and for a file of another kind.
_DAMAGED = (ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def path_of(name: str | os.PathLike) -> Path:
  """Returns the absolute path that a user named: on a disk, or gs://BUCKET/..., s3://BUCKET/..."""
  scheme, _, rest = os.fspath(name).partition('://')
  if not rest:
    return pathlib.Path(name).absolute()
  driver = errors.lookup(_DRIVERS, scheme, kind='kind of storage')
  if importlib.util.find_spec(driver) is None:
    raise errors.UserError(f'{name} needs {driver}; install it: pip install {driver}')
  return epath.Path(name)


def name_of(text: Any, *, what: str) -> str:
  """Returns a name that becomes part of a path; one that could lead elsewhere is a `UserError`.

  Letters, digits and _-. alone, at most 100 of them, and no dot in front.
  """
  if not isinstance(text, str) or not re.fullmatch(r'[0-9A-Za-z_-][0-9A-Za-z_.-]{0,99}', text):
    raise errors.UserError(
      f'{what} must be a name of at most 100 letters, digits, "_", "-" and ".", not {text!r:.80}'
    )
  return text


def is_remote(path: Path) -> bool:
  """Returns whether a path lies in an object store."""
  return not isinstance(path, pathlib.Path)


def opened(path: Path) -> Any:
  """Returns what numpy and pandas can read `path` from: the path, or the content of an object."""
  checksums.check(path)
  return io.BytesIO(path.read_bytes()) if is_remote(path) else path


def regular(path: Path, *, missing_ok: bool = False) -> Path:
  """Returns `path` if it is a file or a link to one, before it is opened; else a `UserError`.

  A pipe would wait for ever, a device would never end. missing_ok: what opens it says so itself.
  """
  if is_remote(path) or is_file(path):
    return path
  there = path.is_symlink() or is_file(path, path.exists)
  if missing_ok and not there:
    return path
  what = 'is no regular file (a folder, pipe, device or broken link)' if there else 'no such file'
  raise errors.UserError(f'{path}: {what}')


def present(path: Path) -> bool:
  """Returns whether a file is there; what is there and no file, or a broken link, is a `UserError`.

  So what cannot be read is never taken for what is missing.
  """
  return is_file(regular(path, missing_ok=True))


def is_file(path: Path, asked: Callable[[], bool] | None = None) -> bool:
  """Returns whether a file is there (or what is `asked`); a name that none can have is no file."""
  try:
    return (asked or path.is_file)()
  except OSError as error:
    if error.errno == errno.ENAMETOOLONG:
      return False
    raise


def read_bytes(path: Path) -> bytes:
  """Returns the content of a file; one that cannot be read, or is not what a run wrote (see
  `checksums`), is a `UserError`."""
  regular(path, missing_ok=True)
  try:
    content = path.read_bytes()
  except Exception as error:  # drivers raise their own kinds
    raise errors.UserError(
      f'cannot read {path}: {_reason(error)}; check that it is there, that you may read it and '
      'that its store answers'
    ) from error
  checksums.check(path, content)
  return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz file by name; a damaged file is a `UserError`."""
  stored = io.BytesIO(read_bytes(path))
  try:
    return archived_arrays(stored)
  except _DAMAGED as error:
    raise errors.UserError(
      f'{path} is damaged ({_reason(error)}); delete it and run that stage again'
    ) from error


def archived_arrays(file: Any) -> dict[str, np.ndarray]:
  """Returns the arrays of an open .npz file by name; a damaged one is a ValueError or zip error.

  Nothing is allocated before the declared sizes were compared with those of the archive.
  """
  found = {}
  with zipfile.ZipFile(file) as archive:
    if not archive.infolist() and file.seek(0, io.SEEK_END) > _EMPTY_ZIP:
      raise ValueError('its list of arrays is lost')
    for info in archive.infolist():
      if info.file_size > _DEFLATED * (info.compress_size + 1):
        raise ValueError(f'{info.filename} declares {info.file_size} bytes')
      name = info.filename.removesuffix('.npy')
      if name in found:
        raise ValueError(f'has two arrays of the name {name}')
      with archive.open(info) as member:
        found[name] = array_of(member, info.file_size)
        if member.read(1):
          raise ValueError(f'{info.filename} is longer than it declares')
  return found


def array_of(file: Any, size: int) -> np.ndarray:
  """Returns the array of an open .npy file of `size` bytes; a ValueError if its size is another."""
  start = file.tell()
  version = np.lib.format.read_magic(file)
  reader = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(version)
  if reader is None:
    raise ValueError(f'is of version {version} of NPY, not 1.0 or 2.0')
  shape, fortran, dtype = reader(file)
  if dtype.hasobject:
    raise ValueError('holds Python objects, which are never loaded')
  declared = math.prod(shape) * dtype.itemsize
  if min(shape, default=1) < 0 or declared != size - (file.tell() - start):
    raise ValueError(f'declares {declared} bytes, but has {size - (file.tell() - start)}')
  content = file.read(declared)
  if len(content) != declared:
    raise ValueError(f'ends after {len(content)} of {declared} bytes')
  flat = np.frombuffer(bytearray(content), dtype, count=math.prod(shape))
  return flat.reshape(shape, order='F' if fortran else 'C')


def read_with(path: Path, reader: Callable[[Any], Any]) -> Any:
  """Returns what `reader`, e.g. pd.read_parquet, makes of a file; a failure is a `UserError`."""
  stored = io.BytesIO(read_bytes(path))
  try:
    return reader(stored)
  except Exception as error:  # of a damaged file readers raise exceptions of any kind
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    raise errors.UserError(
      f'cannot read {path}: {reason}; delete it and run that stage again'
    ) from error


def _reason(error: Exception) -> str:
  """Returns the message of an exception, of a system error without its number; else its type."""
  return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def remove_folder(folder: Path) -> None:
  """Removes a folder with all that is in it, if it exists."""
  if not folder.exists():
    return
  if is_remote(folder):
    folder.rmtree()
  else:
    shutil.rmtree(folder)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path to write to; its file replaces `path` when the block succeeds."""
  path = path if isinstance(path, pathlib.PurePath) else path_of(path)
  if is_remote(path):
    with leftovers.temporary_folder() as folder:
      temporary = pathlib.Path(folder) / path.name
      yield temporary
      with _summed(temporary, path):
        upload(temporary, path)
    return
  temporary = path.with_name(f'.{path.stem}.{leftovers.owner()}.tmp{path.suffix}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    with _summed(temporary, path):
      os.replace(temporary, path)
  except OSError as error:
    raise errors.UserError(
      f'cannot write {path}: {_reason(error)}; check the free space and the permissions'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _summed(new: pathlib.Path, path: Path) -> Iterator[None]:
  """Stores the sum of `new`, where files like `path` have one, while it takes the place of that."""
  if not checksums.is_kept(path):
    yield
    return
  found = checksums.digest(new)
  checksums.announce(path, found)
  yield
  checksums.settle(path, found)


@contextlib.contextmanager
def building_folder(folder: Path) -> Iterator[pathlib.Path]:
  """Yields a local folder to write into: `folder`, or one that is uploaded there afterwards."""
  if not is_remote(folder):
    yield folder
    return
  with leftovers.temporary_folder() as here:
    yield pathlib.Path(here)
    for file in iter_files(pathlib.Path(here)):
      upload(file, folder / file.relative_to(here).as_posix())


def upload(file: pathlib.Path, path: Path) -> None:
  """Copies a local file to an object."""
  try:
    path.write_bytes(file.read_bytes())
  except Exception as error:  # drivers raise their own kinds
    raise errors.UserError(
      f'cannot write {path}: {error}; check that the bucket exists and that you may write to it'
    ) from error


def os_error(error: BaseException | None) -> int | None:
  """Returns the errno of an exception or of what caused it, which some libraries give as text."""
  while error is not None:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    text = str(error)
    if written := re.search(r"os_error_code='(\d+)'", text):
      return int(written[1])
    named = [code for code in _FULL if os.strerror(code) in text]
    if named and isinstance(error, RuntimeError):
      return named[0]
    error = error.__cause__ or error.__context__
  return None


def write_text(path: str | os.PathLike, text: str) -> None:
  with replacing(path) as temporary:
    temporary.write_text(text)


def read_text(path: Path) -> str:
  """Returns a text file without the mark of its encoding; what is no text is a `UserError`."""
  try:
    text = regular(path).read_text(encoding='utf-8-sig')
  except (OSError, ValueError) as error:
    reason = str(error)[:200]
    raise errors.UserError(f'{path}: cannot be read as text ({reason}); copy it again') from error
  if '\0' in text:
    raise errors.UserError(f'{path}: has zero bytes and is no text; copy it again')
  return text


def csv_rows(path: Path, *, marks: str = ',') -> list[list[str]]:
  """Returns the cells of a table, split at that of `marks` that its first line has most often."""
  lines = read_text(path).splitlines()
  mark = max(marks, key=lines[0].count) if lines else ','
  try:
    return list(csv.reader(lines, delimiter=mark, strict=True))
  except csv.Error as error:
    raise errors.UserError(f'{path}: is no table ({error}); copy it again') from error


def parsed_json(
  path: Path, *, said: str = ': cannot be read as JSON', help_text: str = 'copy it again'
) -> Any:
  """Returns the content of a JSON file; a damaged one, also one key twice, is a `UserError`."""
  try:
    content = regular(path).read_bytes()
  except OSError as error:
    raise errors.UserError(f'{path}{said} ({str(error)[:200]}); {help_text}') from error
  checksums.check(path, content)
  try:
    text = content.decode('utf-8-sig')
    found = json.loads(text, object_pairs_hook=_object)
    if _HALF.search(text):  # half a character can be neither printed nor stored
      json.dumps(found, ensure_ascii=False).encode()
    return found
  except (ValueError, RecursionError) as error:
    reason = str(error)[:200]
    raise errors.UserError(f'{path}{said} ({reason}); {help_text}') from error


def _object(pairs):
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f'has {next(n for n in names if names.count(n) > 1)[:60]!r} twice')
  return found


def write_json(path: str | os.PathLike, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


def read_json(path: str | os.PathLike) -> Any:
  path = path if isinstance(path, pathlib.PurePath) else path_of(path)
  return parsed_json(path, said=' is not valid JSON', help_text='remove it or restore it')

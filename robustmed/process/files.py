"""Whole files or none, on disks and in object stores.

On a disk everything is written under a temporary name and then renamed. In an object store, where
a rename is a copy, it is written here and sent as one object, which is there whole or not at all.
"""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from robustmed import errors

_DRIVERS = {'gs': 'gcsfs', 's3': 's3fs'}  # of fsspec
Path = pathlib.Path | epath.Path
# What bytes that are no archive of arrays, or a broken one, make the readers stumble over.
_DAMAGED = (ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def path_of(name: str | os.PathLike) -> Path:
  """The absolute path of what a user wrote: of a disk, or gs://BUCKET/... or s3://BUCKET/..."""
  scheme, _, rest = os.fspath(name).partition('://')
  if not rest:
    return pathlib.Path(name).absolute()
  driver = errors.lookup(_DRIVERS, scheme, kind='kind of storage')
  if importlib.util.find_spec(driver) is None:
    raise errors.UserError(f'{name} needs {driver}; install it: pip install {driver}')
  return epath.Path(name)


def is_remote(path: Path) -> bool:
  """True for what is in an object store."""
  return not isinstance(path, pathlib.Path)


def opened(path: Path) -> Any:
  """What numpy and pandas read `path` from: itself, or the content of an object."""
  return io.BytesIO(path.read_bytes()) if is_remote(path) else path


def read_bytes(path: Path) -> bytes:
  """All of a file; one that its store does not hand out is a `UserError`."""
  try:
    return path.read_bytes()
  except Exception as error:  # drivers raise their own kinds
    raise errors.UserError(
      f'cannot read {path}: {_said(error)}; check that it is there, that you may read it and that '
      'its store answers'
    ) from error


def arrays(path: Path) -> dict[str, np.ndarray]:
  """Everything in an .npz file; a damaged one is a `UserError`."""
  stored = io.BytesIO(read_bytes(path))
  try:
    with zipfile.ZipFile(stored):  # numpy takes other files than archives for single arrays
      found = np.load(stored, allow_pickle=False)
      return {name: found[name] for name in found.files}
  except _DAMAGED as error:
    raise errors.UserError(
      f'{path} is damaged ({_said(error)}); delete it and run that stage again'
    ) from error


def parsed(path: Path, reader: Callable[[Any], Any]) -> Any:
  """`reader` of the file, e.g. pd.read_parquet; what it cannot read is a `UserError`."""
  stored = io.BytesIO(read_bytes(path))
  try:
    return reader(stored)
  except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
    raise errors.UserError(
      f'cannot read {path}: {error}; delete it and run that stage again'
    ) from error


def _said(error: Exception) -> str:
  """What an exception says, of the system's the words alone; its kind if it says nothing."""
  return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def iter_files(folder: Path) -> list[Path]:
  """All files of a folder and its folders, sorted."""
  if not folder.is_dir():
    return []
  inside = sorted(folder.iterdir())
  return [file for path in inside for file in (iter_files(path) if path.is_dir() else [path])]


def remove(folder: Path) -> None:
  """Takes a folder away with all that is in it, if it is there."""
  if not folder.exists():
    return
  if is_remote(folder):
    folder.rmtree()
  else:
    shutil.rmtree(folder)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path; it takes the place of `path` when the block succeeds."""
  path = path if isinstance(path, pathlib.PurePath) else path_of(path)
  if is_remote(path):
    with tempfile.TemporaryDirectory() as folder:
      temporary = pathlib.Path(folder) / path.name
      yield temporary
      upload(temporary, path)
    return
  temporary = path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.replace(temporary, path)
  except OSError as error:
    raise errors.UserError(
      f'cannot write {path}: {_said(error)}; check the free space and the permissions'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def building_folder(folder: Path) -> Iterator[pathlib.Path]:
  """Yields a folder of this disk to write into: `folder`, or one that is sent there afterwards."""
  if not is_remote(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory() as here:
    yield pathlib.Path(here)
    for file in iter_files(pathlib.Path(here)):
      upload(file, folder / file.relative_to(here).as_posix())


def upload(file: pathlib.Path, path: Path) -> None:
  """Copies a file of this disk to an object."""
  try:
    path.write_bytes(file.read_bytes())
  except Exception as error:  # drivers raise their own kinds
    raise errors.UserError(
      f'cannot write {path}: {error}; check that the bucket exists and that you may write to it'
    ) from error


def os_error(error: BaseException | None) -> int | None:
  """The errno of an exception or of what caused it; libraries wrap it, some of them as text."""
  while error is not None:
    if isinstance(error, OSError) and error.errno:
      return error.errno
    written = re.search(r"os_error_code='(\d+)'", str(error))
    if written:
      return int(written[1])
    error = error.__cause__ or error.__context__
  return None


def write_text(path: str | os.PathLike, text: str) -> None:
  with replacing(path) as temporary:
    temporary.write_text(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


def read_json(path: str | os.PathLike) -> Any:
  path = path if isinstance(path, pathlib.PurePath) else path_of(path)
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise errors.UserError(f'{path} is not valid JSON ({error}); remove it or restore it') from None

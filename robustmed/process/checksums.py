"""SHA-256 of what a run stores: written together with it, compared when it is loaded.

A folder that appears as a whole (a checkpoint, prepared data) holds SHA256SUMS, a list of its files
that is written before the folder gets its name. A file that is replaced on its own (results) has
its sum in .sha256/NAME.sha256 beside it. `sha256sum -c` reads both. What an earlier version stored
has no sums; it is loaded with one warning.
"""

import contextlib
import hashlib
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from etils import epath

from robustmed import errors
from robustmed.process import leftovers

LIST = 'SHA256SUMS'
BESIDE = '.sha256'
_KINDS = ('.parquet', '.csv', '.npz', '.json')  # of single files that get sums
_EXPORTED = ('worst', 'networks')  # folders of results for other programs, which get none
_LINE = re.compile(r'([0-9a-f]{64})  (.+)')

Path = pathlib.Path | epath.Path
_checked: dict[str, tuple] = {}  # folder -> what its files were when they were last compared


class _Run(NamedTuple):
  kept: frozenset[Path]  # folders in which files get sums
  warned: list[Path]  # what had none


_runs = [_Run(frozenset(), [])]  # the last one is open


@contextlib.contextmanager
def keep(*folders: Path) -> Iterator[None]:
  """Has tables, arrays and JSON files written below `folders` get sums until the block ends."""
  _runs.append(_Run(_runs[-1].kept | set(folders), []))
  try:
    yield
  finally:
    _runs.pop()


def is_kept(path: Path) -> bool:
  """Returns whether a file that is written to `path` gets a sum: see `keep`, or it has one."""
  below = path.suffix in _KINDS and not {*_EXPORTED, BESIDE} & set(path.parts)
  return (below and not _runs[-1].kept.isdisjoint(path.parents)) or _beside(path).exists()


def digest(path: Path) -> str:
  """Returns the SHA-256 of a file."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


# Single files -------------------------------------------------------------------------------


def announce(path: Path, new: str) -> None:
  """Stores the sum `new` of a file that is about to replace `path`.

  That of the present file stays valid, so a run that is killed in between leaves a valid file.
  """
  old = _sums(path)
  if not old and path.exists():
    old = [digest(path)]
  _write_sums(path, [*(one for one in old if one != new), new])


def settle(path: Path, new: str) -> None:
  """Drops all sums but `new` once the file has been replaced."""
  if len(_sums(path)) > 1 and digest(path) == new:
    _write_sums(path, [new])


def check(path: Path, content: bytes | None = None) -> None:
  """Raises a `UserError` if a file is not what was written; content: that of the file, if read."""
  sums = _sums(path)
  if not sums:
    if is_kept(path):
      _warn(path)
    return
  if (digest(path) if content is None else hashlib.sha256(content).hexdigest()) not in sums:
    raise errors.UserError(
      f'{path} is damaged: its SHA-256 is not the one that was stored with it; delete it and run '
      'that stage again'
    )


def is_intact(path: Path) -> bool:
  """Returns whether a file is there and is what was written."""
  if not path.is_file():
    return False
  try:
    check(path)
  except errors.UserError:
    return False
  return True


def _beside(path):
  return path.parent / BESIDE / f'{path.name}{BESIDE}'


def _sums(path) -> list[str]:
  file = _beside(path)
  if not file.is_file():
    return []
  found = [_LINE.fullmatch(line) for line in file.read_bytes().decode(errors='replace').split('\n')]
  return [line[1] for line in found if line] or ['unreadable']


def _write_sums(path, sums):
  file = _beside(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  _write_whole(file, ''.join(f'{one}  {path.name}\n' for one in sums))


def _write_whole(file, text):
  if not isinstance(file, pathlib.Path):
    file.write_text(text)
    return
  temporary = file.with_name(f'.{file.stem}.{leftovers.owner()}.tmp{file.suffix}')
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(file)


# Folders ------------------------------------------------------------------------------------


def iter_files(folder: Path) -> list[Path]:
  """Returns all files of a folder and of the folders in it, sorted."""
  if not folder.is_dir():
    return []
  inside = sorted(folder.iterdir())
  return [file for path in inside for file in (iter_files(path) if path.is_dir() else [path])]


def write_list(folder: Path, *, changing: Collection[str] = ()) -> None:
  """Writes the sums of all files of a folder into it, but for those of the names `changing`."""
  listed = [file for file in iter_files(folder) if file.name not in (LIST, *changing)]
  found = {file.relative_to(folder).as_posix(): digest(file) for file in listed}
  lines = [f'# {len(found)} files', *(f'{one}  {name}' for name, one in found.items())]
  _write_whole(folder / LIST, '\n'.join([*lines, '']))


def check_list(folder: Path, *, help_text: str = '') -> None:
  """Raises a `UserError` that names the first file of a folder that is not what was written.

  help_text: what the user can do. A folder that this process has compared, and whose files have the
  same times and sizes, is not read again.
  """
  path = folder / LIST
  advice = f'; {help_text}' if help_text else ''
  found = iter_files(folder)
  for file in found:  # a pipe would wait for ever, a broken link has no times
    if isinstance(file, pathlib.Path) and not file.is_file():
      raise errors.UserError(f'{file} is no regular file{advice}')
  if not path.is_file():
    _warn(folder)
    return
  seen = tuple(map(_stamp, found))
  if _checked.get(str(folder)) == seen:
    return
  lines = path.read_bytes().decode(errors='replace').split('\n')
  entries = [_LINE.fullmatch(line) for line in lines[1:-1]]
  if lines[0] != f'# {len(entries)} files' or lines[-1] or None in entries:
    raise errors.UserError(f'{path} is damaged{advice}')
  there = {file.relative_to(folder).as_posix() for file in found}
  for entry in entries:
    file = folder / entry[2]
    if entry[2] not in there:  # also a name that leads elsewhere
      raise errors.UserError(f'{file} is missing{advice}')
    if digest(file) != entry[1]:
      raise errors.UserError(f'{file} is damaged: its SHA-256 is not the one in {LIST}{advice}')
  _checked[str(folder)] = seen


def _stamp(file) -> Any:
  if not isinstance(file, pathlib.Path):
    return object()  # of an object in a store no more than its content is certain
  found = file.stat()
  return str(file), found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns


def _warn(path):
  from robustmed.process import console  # here, so that --help is fast

  if not _runs[-1].warned:
    console.say(
      f'{path} was stored without check sums, as by earlier versions; it and what else has none is '
      'used as it is'
    )
  _runs[-1].warned.append(path)

"""Keeps what is read inside the folder that the user named.

What a file lists may lie nowhere else. A link may lead elsewhere only where the user said so, with
`FOLLOW` on the command line: it may have come with the data. The folder itself may be a link.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from robustmed import errors
from robustmed.process import files

FOLLOW = '--follow-links'
_runs = [False]  # whether links may lead elsewhere; the last one is open


@contextlib.contextmanager
def following(allowed: bool) -> Iterator[None]:
  """Has links lead out of a folder, or not, until the block ends."""
  _runs.append(allowed)
  try:
    yield
  finally:
    _runs.pop()


def inside(root: pathlib.Path, path: pathlib.Path, *, listed: str = '') -> pathlib.Path:
  """Returns `path`; where it is no file or leaves the folder, also by a link, a `UserError`."""
  place = f'; it is listed in {listed}' if listed else ''
  if '\0' in str(path):
    raise errors.UserError(f'{root}: {str(path)!r} is no name of a file{place}')
  if not pathlib.Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
    raise errors.UserError(f'{path}: leaves the folder {root}{place}; copy the file into it')
  if path.is_symlink():  # a circle of links has no end to resolve
    files.regular(path)
  if not _runs[-1] and _leaves(root, path):
    raise errors.UserError(
      f'{path}: is reached by a link that leaves the folder {root}{place}; copy the files into it, '
      f'or add {FOLLOW} if the links are yours'
    )
  if not files.present(path):
    raise errors.UserError(f'{path}: is not there{place}')
  return path


def present(root: pathlib.Path, path: pathlib.Path) -> bool:
  """Returns whether a file is there; one that is `inside` does not accept is a `UserError`."""
  return files.present(path) and bool(inside(root, path))


def walk(
  root: pathlib.Path, below: pathlib.Path | None = None, *, endings: tuple[str, ...] = ()
) -> list[pathlib.Path]:
  """Returns all files in a folder, or `below` a part of it, and in the folders in it, sorted.

  A folder that is a link is left out if it leads to another place of `root`. One that leaves it is
  a `UserError`, or is followed, once. Links to files are among the files, see `inside`; so are
  folders whose names have one of `endings`, so that none in the place of a file is passed over.
  """
  found, folders = [], [below or root]
  seen = {folders[0].resolve()}
  while folders:
    folder = folders.pop()
    if folder.name == 'lost+found':
      continue
    try:
      inner = list(folder.iterdir())
    except OSError as error:
      reason = error.strerror or error
      raise errors.UserError(f'{folder}: cannot be listed ({reason}); move it elsewhere') from error
    for path in inner:
      if not path.is_dir() or path.name.endswith(endings):
        found.append(path)
      elif not path.is_symlink():
        folders.append(path)
      elif _leaves(root, path) and not path.name.startswith('.'):
        if not _runs[-1]:
          raise errors.UserError(
            f'{path}: is a link that leaves the folder {root}; copy what is there into it, or add '
            f'{FOLLOW} if the link is yours'
          )
        if path.resolve() not in seen:
          seen.add(path.resolve())
          folders.append(path)
  return sorted(found)


def _leaves(root, path) -> bool:
  try:
    return not path.resolve().is_relative_to(root.resolve())
  except (OSError, RuntimeError):
    raise errors.UserError(f'{path}: is reached by links without end') from None

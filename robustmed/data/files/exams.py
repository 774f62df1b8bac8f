"""Which files belong to one exam (patient, volume), and how a folder is split by exams."""

import pathlib
from collections.abc import Iterable

from robustmed import errors

TEST_SHARE = 0.2


def exam_of(path: pathlib.Path) -> str:
  """All before the last underscore of the file's name, or the whole name."""
  return path.stem.rpartition('_')[0] or path.stem


def held_out(exams: Iterable[str], *, where: pathlib.Path, kind: str = 'exams') -> frozenset[str]:
  """The test exams: the last fifth in alphabetical order, at least one, never all of them."""
  ordered = sorted(set(exams))
  if len(ordered) < 2:
    raise errors.UserError(
      f'{where}: nothing for the train split; at least two {kind} needed, found {len(ordered)}'
    )
  return frozenset(ordered[len(ordered) - max(1, round(TEST_SHARE * len(ordered))) :])


def listing(folder: pathlib.Path, suffixes: Iterable[str]) -> list[pathlib.Path]:
  """The files with one of these endings, by name; hidden and half-written ones are left out."""
  endings = tuple(suffixes)
  return [
    path
    for path in sorted(folder.iterdir())
    if path.name.lower().endswith(endings) and not path.name.startswith('.')
  ]


def root_of(folder: str, *, help_text: str) -> pathlib.Path:
  """The folder of a data field `dir`; a `UserError` that says what belongs there."""
  if not folder:
    raise errors.UserError(f'data field dir is empty: name the folder of the data; {help_text}')
  root = pathlib.Path(folder).expanduser()
  if not root.is_dir():
    raise errors.UserError(f'no folder {root}: {help_text}')
  return root


def stamp(paths: Iterable[pathlib.Path]) -> list[list]:
  """What tells whether files changed: their places, sizes and times."""
  return [
    [str(path.resolve()), status.st_size, status.st_mtime_ns]
    for path, status in ((path, path.stat()) for path in paths)
  ]

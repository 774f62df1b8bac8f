"""Groups files by exam (patient, volume) and splits a folder by exams."""

import pathlib
from collections.abc import Iterable

from robustmed import errors
from robustmed.process import links

TEST_SHARE = 0.2


def exam_of(path: pathlib.Path) -> str:
  """Returns the part of the file's name before its last underscore, or the whole name."""
  return path.stem.rpartition('_')[0] or path.stem


def held_out(
  exams: Iterable[str], *, where: pathlib.Path, kind: str = 'exams', chosen: str = ''
) -> frozenset[str]:
  """Returns the test exams: the last fifth in alphabetical order, at least one, never all.

  chosen: 'all', for a network that is trained already, or names with commas between them.
  """
  ordered = sorted(set(exams))
  if chosen == 'all':
    return frozenset(ordered)
  if chosen:
    names = [name.strip() for name in chosen.split(',') if name.strip()]
    for name in names:
      errors.lookup(dict.fromkeys(ordered), name, kind=f'name in data.test_exams, of {kind},')
    return frozenset(names)
  if len(ordered) < 2:
    raise errors.UserError(
      f'{where}: at least two {kind} are needed, one to train and one to test; found '
      f'{len(ordered)}; config.data.test_exams=all tests a trained network on all of them'
    )
  return frozenset(ordered[len(ordered) - max(1, round(TEST_SHARE * len(ordered))) :])


def listing(
  folder: pathlib.Path, suffixes: Iterable[str], *, root: pathlib.Path
) -> list[pathlib.Path]:
  """Returns the files with one of these endings, sorted, without hidden (half-written) ones.

  What has such a name and is no file, a broken link, or one that leaves the folder `root` of the
  data, is a `UserError`.
  """
  endings = tuple(suffixes)
  return [
    links.inside(root, path)
    for path in sorted(folder.iterdir())
    if path.name.lower().endswith(endings) and not path.name.startswith('.')
  ]


def root_of(folder: str, *, help_text: str) -> pathlib.Path:
  """Returns the folder of a data field `dir`; if it is missing, a `UserError` with `help_text`."""
  if not folder:
    raise errors.UserError(f'data field dir is empty: name the folder of the data; {help_text}')
  root = pathlib.Path(folder).expanduser()
  if not root.is_dir():
    raise errors.UserError(f'no folder {root}: {help_text}')
  return root


def stamp(paths: Iterable[pathlib.Path]) -> list[list]:
  """Returns the paths, sizes and modification times of files, which show whether they changed."""
  return [
    [str(path.resolve()), status.st_size, status.st_mtime_ns]
    for path, status in ((path, path.stat()) for path in paths)
  ]

"""Whole files or none: everything is written under a temporary name and then renamed."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from robustmed import errors


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path`; it takes the place of `path` when the block succeeds."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.replace(temporary, path)
  except OSError as error:
    raise errors.UserError(
      f'cannot write {path}: {error.strerror or error}; check the free space and the permissions'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


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
  try:
    return json.loads(pathlib.Path(path).read_text())
  except ValueError as error:
    raise errors.UserError(f'{path} is not valid JSON ({error}); remove it or restore it') from None

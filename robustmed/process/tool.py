"""How a command of ours ends: mistakes of the user are one line on stderr and an exit code."""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence

from robustmed import errors
from robustmed.process import files


class Parser(argparse.ArgumentParser):
  """An argument parser whose complaints are `UserError`s."""

  def error(self, message):
    raise errors.UserError(f'{message}; see --help')


def run(
  command: Callable[[Sequence[str]], int],
  words: Sequence[str],
  *,
  interrupted: str = 'interrupted',
  memory: str = '',
) -> int:
  """Returns the exit code of `command(words)`: 2 for what a user can mend, 130 for Ctrl-C.

  `memory` says what to do about too little of it. Everything else is a bug of ours and keeps its
  traceback.
  """
  try:
    return command(words)
  except errors.UserError as error:
    print(f'robustmed: error: {error}', file=sys.stderr)
    return error.exit_code
  except Exception as error:
    line = _exhausted(error, memory)
    if line is None:
      raise
    print(f'robustmed: error: {line}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'robustmed: {interrupted}', file=sys.stderr)
    return 130


def _exhausted(error: Exception, memory: str) -> str | None:
  """One line if the machine ran out of something: of what, while doing what, what to do."""
  # JAX leaves notes of its own.
  notes = [note for note in getattr(error, '__notes__', []) if note.startswith('while ')]
  during = f' {notes[0]}' if notes else ''
  # The disk first: libraries call that a resource, too.
  if files.os_error(error) in (errno.ENOSPC, errno.EDQUOT):
    where = getattr(error, 'filename', None)
    at = f' for {where}' if where else ''
    return f'no space left on the device{at}{during}; free some and give the same command again'
  if isinstance(error, MemoryError) or (
    isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)
  ):
    return f'out of memory{during}' + (f'; {memory}' if memory else '')
  return None

"""Runs a command so that a user error is one line on stderr and an exit code."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from robustmed import errors
from robustmed.process import files


class Parser(argparse.ArgumentParser):
  """An argument parser that raises a `UserError` for wrong arguments."""

  def error(self, message):
    raise errors.UserError(f'{message}; see --help')


def run(
  command: Callable[[Sequence[str]], int],
  words: Sequence[str],
  *,
  interrupted: str = 'interrupted',
  memory: str = '',
) -> int:
  """Runs `command(words)` and returns its exit code.

  It is 2 after a user error, 130 after Ctrl-C, 141 where the reader of the output has gone.
  `interrupted` is the line after Ctrl-C, `memory` the advice where memory ran out. Any other
  exception is a bug of the package and keeps its traceback.
  """
  try:
    code = command(words)
    sys.stdout.flush()
    return code
  except BrokenPipeError:  # nobody reads on, as after `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit fails, too
    return 141
  except errors.UserError as error:
    print(f'robustmed: error: {error}', file=sys.stderr)
    return error.exit_code
  except Exception as error:
    line = _describe_exhaustion(error, memory)
    if line is None:
      raise
    print(f'robustmed: error: {line}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'robustmed: {interrupted}', file=sys.stderr)
    return 130


def _describe_exhaustion(error: Exception, memory: str) -> str | None:
  """Returns one line if disk or memory ran out: which, while doing what, what to do; else None."""
  # JAX adds other notes to its errors.
  notes = [note for note in getattr(error, '__notes__', []) if note.startswith('while ')]
  during = f' {notes[0]}' if notes else ''
  # The disk first: libraries call a full disk an exhausted resource, too.
  if files.os_error(error) in (errno.ENOSPC, errno.EDQUOT):
    where = getattr(error, 'filename', None)
    at = f' for {where}' if where else ''
    return f'no space left on the device{at}{during}; free some and run the same command again'
  if isinstance(error, MemoryError) or (
    isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)
  ):
    return f'out of memory{during}' + (f'; {memory}' if memory else '')
  return None

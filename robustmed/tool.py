"""How a command of ours ends: mistakes of the user are one line on stderr and an exit code."""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence

from robustmed import errors


class Parser(argparse.ArgumentParser):
  """An argument parser whose complaints are `UserError`s."""

  def error(self, message):
    raise errors.UserError(f'{message}; see --help')


def run(
  command: Callable[[Sequence[str]], int],
  words: Sequence[str],
  *,
  interrupted: str = 'interrupted',
  memory: str = 'out of memory',
) -> int:
  """Returns the exit code of `command(words)`: 2 for what a user can mend, 130 for Ctrl-C.

  Everything else is a bug of ours and keeps its traceback.
  """
  try:
    return command(words)
  except errors.UserError as error:
    print(f'robustmed: error: {error}', file=sys.stderr)
    return error.exit_code
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    print(f'robustmed: error: no space left on the device: {error.filename}', file=sys.stderr)
    return 2
  except (MemoryError, RuntimeError) as error:
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    print(f'robustmed: error: {memory}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'robustmed: {interrupted}', file=sys.stderr)
    return 130

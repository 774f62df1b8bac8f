"""One line about a process of the run that died, in place of what jaxlib says of it.

jaxlib's coordination service ends every process of a run within `HEARTBEAT` seconds of the death of
one, by an abort that nothing can catch, with a page of text and a stack trace. So the stderr of a
process goes through a small one of its own, which outlives the abort and knows who is who. What it
does not understand it passes on.
"""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import BinaryIO

HEARTBEAT = 30  # seconds of silence after which jaxlib takes a process for dead
_TOGETHER = (0, 143)  # exit codes with which all processes end, one waiting for the other
_SIGNS = (
  b'Polled an error from coordination service',
  b'Use error polling to propagate',
  b'the JAX distributed service detected fatal errors',
)
_SILENT = re.compile(rb'stopped sending heartbeats\):\s*((?:\d+[\s,]*)+)The tasks')
_LEADER = b'Failed to send RPC to coordination service'
_redirected = False


def watch(names: Sequence[str]) -> None:
  """Sends this process's stderr through `relay`; `names` are those of processes by their index."""
  global _redirected
  terminal = os.dup(2)
  reader = subprocess.Popen(
    [sys.executable, '-I', '-S', __file__, *names], stdin=subprocess.PIPE, start_new_session=True
  )
  os.dup2(reader.stdin.fileno(), 2)
  reader.stdin.close()
  _redirected = True

  def back():
    sys.stderr.flush()
    os.dup2(terminal, 2)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a child of ours writes on
      reader.wait(5)

  atexit.register(back)


def leave(code: int) -> None:
  """Ends this process at once where it ends alone: jaxlib's own end waits for all others.

  A bug comes after the time in which jaxlib notices a death: collectives fail of that, too.
  """
  if not _redirected or code in _TOGETHER:
    return
  # The others may be about to end with the same mistake, and deserve their own line.
  time.sleep(HEARTBEAT + 10 if code == 1 else 5)
  if code == 1:
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def relay(lines: Iterable[bytes], out: BinaryIO, names: Sequence[str]) -> None:
  """Passes lines on; what jaxlib says about a death becomes one line, with the name of who died."""
  said, told = b'', False
  for line in lines:
    if not said and not any(sign in line for sign in _SIGNS):
      out.write(line)
    elif not told:
      said += line
      dead = _dead(said)
      told = bool(dead)
      if told:
        out.write(_line(dead, names).encode())
    out.flush()
  if not told:
    out.write(said)
    out.flush()


def _dead(said: bytes) -> list[int]:
  """Indices of processes, [] if it is not known yet."""
  silent = _SILENT.search(said)
  if silent:
    return [int(index) for index in re.findall(rb'\d+', silent[1])]
  return [0] if _LEADER in said else []


def _line(dead, names):
  named = [f'{i} of {len(names)} ({names[i] if i < len(names) else "?"})' for i in dead]
  return (
    f'robustmed: error: process {" and ".join(named)} died, its own output may say why; '
    'stopped here; the same command on all hosts goes on from the last checkpoint\n'
  )


if __name__ == '__main__':
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)  # of a process group: it is for the run
  relay(sys.stdin.buffer, sys.stderr.buffer, sys.argv[1:])

"""Replaces the output of jaxlib about a lost process of the run by one line that names it.

jaxlib's coordination service ends every process of a run within `HEARTBEAT` seconds of the loss of
one, by an abort that cannot be caught, with a page of text and a stack trace. So the stderr of a
process goes through a small process of its own, which outlives the abort and has the names of all
processes. All other lines pass unchanged.
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

HEARTBEAT = 30  # seconds without a sign of a process after which jaxlib takes it for dead
_TOGETHER = (0, 143)  # exit codes with which all processes end, each waiting for the others
_SIGNS = (
  b'Polled an error from coordination service',
  b'Use error polling to propagate',
  b'the JAX distributed service detected fatal errors',
)
_NO_HEARTBEAT = re.compile(rb'stopped sending heartbeats\):\s*((?:\d+[\s,]*)+)The tasks')
_NO_COORDINATOR = b'Failed to send RPC to coordination service'
_redirected = False


def watch(names: Sequence[str]) -> None:
  """Sends this process's stderr through `relay`; `names` holds one name per process index."""
  global _redirected
  terminal = os.dup(2)
  reader = subprocess.Popen(
    [sys.executable, '-I', '-S', __file__, *names], stdin=subprocess.PIPE, start_new_session=True
  )
  os.dup2(reader.stdin.fileno(), 2)
  reader.stdin.close()
  _redirected = True

  def restore():
    sys.stderr.flush()
    os.dup2(terminal, 2)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a child process still writes to stderr
      reader.wait(5)

  atexit.register(restore)


def exit_without_peers(code: int) -> None:
  """Ends this process at once, while a normal exit would wait for its peers (jaxlib does).

  Returns where all processes end together. A traceback (code 1) is printed only after the time in
  which jaxlib notices a lost peer, since that makes collectives fail, too.
  """
  if not _redirected or code in _TOGETHER:
    return
  # Peers that end with the same error need the time to print their own line.
  time.sleep(HEARTBEAT + 10 if code == 1 else 5)
  if code == 1:
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def relay(lines: Iterable[bytes], out: BinaryIO, names: Sequence[str]) -> None:
  """Copies lines to `out`; jaxlib's report of lost processes becomes one line that names them."""
  report, named = b'', False
  for line in lines:
    if not report and not any(sign in line for sign in _SIGNS):
      out.write(line)
    elif not named:
      report += line
      lost = _lost_indices(report)
      named = bool(lost)
      if named:
        out.write(_message(lost, names).encode())
    out.flush()
  if not named:
    out.write(report)
    out.flush()


def _lost_indices(report: bytes) -> list[int]:
  """Returns the indices of the lost processes, [] if the report does not name them yet."""
  silent = _NO_HEARTBEAT.search(report)
  if silent:
    return [int(index) for index in re.findall(rb'\d+', silent[1])]
  return [0] if _NO_COORDINATOR in report else []


def _message(lost, names):
  listed = [f'{i} of {len(names)} ({names[i] if i < len(names) else "?"})' for i in lost]
  return (
    f'robustmed: error: process {" and ".join(listed)} died, so this one stopped; its own output '
    'may say why it died; the same command on all hosts continues from the last checkpoint\n'
  )


if __name__ == '__main__':
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)  # sent to the whole process group, meant for the run
  relay(sys.stdin.buffer, sys.stderr.buffer, sys.argv[1:])

"""What a process says when another one died: recorded words of jaxlib, and a real process."""

import io
import subprocess
import sys

import pytest

from robustmed.process import lost_peers
from support import runs

NAMES = ['one, pid 11', 'two, pid 22', 'three, pid 33']
SILENT = """\
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
{}
The tasks have crashed. Check the task logs for an earlier error, or scheduler events (e.g. \
preemption, eviction) to debug further. [type.googleapis.com/tensorflow.CoordinationServiceError='']
"""
POLLED = """\
E1121 19:29:01.293139   18971 coordination_service_agent.cc:289] Polled an error from \
coordination service (this can be an error from this or another task).
"""
FATAL = """\
F1121 19:29:01.293281   18971 client.h:80] Terminating process because the JAX distributed \
service detected fatal errors. This most likely indicates that another task died; see the other \
task logs for more details. absl::Status: """
TRACE = """\
RPC: /xla.coordination.CoordinationService/PollForError
*** Check failure stack trace: ***
    @     0x7fdbd2c40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
PROPAGATED = """\
E1121 19:29:01.285758   18960 coordination_service.cc:1549] [159] Use error polling to propagate \
the following error to all tasks: """
LEADER = """\
UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was \
preempted/died/restarted unexpectedly or this task is experiencing network issues.
:UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}
"""


def _relayed(text):
  out = io.BytesIO()
  lost_peers.relay(io.BytesIO(text.encode()), out, NAMES)
  return out.getvalue().decode()


@pytest.mark.parametrize(
  ('said', 'who'),
  [
    (PROPAGATED + SILENT.format('1') + POLLED + FATAL + SILENT.format('1'), NAMES[1:2]),
    (POLLED + FATAL + SILENT.format('2'), NAMES[2:]),
    (POLLED + FATAL + SILENT.format('1\n2'), NAMES[1:]),
    (POLLED + FATAL + LEADER, NAMES[:1]),
  ],
)
def test_a_death_is_one_line_that_names_who(said, who):
  text = _relayed('step 3\n' + said + TRACE)
  first, line = text.splitlines()
  assert first == 'step 3' and line.startswith('robustmed: error: process ')
  assert [name for name in NAMES if f'{NAMES.index(name)} of 3 ({name})' in line] == who
  assert ' died, ' in line and 'continues from the last checkpoint' in line


def test_everything_else_is_passed_on():
  plain = 'step 3\nW1 coordination_service.cc:185] a warning\n\nwithout an end'
  assert _relayed(plain) == plain
  unknown = POLLED + FATAL + 'INTERNAL: something new\n' + TRACE
  assert _relayed(unknown) == unknown


_PROCESS = """
import os, sys
from robustmed.process import lost_peers
lost_peers.HEARTBEAT = -10
lost_peers.watch(['one, pid 11', 'two, pid 22'])
print('before', file=sys.stderr)
try:
  {}
finally:
  lost_peers.exit_without_peers({})
"""


@pytest.mark.parametrize(
  ('deed', 'code', 'said'),
  [
    ('pass', 0, 'before\n'),
    ('sys.exit(143)', 143, 'before\n'),
    ('1 / 0', 1, 'ZeroDivisionError'),
    (f'os.write(2, {(POLLED + FATAL + LEADER).encode()!r}); os.abort()', -6, 'process 0 of 2 (one'),
  ],
)
def test_a_process_keeps_its_words_and_its_exit_code(deed, code, said):
  done = subprocess.run(
    [sys.executable, '-c', _PROCESS.format(deed, code)],
    env=runs.environment(),
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.returncode == code and done.stderr.startswith('before\n')
  assert said in done.stderr and done.stderr.count('Traceback') == (code == 1)


def test_alone_nothing_happens():
  lost_peers.exit_without_peers(2)

"""Real processes: the main program as a user starts it."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from support import forked

ROOT = pathlib.Path(__file__).parents[2]
CACHE = os.environ.get('ROBUSTMED_TEST_CACHE', str(ROOT / '.jax_cache'))


class Done(NamedTuple):
  """The output of a run that has ended."""

  stdout: str
  stderr: str


def environment(**more):
  return {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'PYTHONWARNINGS': 'default',
    'JAX_COMPILATION_CACHE_DIR': CACHE,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
    'MPLBACKEND': 'agg',
    'ROBUSTMED_CACHE': f'{CACHE}/data',  # not what another version left at home
    **more,
  }


def command(*words):
  return [sys.executable, '-m', 'robustmed.main', *[str(word) for word in words]]


def start(*words, fresh=False, env=None):
  """Starts the program; `fresh`: by a new Python, as a user does, which takes seconds longer."""
  env = environment() if env is None else env
  if not fresh:
    return forked.Process([str(word) for word in words], env=env, cwd=ROOT)
  return subprocess.Popen(
    command(*words),
    env=env,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


COUNTED = """
import sys
from support import counted
sys.exit(counted.run(sys.argv[2:], sys.argv[1]))
"""


def main(*words, code=0, timeout=1200, fresh=False, counted=None, **env):
  """Runs the program to its end; returns what it said, as .stdout and .stderr.

  counted: the file that the passes through networks are written to, see `support.counted`.
  """
  if counted:
    words = [str(word) for word in (counted, *words)]
    process = forked.Process(words, env=environment(**env), cwd=ROOT, code=COUNTED)
  else:
    process = start(*words, fresh=fresh, env=environment(**env))
  try:
    done = Done(*process.communicate(timeout=timeout))
  finally:
    process.kill()
    process.wait()
  ended = process.returncode
  assert ended == code, f'exit code {ended}\n{done.stdout}\n{done.stderr}'
  return done


def interrupted(*words, when, signal_number=signal.SIGKILL, timeout=1200, **env):
  """Starts the program and sends it a signal as soon as `when()` is true; returns its exit code."""
  process = start(*words, env=environment(**env))
  try:
    end = time.monotonic() + timeout
    while not when():
      assert process.poll() is None, f'ended with {process.returncode} before it was interrupted'
      assert time.monotonic() < end, 'never came to the point of interruption'
      time.sleep(0.01)
    process.send_signal(signal_number)
    return process.wait(timeout=timeout)
  finally:
    process.kill()
    process.wait()


def mistake(*words, **env):
  """A run that must end with exit code 2 and one line on stderr, which is returned."""
  done = main(*words, code=2, **env)
  lines = [line for line in done.stderr.splitlines() if not line.startswith('[robustmed]')]
  assert len(lines) == 1 and lines[0].startswith('robustmed: error: '), done.stderr
  assert 'Traceback' not in done.stderr
  return lines[0]


def hosts(*words, processes, devices, env=None):
  """Starts the program as `processes` hosts that find each other as under SLURM; the processes."""
  started, job = [], str(_slurm_job())
  for process in range(processes):
    slurm = {
      'SLURM_JOB_ID': job,
      'SLURM_STEP_NODELIST': '127.0.0.1',
      'SLURM_NTASKS': str(processes),
      'SLURM_PROCID': str(process),
      'SLURM_LOCALID': str(process),
      'SLURM_STEP_NUM_NODES': '1',
    }
    flags = re.sub(r'(device_count)=\d+', rf'\1={devices}', os.environ['XLA_FLAGS'])
    own = environment(**slurm, JAX_PLATFORMS='cpu') | {'XLA_FLAGS': flags} | (env or {})
    own.pop('NPROC', None)
    started.append(start(*words, *(['--distributed'] if processes > 1 else []), env=own))
  return started


def ends(started, timeout=900):
  """The exit codes of processes and what they said on stderr."""
  texts = [process.communicate(timeout=timeout)[1] for process in started]
  return [process.returncode for process in started], texts


def _slurm_job():
  """A job number whose port is free: JAX takes the first of these plus the number modulo 4096."""
  for job in range(os.getpid() % 4000, 4096):
    with socket.socket() as probe:
      if probe.connect_ex(('127.0.0.1', 65535 - 2**12 + 1 + job)):
        return job
  raise AssertionError('no free port')

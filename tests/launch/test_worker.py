"""The restart loop of one worker, with a stand-in for the main program."""

import os
import pathlib
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Ends with the next code of `codes`; waits for a SIGTERM where that is 'wait'.
PYTHON = """#!/usr/bin/env bash
echo "$PWD $*" >>"{folder}/calls"
code=$(head -n 1 "{folder}/codes"); sed -i 1d "{folder}/codes"
[ "$code" = wait ] || exit "$code"
trap 'echo saved >>"{folder}/calls"; exit 143' TERM
while :; do sleep 0.05; done
"""


@pytest.fixture
def worker(tmp_path):
  python = tmp_path / 'venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(PYTHON.format(folder=tmp_path))
  python.chmod(0o755)

  def call(*words, codes=(), code=0):
    if codes:
      (tmp_path / 'calls').write_text('')
      (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in codes))
    done = subprocess.run(
      ['bash', str(ROOT / 'launch' / 'worker.sh'), *words],
      env={
        **os.environ,
        'HOME': str(tmp_path),
        'ROBUSTMED_VENV': str(tmp_path / 'venv'),
        'ROBUSTMED_RUN_DIR': str(tmp_path / 'run'),
        'ROBUSTMED_RESTART_PAUSE': '0.1',
        'ROBUSTMED_STOP_WAIT': '20',
      },
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )
    assert done.returncode == code, done.stderr
    return done

  def until(text):
    end = time.monotonic() + 30
    while text not in call('logs').stdout:
      assert time.monotonic() < end, call('logs').stdout
      time.sleep(0.05)

  call.until = until
  call.calls = lambda: (tmp_path / 'calls').read_text().splitlines()
  yield call
  call('stop')


def test_a_failure_is_started_again_and_success_ends(worker, tmp_path):
  worker('start', '--config', 'a b', codes=(75, 143, 0))
  worker.until('exit code 0')
  assert worker.calls() == [f'{tmp_path} -u -m robustmed.main --config a b'] * 3
  assert 'ended with exit code 0' in worker('status', code=1).stdout


def test_a_mistake_is_not_repeated(worker):
  worker('start', codes=(2, 0))
  worker.until('exit code 2')
  time.sleep(0.3)
  assert len(worker.calls()) == 1


def test_what_ends_at_once_five_times_is_given_up(worker):
  worker('start', codes=(1,) * 9)
  worker.until('stopped: five starts')
  assert len(worker.calls()) == 5


def test_stop_lets_the_run_save_and_a_second_start_is_refused(worker):
  worker('start', codes=('wait', 0))
  worker.until('starting')
  while not worker.calls():
    time.sleep(0.02)
  time.sleep(0.2)
  assert worker('status').stdout.startswith('running as process')
  assert 'a run is in progress here' in worker('start', code=2).stderr
  worker('stop')
  assert worker.calls()[1:] == ['saved'] and 'code 143' in worker('status', code=1).stdout
  assert 'nothing is running' in worker('stop').stderr


def test_before_the_first_start(worker):
  assert 'never started' in worker('status', code=1).stdout
  assert "not 'dance'" in worker('dance', code=2).stderr

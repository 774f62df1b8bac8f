"""Two real processes that find each other as under SLURM: stopped, killed, resumed elsewhere."""

import re
import signal
import socket
import time

import pytest

from support import runs

# Long enough to be met in the middle; one arm, one training.
WORDS = ['--config', 'configs/quickstart.py:smoke', '--stage', 'train', '--arms', 'std']
WORDS += ['--config.train.steps=100000', '--config.train.checkpoint_every=10']


def _steps(folder):
  """The complete checkpoints."""
  state = folder / 'checkpoints' / 'std' / 'seed0' / 'state'
  return sorted(int(path.name) for path in state.glob('*') if path.name.isdigit())


def _until_beyond(step, folder, started):
  end = time.monotonic() + 900
  while not (_steps(folder) and _steps(folder)[-1] > step):
    for process in started:
      assert process.poll() is None, process.said()[1]
    assert time.monotonic() < end, 'no checkpoint'
    time.sleep(0.1)


@pytest.mark.long
def test_stopped_killed_and_resumed_elsewhere(tmp_path):
  started = runs.hosts(*WORDS, '--workdir', tmp_path, processes=2, devices=2)
  try:
    # SIGTERM on one host: both save the same step.
    _until_beyond(0, tmp_path, started)
    started[1].send_signal(signal.SIGTERM)
    codes, texts = runs.ends(started)
    assert codes == [143, 143], texts
    assert '4 x cpu (cpu) on 2 host(s)' in texts[0]
    stopped = int(re.search(r'stopped in std at step (\d+)', texts[0])[1])
    assert _steps(tmp_path)[-1] == stopped
    assert not (tmp_path / 'locks').exists()

    # The same command goes on; then one is killed, and the other one says which.
    started = runs.hosts(*WORDS, '--workdir', tmp_path, processes=2, devices=2)
    _until_beyond(stopped, tmp_path, started)
    killed = started[1].pid
    started[1].kill()
    began = time.monotonic()
    codes, texts = runs.ends(started)
    assert codes == [-signal.SIGABRT, -signal.SIGKILL], texts
    assert time.monotonic() - began < 60
    (line,) = [x for x in texts[0].splitlines() if x.startswith('robustmed: error: ')]
    assert f'process 1 of 2 ({socket.gethostname()}, pid {killed}) died' in line
    assert 'Traceback' not in texts[0] and 'stack trace' not in texts[0]

    # On one host with one device it goes on as well.
    last = _steps(tmp_path)[-1]
    assert last > stopped
    started = runs.hosts(*WORDS, '--workdir', tmp_path, processes=1, devices=1)
    _until_beyond(last, tmp_path, started)
    started[0].send_signal(signal.SIGTERM)
    codes, texts = runs.ends(started)
    assert codes == [143] and '1 x cpu (cpu) on 1 host(s)' in texts[0]
    assert not (tmp_path / 'locks').exists()
    assert _steps(tmp_path)[-1] > last
  finally:
    for process in started:
      process.kill()
      process.wait()

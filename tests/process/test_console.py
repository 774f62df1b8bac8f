import os
import signal

import pytest

from robustmed.process import console


def test_duration_reads_well():
  assert [console.format_duration(s) for s in (3.4, 120, 7200)] == ['3 s', '2.0 min', '2.0 h']


def test_sigterm_sets_a_flag_and_the_old_handler_returns():
  before = signal.getsignal(signal.SIGTERM)
  with console.stop_on_signal() as stopper:
    assert not stopper.requested()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopper.requested()
  assert signal.getsignal(signal.SIGTERM) == before
  with pytest.raises(SystemExit) as ended:
    raise console.Stopped
  assert ended.value.code == 143


def test_progress_is_quiet_at_first_and_says_how_long(capsys, monkeypatch):
  clock = iter([0.0, 1.0, 20.0])
  monkeypatch.setattr(console.time, 'monotonic', lambda: next(clock))
  progress = console.Progress('train std', 100)
  progress.update(1)
  progress.update(20, 'loss 3')
  progress.close()
  lines = capsys.readouterr().err.splitlines()
  assert lines == ['[robustmed] train std 20/100, 80 s left  loss 3']


def test_progress_does_not_count_the_compilation(capsys, monkeypatch):
  clock = iter([0.0, 600.0, 620.0, 700.0])
  monkeypatch.setattr(console.time, 'monotonic', lambda: next(clock))
  progress = console.Progress('train std', 50, done=10)
  progress.update(11)
  progress.update(20)
  progress.update(30)
  lines = [
    line.removeprefix('[robustmed] train std ') for line in capsys.readouterr().err.splitlines()
  ]
  assert lines == ['11/50', '20/50, 67 s left', '30/50, 1.8 min left']


def test_what_is_over_is_said_to_the_second():
  said = {0.4: '0 s', 51: '51 s', 171.3: '2 min 51 s', 3600: '1 h 0 min 0 s', 3723: '1 h 2 min 3 s'}
  assert {seconds: console.format_exact_duration(seconds) for seconds in said} == said

"""What C++ prints is kept until the reading has ended, what Python prints is not."""

import os
import subprocess
import sys
import threading

import pytest

from robustmed.data.files import quiet


def test_text_of_a_failed_reading_is_dropped(capfd):
  with pytest.raises(ValueError), quiet.unless_read():
    os.write(2, b'a library says something\n')
    raise ValueError
  assert capfd.readouterr().err == ''


def test_text_of_a_reading_that_succeeds_is_passed_on_at_its_end(capfd):
  with quiet.unless_read():
    os.write(2, b'a library warns\n')
    assert capfd.readouterr().err == ''
  os.write(2, b'later\n')
  assert capfd.readouterr().err == 'a library warns\nlater\n'


def test_readings_in_threads_end_as_one(capfd):
  inside, go = threading.Event(), threading.Event()

  def fail():
    with pytest.raises(ValueError), quiet.unless_read():
      os.write(2, b'from the thread\n')
      inside.set()
      go.wait()
      raise ValueError

  thread = threading.Thread(target=fail)
  thread.start()
  inside.wait()
  with quiet.unless_read():
    os.write(2, b'from here\n')
  assert capfd.readouterr().err == ''
  go.set()
  thread.join()
  os.write(2, b'later\n')
  assert capfd.readouterr().err == 'later\n'


PROGRESS = """
import os, sys
from robustmed.data.files import quiet
before = sys.stderr
try:
  with quiet.unless_read():
    os.write(2, b'library\\n')
    print('[robustmed] progress', file=sys.stderr, flush=True)
    raise ValueError
except ValueError:
  assert sys.stderr is before
  print('error', file=sys.stderr)
"""


def test_progress_is_shown_at_once():
  done = subprocess.run([sys.executable, '-c', PROGRESS], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '[robustmed] progress\nerror\n')

"""Two runs in one workdir: the second one refuses, and what a dead one left is taken over."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from robustmed import errors, main
from robustmed.runs import locks

QUICK = str(pathlib.Path(__file__).parents[2] / 'configs' / 'quickstart.py') + ':smoke'


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
  monkeypatch.setattr(locks, 'WATCH', 0.6)
  monkeypatch.setattr(locks, 'BEAT', 0.1)
  monkeypatch.setattr(locks, '_POLL', 0.05)


def _files(folder):
  return sorted(path.name for path in folder.rglob('*') if path.is_file())


def _left(folder, **fields):
  """The lock of train.std as another run left it."""
  path = folder / 'locks' / 'train.std.json'
  path.parent.mkdir(exist_ok=True)
  record = {**locks._record(), 'token': 'other', **fields}
  path.write_text(json.dumps(record))
  return path


def test_the_second_is_refused_with_who_has_it_and_other_arms_are_free(tmp_path):
  with locks.hold(tmp_path, ['train.std', 'evaluate.std']):
    assert _files(tmp_path) == ['evaluate.std.json', 'train.std.json']
    with (
      pytest.raises(errors.UserError) as refused,
      locks.hold(tmp_path, ['train.adv', 'train.std']),
    ):
      pass
    line = str(refused.value)
    assert f"training arm 'std' in {tmp_path}: host {socket.gethostname()}" in line
    assert f'process {os.getpid()}, since 20' in line and 'other --arms or another' in line
    assert _files(tmp_path) == ['evaluate.std.json', 'train.std.json']  # train.adv was given back
    with locks.hold(tmp_path, ['train.adv']):
      assert len(_files(tmp_path)) == 3
  assert not (tmp_path / 'locks').exists()


def test_they_are_released_when_the_run_fails(tmp_path):
  with pytest.raises(ZeroDivisionError), locks.hold(tmp_path, ['train.std']):
    raise ZeroDivisionError
  with locks.hold(tmp_path, ['train.std']):
    pass


def test_a_process_that_is_gone_holds_nothing(tmp_path, capsys):
  gone = subprocess.run(
    [sys.executable, '-c', 'import os; print(os.getpid())'],
    capture_output=True,
    text=True,
    check=True,
  )
  for fields in ({'pid': int(gone.stdout)}, {'born': '1'}):  # gone; its number given anew
    path = _left(tmp_path, **fields)
    with locks.hold(tmp_path, ['train.std']):
      assert json.loads(path.read_text())['token'] != 'other'
    assert 'is of a run that has ended' in capsys.readouterr().err


@pytest.mark.parametrize('other', [{'host': 'elsewhere'}, {'boot': 'before'}])
def test_another_host_is_watched_until_its_heart_has_stopped(tmp_path, other):
  path = _left(tmp_path, **other)
  with locks.hold(tmp_path, ['train.std']):
    assert json.loads(path.read_text())['token'] != 'other'


def test_another_host_that_still_works_is_not_disturbed(tmp_path):
  path, over = _left(tmp_path, host='elsewhere'), threading.Event()

  def beat():
    number = 0
    while not over.wait(0.1):
      number += 1
      record = {**json.loads(path.read_text()), 'beat': number}
      temporary = path.with_suffix('.tmp')
      temporary.write_text(json.dumps(record))
      temporary.replace(path)

  thread = threading.Thread(target=beat)
  thread.start()
  began = time.monotonic()
  try:
    held = locks.Held(tmp_path)
    with pytest.raises(errors.UserError, match='host elsewhere'):
      held.acquire(['train.std'])
    assert time.monotonic() - began < 30
  finally:
    over.set()
    thread.join()
  assert json.loads(path.read_text())['token'] == 'other'


def test_a_damaged_lock_is_stale(tmp_path):
  path = _left(tmp_path)
  path.write_text('{"host": ')
  with locks.hold(tmp_path, ['train.std']):
    assert json.loads(path.read_text())['pid'] == os.getpid()


def test_of_many_that_want_a_stale_lock_one_gets_it(tmp_path):
  for _ in range(5):
    path = _left(tmp_path, born='1')
    start, won = threading.Barrier(6), []

    def want(start=start, won=won):
      held = locks.Held(tmp_path)
      start.wait()
      if held.try_acquire('train.std') is None:
        won.append(held)

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(won) == 1
    won[0].release()
    assert not path.exists()


def test_the_heart_beats_and_a_stolen_lock_stops_the_run(tmp_path, monkeypatch, capfd):
  sent = threading.Event()
  monkeypatch.setattr(locks.os, 'kill', lambda pid, number: sent.set() if number else None)
  path = tmp_path / 'locks' / 'train.std.json'
  with locks.hold(tmp_path, ['train.std']):
    end = time.monotonic() + 20
    while json.loads(path.read_text())['beat'] < 2:
      assert time.monotonic() < end
      time.sleep(0.02)
    _left(tmp_path)
    assert sent.wait(20)
  assert 'was taken by another run' in capfd.readouterr().err
  assert json.loads(path.read_text())['token'] == 'other'  # not ours to remove
  assert signal.SIGTERM


def test_turns_wait_for_each_other(tmp_path):
  order = []
  with locks.exclusive(tmp_path, 'results'):

    def second():
      with locks.exclusive(tmp_path, 'results'):
        order.append('second')

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.3)
    order.append('first')
  thread.join(20)
  assert order == ['first', 'second']


def test_the_main_program_refuses_and_reports_need_no_lock(tmp_path, capfd):
  words = ['--config', QUICK, '--workdir', str(tmp_path / 'w')]
  with locks.hold(tmp_path / 'w', ['train.rand']):
    for stage in (['--stage', 'train'], ['--stage', 'all', '--arms', 'rand']):
      assert main.main([*words, *stage]) == 2
      (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith('robustmed: ')]
      assert "another run is training arm 'rand'" in line
    assert main.main([*words, '--stage', 'report']) == 2
    assert 'has no results yet' in capfd.readouterr().err
    assert main.main([*words, '--stage', 'describe']) == 0
  assert (tmp_path / 'w').exists()  # somebody else was at work there


def test_stale_locks_of_other_arms_are_removed_at_the_start(tmp_path):
  stale = _left(tmp_path, born='1').rename(tmp_path / 'locks' / 'evaluate.adv.json')
  other = _left(tmp_path, host='elsewhere')
  change = tmp_path / 'locks' / 'evaluate.adv.change'
  change.write_text('')
  os.utime(change, (0, 0))
  with locks.hold(tmp_path, ['train.rand']):
    locks.remove_stale(tmp_path)
    assert _files(tmp_path) == ['train.rand.json', 'train.std.json']
  assert not stale.exists() and other.exists()


@pytest.mark.parametrize(
  'content',
  [
    *('', '[1]', '[' * 100_000, '\xff', '{"pid": "x"}', '{"pid": 1e300}'),
    '{"pid": -5, "token": NaN}',
  ],
)
def test_nonsense_in_a_lock_is_taken_over(tmp_path, content):
  path = _left(tmp_path)
  record = json.loads(path.read_text())
  path.write_text(content)
  if content.startswith('{'):
    path.write_text(json.dumps({**record, **json.loads(content)}))
  with locks.hold(tmp_path, ['train.std']):
    assert json.loads(path.read_text())['pid'] == os.getpid()


@pytest.mark.parametrize('kind', ['folder', 'dangling link'])
def test_what_is_no_file_in_the_place_of_a_lock_is_one_line(tmp_path, kind):
  path = tmp_path / 'locks' / 'train.std.json'
  path.parent.mkdir()
  path.mkdir() if kind == 'folder' else path.symlink_to(tmp_path / 'nothing')
  with (
    pytest.raises(errors.UserError, match=r'lock .*train.std.json.*; remove it'),
    locks.hold(tmp_path, ['train.std']),
  ):
    pass

import os
import subprocess
import sys

import pytest

from robustmed import errors
from robustmed.process import files, leftovers
from robustmed.runs import workdir


@pytest.fixture(scope='module')
def ended():
  """The owner part of names that an ended process gave."""
  code = 'from robustmed.process import leftovers; print(leftovers.owner())'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  return done.stdout.strip()


def _aged(path, seconds):
  found = path.stat()
  os.utime(path, (found.st_atime, found.st_mtime - seconds))
  return path


def _file(path, seconds=3600):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('half')
  return _aged(path, seconds)


def test_what_an_ended_process_left_is_removed_and_nothing_else(tmp_path, ended):
  own, host = leftovers.owner(), '0123abcd'
  assert own.split('-')[0] == ended.split('-')[0] != host
  gone = [
    _file(tmp_path / f'.examples.{ended}.tmp.npz'),
    _file(tmp_path / 'in' / '.sha256' / f'.a.csv.{ended}.tmp.sha256'),
    _file(tmp_path / f'.old.{host}-1-1.tmp.csv', 2 * 24 * 3600),
  ]
  folder = tmp_path / f'.building-x.{ended}.tmp'
  _file(folder / 'deep' / 'part')
  gone.append(_aged(folder, 3600))
  kept = [
    _file(tmp_path / f'.examples.{own}.tmp.npz'),  # in use
    _file(tmp_path / f'.new.{host}-1-1.tmp.csv'),
    _file(tmp_path / 'rows.parquet'),
    _file(tmp_path / f'note.{ended}.txt'),
    _file(tmp_path / 'a' / 'b' / 'c' / 'd' / 'e' / 'f' / f'.g.{ended}.tmp.csv'),  # too deep
  ]
  assert sorted(leftovers.sweep(tmp_path, depth=3)) == sorted(gone)
  assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)
  assert leftovers.sweep(tmp_path / 'missing') == []


def test_what_earlier_versions_left_is_removed_when_it_is_a_day_old(tmp_path, monkeypatch):
  day = 24 * 3600 + 60
  names = ('results/.examples.4711.tmp.npz', '.building-a1b2c3_d', 'tmpa1b2c3_dtfds')
  left = [_file(tmp_path / name, day) for name in names]
  _file(tmp_path / 'new' / '.examples.4711.tmp.npz')
  _file(tmp_path / '.examples.npz', day)
  _file(tmp_path / 'tmpfds', day)
  workdir.claim(tmp_path, {'a': 1})
  assert [path.exists() for path in left] == [False, False, True]
  monkeypatch.setattr(leftovers.tempfile, 'tempdir', str(tmp_path))
  other = _file(tmp_path / '.of_another_program.4711.tmp.csv', day)
  assert leftovers.sweep_temporary() == left[2:] and other.exists()
  kept = ('.examples.npz', '.of_another_program.4711.tmp.csv', '.examples.4711.tmp.npz', 'tmpfds')
  found = {path.name for path in tmp_path.rglob('*') if path.is_file()}
  assert found - {'config.json', 'env.json'} == set(kept)


def test_links_are_not_followed(tmp_path, ended):
  outside = _file(tmp_path / 'outside' / f'.a.{ended}.tmp.npz')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'link').symlink_to(tmp_path / 'outside')
  assert leftovers.sweep(tmp_path / 'run', depth=3) == [] and outside.exists()


def test_a_number_that_another_process_has_now_is_of_an_ended_one(tmp_path):
  host, pid, _ = leftovers.owner().split('-')
  path = _file(tmp_path / f'.a.{host}-{pid}-1.tmp.csv')
  assert leftovers.sweep(tmp_path) == [path]


def test_the_next_run_in_a_workdir_removes_what_a_killed_one_left(tmp_path):
  code = f"""
import os, signal
from robustmed.process import files
with files.replacing({str(tmp_path / 'results' / 'examples.npz')!r}) as temporary:
  temporary.write_text('half')
  os.kill(os.getpid(), signal.SIGKILL)
"""
  subprocess.run([sys.executable, '-c', code], check=False)
  (left,) = (tmp_path / 'results').iterdir()
  assert left.name.startswith('.examples.') and left.suffix == '.npz'
  workdir.claim(tmp_path, {'a': 1})
  assert not left.exists()


def test_a_temporary_name_is_not_left_by_an_error(tmp_path):
  with pytest.raises(errors.UserError, match='cannot write'), files.replacing(tmp_path / 'a.csv'):
    raise OSError(28, 'full')
  assert list(tmp_path.iterdir()) == []

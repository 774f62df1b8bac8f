import contextlib
import json
import os
import subprocess

import numpy as np
import pytest

from robustmed import errors
from robustmed.process import checksums, files
from support import buckets


@pytest.fixture(autouse=True)
def keep():
  with contextlib.ExitStack() as stack:
    stack.enter_context(checksums.keep())
    yield lambda folder: stack.enter_context(checksums.keep(folder))


def _flip(path, place=-2):
  content = bytearray(path.read_bytes())
  content[place] ^= 1
  path.write_bytes(bytes(content))


@pytest.fixture(params=['disk', 'bucket'])
def root(request, tmp_path, monkeypatch):
  if request.param == 'disk':
    return tmp_path
  buckets.use(monkeypatch)
  return files.path_of('gs://bucket/x')


def test_a_file_of_results_that_was_changed_is_refused_with_its_name(keep, root):
  keep(root / 'results')
  path = root / 'results' / 'checks.json'
  files.write_json(path, {'a': 1})
  assert files.read_json(path) == {'a': 1}
  with files.replacing(path.with_name('x.npz')) as temporary:
    np.savez(temporary, a=np.arange(3))
  files.write_json(path, {'a': 2})
  assert files.read_json(path) == {'a': 2} and checksums.is_intact(path)
  _flip(path, 8)
  readers = (files.read_json, files.read_bytes, files.opened)
  for read in readers:
    with pytest.raises(errors.UserError, match=r'results/checks.json is damaged: its SHA-256'):
      read(path)
  assert not checksums.is_intact(path)
  _flip(path.with_name('x.npz'), 30)
  with pytest.raises(errors.UserError, match=r'x.npz is damaged'):
    files.read_arrays(path.with_name('x.npz'))
  # written again, it is what was written
  files.write_json(path, {'a': 3})
  assert files.read_json(path) == {'a': 3}


def test_only_what_a_run_keeps_has_sums(keep, tmp_path):
  keep(tmp_path / 'results')
  for name in ('locks/a.json', 'results/worst/a/b.csv', 'results/a.png', 'results/parts/a.csv'):
    files.write_text(tmp_path / name, 'x')
  assert [
    str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.sha256') if path.is_file()
  ] == ['results/parts/.sha256/a.csv.sha256']
  done = subprocess.run(
    ['sha256sum', '-c', '.sha256/a.csv.sha256'],
    cwd=tmp_path / 'results' / 'parts',
    check=False,
    capture_output=True,
  )
  assert done.returncode == 0, done


@pytest.mark.parametrize('moment', ['announced', 'replaced', 'new'])
def test_a_run_that_is_killed_while_it_replaces_a_file_leaves_a_valid_one(
  keep, tmp_path, monkeypatch, moment
):
  keep(tmp_path)
  path = tmp_path / 'a.json'
  if moment != 'new':
    files.write_json(path, 1)

  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  with monkeypatch.context() as patched, pytest.raises(Killed):
    if moment == 'replaced':
      patched.setattr(checksums, 'settle', kill)
    else:
      patched.setattr(files.os, 'replace', kill)
    files.write_json(path, 2)
  if moment == 'new':
    assert not path.exists() and not checksums.is_intact(path)
  else:
    assert files.read_json(path) == (2 if moment == 'replaced' else 1)
  files.write_json(path, 3)
  assert files.read_json(path) == 3
  (sums,) = (tmp_path / '.sha256').iterdir()
  assert len(sums.read_text().splitlines()) == 1


def test_what_has_no_sums_is_used_with_one_warning(keep, tmp_path, capsys):
  (tmp_path / 'a.json').write_text('1')
  (tmp_path / 'b.json').write_text('2')
  keep(tmp_path)
  assert files.read_json(tmp_path / 'a.json') == 1 and files.read_json(tmp_path / 'b.json') == 2
  checksums.check_list(tmp_path)
  (line,) = capsys.readouterr().err.splitlines()
  assert 'a.json was stored without check sums' in line


def test_a_folder_is_compared_file_by_file(root, capsys):
  folder = root / 'data'
  for name in ('a', 'in/b'):
    files.write_text(folder / name, name * 5)
  checksums.write_list(folder)
  checksums.check_list(folder)
  _flip(folder / 'in' / 'b')
  with pytest.raises(errors.UserError, match=r'in/b is damaged: its SHA-256 .*; build it again'):
    checksums.check_list(folder, help_text='build it again')
  _flip(folder / 'in' / 'b')
  checksums.check_list(folder)
  (folder / 'a').unlink()
  with pytest.raises(errors.UserError, match=r'data/a is missing'):
    checksums.check_list(folder)
  files.write_text(folder / 'a', 'a' * 5)
  checksums.check_list(folder)
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('damage', ['line lost', 'cut', 'flipped', 'empty'])
def test_a_list_that_is_damaged_is_refused(tmp_path, damage):
  for name in 'abc':
    (tmp_path / name).write_text(name)
  checksums.write_list(tmp_path)
  path = tmp_path / checksums.LIST
  lines = path.read_text().splitlines(keepends=True)
  done = subprocess.run(
    ['sha256sum', '-c', path.name], cwd=tmp_path, check=False, capture_output=True
  )
  assert done.returncode == 0, done
  damaged = {
    'line lost': ''.join(lines[:-1]),
    'cut': ''.join(lines)[:-10],
    'flipped': ''.join(lines).replace(lines[1][:4], 'zzzz'),
    'empty': '',
  }
  path.write_text(damaged[damage])
  with pytest.raises(errors.UserError, match='SHA256SUMS is damaged'):
    checksums.check_list(tmp_path)


def test_a_list_names_files_of_its_folder_alone(tmp_path):
  (tmp_path / 'secret').write_text('a')
  folder = tmp_path / 'data'
  files.write_text(folder / 'a', 'a')
  checksums.write_list(folder)
  whole = (folder / checksums.LIST).read_text()
  for name in ('../secret', str(tmp_path / 'secret')):
    (folder / checksums.LIST).write_text(whole.replace('  a\n', f'  {name}\n'))
    with pytest.raises(errors.UserError, match='secret is missing'):
      checksums.check_list(folder)


def test_sums_beside_a_file_that_cannot_be_read_are_a_mismatch(keep, tmp_path):
  keep(tmp_path)
  files.write_json(tmp_path / 'a.json', 1)
  (tmp_path / '.sha256' / 'a.json.sha256').write_bytes(b'\xff\x00')
  with pytest.raises(errors.UserError, match='damaged'):
    files.read_json(tmp_path / 'a.json')
  assert json.loads((tmp_path / 'a.json').read_text()) == 1


@pytest.mark.parametrize('name', ['a.npz', checksums.LIST])
def test_pipes_and_broken_links_in_a_folder_are_refused_before_anything_is_opened(tmp_path, name):
  for put in (
    os.mkfifo,
    lambda path: path.symlink_to('nowhere'),
    lambda path: path.symlink_to(name),
  ):
    for file in tmp_path.iterdir():
      file.unlink()
    (tmp_path / 'a.npz').write_bytes(b'abc')
    checksums.write_list(tmp_path)
    checksums.check_list(tmp_path)
    (tmp_path / name).unlink()
    put(tmp_path / name)
    with pytest.raises(errors.UserError, match=f'{name} is no regular file; copy it'):
      checksums.check_list(tmp_path, help_text='copy it')


def test_what_one_run_keeps_ends_with_it(tmp_path, capsys):
  for number in (1, 2):
    folder = tmp_path / str(number)
    files.write_text(folder / 'old.json', '1')
    with checksums.keep(folder):
      files.write_json(folder / 'a.json', number)
      assert files.read_json(folder / 'old.json') == 1  # with a warning for every run
    files.write_json(folder / 'after.json', number)
    assert [path.name for path in (folder / '.sha256').iterdir()] == ['a.json.sha256']
  first, second = capsys.readouterr().err.splitlines()
  assert '1/old.json was stored without' in first and '2/old.json was stored without' in second

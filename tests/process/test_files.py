import errno
import io
import os
import zipfile

import numpy as np
import pandas as pd
import pytest

from robustmed import errors
from robustmed.process import files


def test_a_failing_block_leaves_the_old_file(tmp_path):
  path = tmp_path / 'a.txt'
  files.write_text(path, 'old')
  with pytest.raises(RuntimeError), files.replacing(path) as temporary:
    temporary.write_text('half')
    raise RuntimeError
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


def test_json_round_trip_and_folders_are_made(tmp_path):
  path = tmp_path / 'deep' / 'er' / 'a.json'
  files.write_json(path, {'b': [1, 2.5], 'a': None})
  assert files.read_json(path) == {'a': None, 'b': [1, 2.5]}


def test_a_damaged_file_and_a_blocked_folder_are_user_errors(tmp_path):
  bad = tmp_path / 'bad.json'
  bad.write_text('{"a": ')
  with pytest.raises(errors.UserError, match=r'bad\.json is not valid JSON'):
    files.read_json(bad)
  with pytest.raises(errors.UserError, match='cannot write'):
    files.write_text(bad / 'inside', 'x')


def _archive(**arrays) -> bytes:
  stored = io.BytesIO()
  np.savez_compressed(stored, **arrays)
  return stored.getvalue()


def test_arrays_come_back(tmp_path):
  (tmp_path / 'a.npz').write_bytes(_archive(arm=np.array(['std']), x=np.arange(3)))
  found = files.read_arrays(tmp_path / 'a.npz')
  assert set(found) == {'arm', 'x'} and found['x'].tolist() == [0, 1, 2]


@pytest.mark.parametrize('kind', ['empty', 'text', 'cut', 'flipped', 'encrypted', 'npy', 'objects'])
def test_what_is_no_whole_archive_is_called_damaged(tmp_path, kind):
  whole, one, locked = _archive(x=np.arange(99)), io.BytesIO(), io.BytesIO()
  np.save(one, np.arange(3))
  with zipfile.ZipFile(locked, 'w') as archive:
    archive.writestr('x.npy', one.getvalue())
    archive.filelist[0].flag_bits |= 1
  middle = len(whole) // 3
  made = {
    'empty': b'',
    'text': b'no archive',
    'cut': whole[:-9],
    'flipped': whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
    'encrypted': locked.getvalue(),
    'npy': one.getvalue(),
    'objects': _archive(x=np.array([None, {}], object)),
  }
  path = tmp_path / 'bad.npz'
  path.write_bytes(made[kind])
  with pytest.raises(errors.UserError, match=r'bad\.npz is damaged \(.+\); delete it and run'):
    files.read_arrays(path)


class Silent:
  def __init__(self, error):
    self.error = error

  def __str__(self):
    return 'gs://b/a.npz'

  def read_bytes(self):
    raise self.error


@pytest.mark.parametrize('kept', [0, 100])
def test_a_table_that_cannot_be_read_is_told_of_in_one_line(tmp_path, kept):
  path = tmp_path / 'rows.parquet'
  pd.DataFrame({'a': [1.0, 2.0]}).to_parquet(path)
  assert files.read_with(path, pd.read_parquet)['a'].tolist() == [1.0, 2.0]
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(errors.UserError, match=r'cannot read .*rows\.parquet: .*; delete it and run'):
    files.read_with(path, pd.read_parquet)


@pytest.mark.parametrize(
  ('error', 'said'),
  [
    (PermissionError(errno.EACCES, 'Permission denied'), 'Permission denied'),
    (OSError('HTTP 503, retried 6 times'), 'HTTP 503, retried 6 times'),
    (TimeoutError(), 'TimeoutError'),
    (RuntimeError('Session is closed'), 'Session is closed'),  # of a driver
  ],
)
def test_a_store_that_does_not_answer_has_damaged_nothing(error, said):
  with pytest.raises(errors.UserError) as caught:
    files.read_arrays(Silent(error))
  line = str(caught.value)
  assert line.startswith(f'cannot read gs://b/a.npz: {said}; check that it is there')
  assert 'damaged' not in line and 'delete' not in line


def test_lookup_names_the_nearest_and_lists_the_known():
  table = {'pgd': 1, 'fgsm': 2}
  assert errors.lookup(table, 'pgd', kind='attack') == 1
  with pytest.raises(errors.UserError) as caught:
    errors.lookup(table, 'fgms', kind='attack')
  assert str(caught.value) == "unknown attack 'fgms'; did you mean 'fgsm'? (known: fgsm, pgd)"
  assert '\n' not in str(errors.UserError('two\nlines'))


def test_the_reason_of_the_system_is_found_where_libraries_hide_it():
  full = OSError(errno.ENOSPC, 'No space left on device')
  assert files.os_error(full) == errno.ENOSPC
  try:
    try:
      raise full
    except OSError:
      raise ValueError('writing failed')  # noqa: B904
  except ValueError as error:
    assert files.os_error(error) == errno.ENOSPC
  assert files.os_error(ValueError("Failed to write [os_error_code='122']")) == 122
  assert files.os_error(ValueError('No space')) is None and files.os_error(None) is None


@pytest.mark.parametrize('name', ['std', 'adv_0.05', 'a-b', '_x', 'A' * 100])
def test_names_of_parts_of_paths(name):
  assert files.name_of(name, what='an arm') == name


@pytest.mark.parametrize(
  'name', ['', '.', '..', '../x', 'a/b', '/x', '.x', 'a b', 'a\n', 'é', 'a\x00', 'A' * 101, 3, None]
)
def test_names_that_lead_elsewhere_are_refused(name):
  with pytest.raises(errors.UserError, match='an arm must be a name'):
    files.name_of(name, what='an arm')


def test_pipes_devices_and_broken_links_are_refused_before_they_are_opened(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'link').symlink_to('nowhere')
  (tmp_path / 'circle').symlink_to('circle')
  for path in (tmp_path / 'pipe', tmp_path / 'link', tmp_path / 'circle', tmp_path):
    with pytest.raises(errors.UserError, match='no regular file'):
      files.regular(path)
  with pytest.raises(errors.UserError, match='no such file'):
    files.regular(tmp_path / 'missing')
  with pytest.raises(errors.UserError, match='no regular file'):
    files.read_bytes(tmp_path / 'pipe')


def test_arrays_of_another_size_than_declared_are_refused(tmp_path):
  np.savez_compressed(tmp_path / 'a.npz', x=np.arange(6.0).reshape(2, 3).T, n=np.array(3))
  found = files.read_arrays(tmp_path / 'a.npz')
  np.testing.assert_array_equal(found['x'], [[0, 3], [1, 4], [2, 5]])
  assert found['n'] == 3 and found['x'].flags.writeable
  with zipfile.ZipFile(tmp_path / 'a.npz') as archive:
    content = archive.read('x.npy')
  with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as archive:
    archive.writestr('x.npy', content.replace(b'(3, 2)', b'(9, 9)'))
  with pytest.raises(errors.UserError, match='declares 648 bytes, but has 48'):
    files.read_arrays(tmp_path / 'b.npz')


@pytest.mark.parametrize(
  ('content', 'text'),
  [
    (b'{"a": 1, "a": 2}', "has 'a' twice"),
    (b'[' * 100_000, 'is not valid JSON'),
    (b'{"a": ' + b'9' * 6000 + b'}', 'is not valid JSON'),
    (b'\xff\xfe', 'is not valid JSON'),
  ],
)
def test_a_wrong_json_file_is_one_short_line(tmp_path, content, text):
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(errors.UserError, match=text) as refused:
    files.read_json(tmp_path / 'a.json')
  assert len(str(refused.value)) < 500


def test_words_of_any_length_are_shortened_in_a_message():
  shown = str(errors.UserError(f'a.csv: no number {"x" * 200_000}'))
  assert shown.startswith('a.csv: no number xxx') and len(shown) < 300
  shown = str(errors.UserError(f'a.csv: {"no number " * 100}; copy it again'))
  assert len(shown) <= 500 and shown.startswith('a.csv: no ') and shown.endswith('copy it again')


def test_an_archive_whose_list_is_lost_is_refused_and_an_empty_one_is_empty(tmp_path):
  np.savez(tmp_path / 'a.npz', x=np.ones(3))
  content = (tmp_path / 'a.npz').read_bytes()
  (tmp_path / 'a.npz').write_bytes(content[:-18] + bytes(18))
  with pytest.raises(errors.UserError, match='its list of arrays is lost'):
    files.read_arrays(tmp_path / 'a.npz')
  np.savez(tmp_path / 'b.npz')
  assert files.read_arrays(tmp_path / 'b.npz') == {}


def test_what_cannot_be_read_is_not_taken_for_what_is_missing(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'broken').symlink_to('nowhere')
  (tmp_path / 'file').write_text('a')
  (tmp_path / 'link').symlink_to('file')
  assert files.present(tmp_path / 'file') and files.present(tmp_path / 'link')
  assert not files.present(tmp_path / 'gone')
  for name in ('pipe', 'broken'):
    with pytest.raises(errors.UserError, match=f'{name}: is no regular file'):
      files.present(tmp_path / name)


def test_tables_of_long_fields_are_one_line(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('a;b;c,d\n1;2;3\n')
  assert files.csv_rows(path, marks=',;') == [['a', 'b', 'c,d'], ['1', '2', '3']]
  path.write_text('a,b\n' + 'x' * 200_000 + ',1\n')
  with pytest.raises(errors.UserError, match=r'a\.csv: is no table'):
    files.csv_rows(path)


def test_json_with_half_a_character_is_no_text(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('{"name": "\\ud83dorgan"}')
  with pytest.raises(errors.UserError, match=r'a\.json: cannot be read as JSON .*surrogates'):
    files.parsed_json(path)
  path.write_text('{"name": "\\ud83d\\ude00 \\u00e9"}')
  assert files.parsed_json(path) == {'name': '\U0001f600 é'}


def test_an_error_has_no_characters_that_steer_a_terminal():
  assert str(errors.UserError('a\x1b[31m\udcff\x00\nb é')) == r'a\x1b[31m\udcff\x00 b é'

import errno

import pytest

from robustmed import errors, files


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

"""A file of a data set that is a link out of its folder is read only where the user says so."""

import pathlib
import shutil

import pytest

from robustmed import data, errors
from robustmed.process import links
from support import raw_folders


@pytest.fixture(params=raw_folders.FILES)
def source(request, tmp_path):
  """(function that returns the fingerprint of a folder, the folder)."""
  given = raw_folders.FILES[request.param](tmp_path)
  root = pathlib.Path(given['dir'])
  config = {**raw_folders.CONFIGS[request.param], 'cache_dir': str(tmp_path / 'cache')}

  def mark(folder=root):
    found = data.fields_of({**config, 'dir': str(folder)})
    return data.SOURCES[request.param].fingerprint(found)

  return mark, root


def _files(root):
  return sorted(path for path in root.rglob('*') if path.is_file())


def test_every_file_that_is_a_link_out_of_the_folder_is_refused(source, tmp_path):
  mark, root = source
  mark()
  accepted = []
  for number, path in enumerate(_files(root)):
    outside = tmp_path / f'{number}{"".join(path.suffixes)}'
    path.rename(outside)
    path.symlink_to(outside)
    try:
      mark()
      accepted.append(path)
    except errors.UserError as error:
      assert 'link that leaves the folder' in str(error) and len(str(error)) <= 500
    with links.following(True):
      mark()
    path.unlink()
    outside.rename(path)
  assert not accepted


def test_folders_may_be_links_if_the_user_says_so_and_the_top_one_always(source, tmp_path):
  mark, root = source
  (tmp_path / 'data').symlink_to(root)
  mark(tmp_path / 'data')
  inner = sorted(path for path in root.iterdir() if path.is_dir())
  for path in inner:
    shutil.move(path, tmp_path / 'moved')
    path.symlink_to(tmp_path / 'moved')
    with pytest.raises(errors.UserError, match='link that leaves the folder'):
      mark()
    with links.following(True):
      mark()
    path.unlink()
    shutil.move(tmp_path / 'moved', path)


def test_a_folder_in_the_place_of_a_file_is_refused_not_left_out(source):
  mark, root = source
  accepted = []
  for path in _files(root):
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    try:
      mark()
      accepted.append(path)
    except errors.UserError:
      pass
    path.rmdir()
    path.write_bytes(content)
  assert not accepted

import pathlib

import pytest

from robustmed import errors
from robustmed.process import links


@pytest.fixture
def root(tmp_path):
  """A folder with links of all kinds, and a secret beside it."""
  root = tmp_path / 'root'
  (root / 'sub').mkdir(parents=True)
  (tmp_path / 'elsewhere').mkdir()
  for place in (tmp_path / 'secret', root / 'own', tmp_path / 'elsewhere' / 'a'):
    place.write_text('a')
  (root / 'out').symlink_to(tmp_path / 'secret')
  (root / 'far').symlink_to(tmp_path / 'elsewhere')
  (root / 'sub' / 'near').symlink_to('../own')
  (root / 'circle').symlink_to('circle')
  (root / 'device').symlink_to('/dev/zero')
  return root


def test_references_stay_inside_of_their_folder(root):
  assert links.inside(root, root / 'own') == root / 'own'
  assert links.inside(root, root / 'sub' / 'near').name == 'near'
  for followed in (False, True):
    for name, text in (
      ('../secret', r'leaves the folder .*root; it is listed in a\.txt; copy the file into it'),
      ('sub/../../secret', 'leaves the folder'),
      ('far/../../secret', 'leaves the folder'),
      ('/etc/passwd', 'leaves the folder'),
      ('/dev/zero', 'leaves the folder'),
      ('circle', 'no regular file'),
      ('circle/a', 'circle/a: is not there|circle/a: is reached by links without end'),
      ('device', 'no regular file'),
      ('a\0b', 'is no name of a file'),
      ('gone', r'gone: is not there; it is listed in a\.txt'),
      ('', 'no regular file'),
    ):
      with links.following(followed), pytest.raises(errors.UserError, match=text):
        links.inside(root, root / name, listed='a.txt')


@pytest.mark.parametrize('name', ['out', 'far/a'])
def test_links_lead_out_only_where_the_user_says_so(root, name):
  said = 'is reached by a link that leaves the folder .*add --follow-links if the links are yours'
  with pytest.raises(errors.UserError, match=said):
    links.inside(root, root / name)
  with links.following(True):
    assert links.inside(root, root / name) == root / name
    with links.following(False), pytest.raises(errors.UserError, match=said):
      links.present(root, root / name)
    assert links.present(root, root / name)
  with pytest.raises(errors.UserError, match=said):
    links.inside(root, root / name)


def test_the_folder_itself_may_be_a_link(root, tmp_path, monkeypatch):
  (tmp_path / 'data').symlink_to(root)
  for folder in (tmp_path / 'data', root / '..' / 'data'):
    assert links.present(folder, folder / 'own') and not links.present(folder, folder / 'gone')
  monkeypatch.chdir(tmp_path)
  assert links.inside(pathlib.Path('data'), pathlib.Path('data/own'))
  monkeypatch.chdir(root)
  assert links.inside(pathlib.Path(), pathlib.Path('own'))


def test_a_walk_follows_links_once_and_only_where_the_user_says_so(root, tmp_path):
  (root / 'far').unlink()
  (root / 'sub' / 'back').symlink_to('..')  # to another place of the folder
  names = lambda: sorted(path.relative_to(root).as_posix() for path in links.walk(root))
  own = ['circle', 'device', 'out', 'own', 'sub/near']
  assert names() == own
  (root / 'a.pt').mkdir()
  (root / 'a.pt' / 'own').write_text('a')
  assert names() == sorted([*own, 'a.pt/own'])
  assert 'a.pt' in [path.name for path in links.walk(root, endings=('.pt',))]
  (root / 'a.pt' / 'own').unlink()
  (root / 'far').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'elsewhere' / 'again').symlink_to('.')
  (root / '.hidden').symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(errors.UserError, match=r'far: is a link that leaves the folder .*--follow'):
    names()
  with links.following(True):
    assert names() == sorted([*own, 'far/a'])


def test_a_folder_that_cannot_be_listed_is_one_line_but_for_that_of_the_file_system(
  root, monkeypatch
):
  (root / 'far').unlink()
  listed = pathlib.Path.iterdir

  def iterdir(folder):
    if folder.name == closed:
      raise PermissionError(13, 'Permission denied')
    return listed(folder)

  monkeypatch.setattr(pathlib.Path, 'iterdir', iterdir)
  closed = 'sub'
  with pytest.raises(errors.UserError, match=r'sub: cannot be listed \(Permission denied\)'):
    links.walk(root)
  (root / 'sub').rename(root / 'lost+found')
  closed = 'lost+found'
  assert [path.name for path in links.walk(root)] == ['circle', 'device', 'out', 'own']

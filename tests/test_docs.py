"""The documents: links lead to files, pages of results are what their tables say."""

import importlib.util
import re
import shutil
import tomllib

import pandas as pd
import pytest

import robustmed
from support import runs

RESULTS = runs.ROOT / 'docs' / 'results'
# A page's source is read as part of the page that is made from it, whose links these are.
DOCUMENTS = [
  *(runs.ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
  *(path for path in sorted((runs.ROOT / 'docs').rglob('*.md')) if path.name != 'page.md'),
]
COUNTS = ['holds', 'fails', 'undecided', 'measured', 'not_run']


def _script(root):
  """docs/results/make.py of a checkout, or of a copy of its documents."""
  spec = importlib.util.spec_from_file_location('make', root / 'docs' / 'results' / 'make.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def make():
  return _script(runs.ROOT)


@pytest.fixture
def copied(tmp_path):
  shutil.copytree(RESULTS, tmp_path / 'docs' / 'results')
  shutil.copy(runs.ROOT / 'README.md', tmp_path)
  return tmp_path


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(runs.ROOT)))
def test_links_lead_to_files(path):
  for link in re.findall(r'\]\(([^)\s]+)\)', path.read_text('utf-8')):
    if not re.match(r'\w+:|#', link):
      target = path.parent / link.partition('#')[0]
      assert target.exists(), link
      assert target.resolve().is_relative_to(runs.ROOT), link


def test_pages_are_what_the_script_makes_of_the_tables(make, capsys):
  assert make.main(['--check']) == 0, capsys.readouterr().out


def test_a_changed_number_changes_its_page_and_the_readme(copied, capsys):
  path = copied / 'docs' / 'results' / 'runs.csv'
  path.write_text(path.read_text('utf-8').replace('6,2,0,4,0,0', '6,1,1,4,0,0'), 'utf-8')
  make = _script(copied)
  assert make.main(['--check']) == 1
  assert capsys.readouterr().out == 'docs/results/two_moons.md: differs\nREADME.md: differs\n'
  assert '| 6 | 2 | 0 | 4 | 0 | 0 |' in (copied / 'README.md').read_text('utf-8')
  assert make.main([]) == 0 and make.main(['--check']) == 0
  assert '| 6 | 1 | 1 | 4 | 0 | 0 |' in (copied / 'README.md').read_text('utf-8')


@pytest.mark.parametrize(
  'words',
  ['{{table gone}}', '{{demo[amat, 7]}}', '{{demo[gone, 0]}}', '{{gone}}', '{{gone[a, b]}}'],
)
def test_a_number_that_is_not_there_is_named(copied, words):
  page = copied / 'docs' / 'results' / 'amat_ceph' / 'page.md'
  page.write_text(page.read_text('utf-8') + words, 'utf-8')
  with pytest.raises(SystemExit, match=r'amat_ceph.*(gone|amat, 7)'):
    _script(copied).main([])


def test_a_file_without_markers_is_named(copied):
  readme = copied / 'README.md'
  readme.write_text(readme.read_text('utf-8').replace('<!-- /verdicts -->', ''), 'utf-8')
  with pytest.raises(SystemExit, match=r'README\.md.*verdicts'):
    _script(copied).main(['--check'])


def test_tables_keep_their_digits_and_join_pairs_of_columns(make, tmp_path):
  path = tmp_path / 'table.csv'
  path.write_text('arm,dice,dice ±,cpm low,cpm high,high\na,0.50,0.010,1,2.0,\n', 'utf-8')
  assert make.markdown(make.read(path)).splitlines() == [
    '| arm | dice | cpm | high |',
    '| --- | --- | --- | --- |',
    '| a | 0.50 ± 0.010 | 1 to 2.0 |  |',
  ]


def test_counts_that_are_not_known_are_not_made_up(make):
  table = pd.DataFrame(
    {'claims': ['', '3', ''], 'holds': ['', '1', '2'], 'fails': ['', '0', ''], 'undecided': ''}
  ).assign(measured=['', '0', ''], not_run=['', '2', ''])
  found = make.counted(table)
  assert found.to_numpy().tolist() == [
    ['3', '1', '0', 'not counted', '0', '2'],
    ['not counted', '2', 'not counted', 'not counted', 'not counted', 'not counted'],
  ]


def test_verdicts_add_up_to_the_claims(make):
  table = make.read(RESULTS / 'runs.csv')
  whole = table[(table[['claims', *COUNTS]] != '').all(axis=1)]
  assert len(whole)
  assert (whole[COUNTS].astype(int).sum(axis=1) == whole['claims'].astype(int)).all()


def test_every_table_and_picture_is_shown(make):
  for name in make.titles():
    source = (RESULTS / name / 'page.md').read_text('utf-8')
    for path in (RESULTS / name).glob('*.csv'):
      assert f'{{{{table {path.stem}}}}}' in source, path
  folders = {path.parent.name for path in RESULTS.glob('*/page.md')}
  assert folders == set(make.titles())
  pages = ''.join(path.read_text('utf-8') for path in RESULTS.glob('*.md'))
  for path in (RESULTS / 'pictures').iterdir():
    assert f'(pictures/{path.name})' in pages, path


def test_configs_of_results_exist(make):
  commands = make.read(RESULTS / 'runs.csv')['command']
  names = re.findall(r'configs/\w+\.py', ' '.join(commands))
  assert len(names) > 10
  assert all((runs.ROOT / name).is_file() for name in names)


def test_paths_that_the_guide_for_contributors_names_exist():
  text = (runs.ROOT / 'CONTRIBUTING.md').read_text('utf-8')
  found = re.findall(r'`((?:robustmed|tests|configs|launch|docs)/[\w/]*(?:\.\w+)?)`', text)
  assert len(found) > 20
  for name in found:
    if not re.search('[A-Z]{4}', name):
      assert (runs.ROOT / name).exists(), name


def test_the_site_has_every_page_once():
  text = (runs.ROOT / 'mkdocs.yml').read_text('utf-8')
  named = re.findall(r'(?:: |- )([\w/]+\.md)$', text[text.index('\nnav:') :], re.M)
  assert len(named) == len(set(named))
  made = {'index.md', 'contributing.md', 'security.md', 'changelog.md'}  # from files of the root
  made |= {f'notebooks/{path.stem}.md' for path in (runs.ROOT / 'notebooks').glob('*.ipynb')}
  docs = runs.ROOT / 'docs'
  here = {
    path.relative_to(docs).as_posix() for path in docs.rglob('*.md') if path.name != 'page.md'
  }
  assert set(named) == here | made


def test_modules_of_the_reference_exist():
  pages = sorted((runs.ROOT / 'docs' / 'api').glob('*.md'))
  names = [name for path in pages for name in re.findall(r'^::: (\S+)$', path.read_text(), re.M)]
  assert len(names) > 30
  for name in names:
    file = runs.ROOT / name.replace('.', '/')
    assert file.with_suffix('.py').is_file() or (file / '__init__.py').is_file(), name


def test_the_citation_is_a_citation_file_of_this_version():
  yaml = pytest.importorskip('yaml', reason='PyYAML is no requirement of robustmed')
  found = yaml.safe_load((runs.ROOT / 'CITATION.cff').read_text('utf-8'))
  project = tomllib.loads((runs.ROOT / 'pyproject.toml').read_text('utf-8'))['project']
  assert found['cff-version'] == '1.2.0' and found['type'] == 'software' and found['message']
  assert found['title'] == project['name'] and found['license'] == project['license']
  assert found['version'] == project['version'] == robustmed.__version__
  assert found['abstract'] == project['description']
  assert found['authors'] and all(author['name'] for author in found['authors'])

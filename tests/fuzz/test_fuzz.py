"""A reader refuses a damaged file in one line or gives the values of the whole one."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

from fuzz import damages, harness, known, readers

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(*words):
  return subprocess.run(
    [sys.executable, '-m', 'tests.fuzz', *words],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_damaged_files_are_refused_in_one_line_or_read_as_the_whole_ones():
  done = _run('--count', '600', '--seed', '0')
  assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
  assert done.stdout.startswith('600 inputs') or '\n600 inputs' in done.stdout, done.stdout


# Workers are forked, which a process that has run JAX must not do, as those of the tests have.
JUDGED = """
import json, os, sys
from fuzz import harness, readers

harness.SECONDS, silent = float(sys.argv[1]), json.loads(sys.argv[2])

def make(folder):
  (folder / 'a').write_bytes(b'1 2 3')

{read}

more = dict(silent=silent) if silent else dict()
groups = ('content', 'place')
table = dict(one=readers.Reader('one', make, 'a', read, (), groups=groups, **more))
cases = [harness.Case('one', name, 0) for name in ('flip', 'extend', 'empty', 'missing')]
print(json.dumps(dict((one.case.damage, one.outcome) for one in harness.run(table, cases))))
"""


def _judged(read, *, seconds=5.0, silent=()):
  """The outcomes of one reader of the text '1 2 3' under some damages."""
  return _python(JUDGED.format(read=read), str(seconds), json.dumps(dict(silent)))


def _python(code, *words):
  """What some code prints as JSON."""
  done = subprocess.run(
    [sys.executable, '-c', code, *words],
    env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


def test_changed_values_are_silent_unless_the_table_permits_them():
  read = "def read(folder):\n  return (folder / 'a').read_bytes()[:5]"
  found = _judged(read)
  assert found == {'flip': 'silent', 'extend': 'equal', 'empty': 'silent', 'missing': 'traceback'}
  assert _judged(read, silent={'flip': 'no check sum'})['flip'] == 'permitted'


WILD = """
def read(folder):
  content = (folder / 'a').read_bytes() if (folder / 'a').is_file() else b'missing'
  if not content:
    os._exit(3)
  if content == b'missing':
    os.write(2, b'a library says something')
  elif len(content) > 5:
    while True:
      pass
  return b'1 2 3'
"""


def test_a_reader_that_hangs_dies_or_prints_fails_and_the_next_case_is_read():
  found = _judged(WILD, seconds=0.5)
  assert found == {'flip': 'equal', 'extend': 'hang', 'empty': 'died', 'missing': 'noise'}


# A reader that does what its file says.
PLANTED = """
import json, pathlib, tempfile
from fuzz import harness, readers

def make(folder):
  (folder / 'a').write_text('nothing')
  (folder / 'b.txt').write_text('b')

def read(folder):
  what = (folder / 'a').read_text()
  if what == 'above':
    (folder.parent / 'x').write_text('')
  elif what == 'far above':
    (folder.parent.parent / 'x').write_text('')
  elif what == 'temporary':
    tempfile.mkdtemp()
  elif what == 'home':
    (pathlib.Path.home() / 'x').write_text('')
  elif what == 'here':
    pathlib.Path('x').write_text('')
  elif what == 'change':
    (folder.parent / 'outside' / 'canary.txt').write_text('x')
  elif what == 'refer':
    (folder / '../outside/b.txt').read_text()
  else:
    (folder / 'own').write_text('x')

words = ['above', 'far above', 'temporary', 'home', 'here', 'change', 'refer', 'own']
special = {word: lambda content, rng, word=word: word.encode() for word in words}
one = readers.Reader('one', make, 'a', read, (), groups=('place',), special=special)
followed = one._replace(name='followed', confined=True)
table = dict(one=one, followed=followed)
cases = [harness.Case('one', word, 0) for word in words]
cases += [harness.Case(name, 'link_copy', 0) for name in table]
print(json.dumps([(*one.case[:2], one.outcome) for one in harness.run(table, cases)]))
"""


def test_a_reader_that_writes_or_is_led_outside_of_its_folder_is_found(tmp_path):
  if os.statvfs(tmp_path).f_flag & os.ST_NOATIME:
    pytest.skip('this file system does not note when a file is read')
  done = _python(PLANTED)
  assert done == [
    *(['one', word, 'outside'] for word in ('above', 'far above', 'temporary', 'home', 'here')),
    *(['one', word, 'outside'] for word in ('change', 'refer')),
    ['one', 'own', 'equal'],
    ['one', 'link_copy', 'equal'],
    ['followed', 'link_copy', 'outside'],
  ]


def test_the_same_seed_makes_the_same_cases_and_bytes(tmp_path):
  table = readers.table()
  cases = harness.cases(table, count=300, seed=3)
  assert cases == harness.cases(table, count=300, seed=3)
  assert cases != harness.cases(table, count=300, seed=4)
  # not a file that holds the time, as those of gzip and MATLAB do
  flips = [case for case in cases if case.damage == 'flips']
  case = next(case for case in flips if table[case.reader].target.endswith(('.json', '.txt')))
  reader, contents = table[case.reader], []
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    reader.make(tmp_path / name)
    harness.damaged(reader, case, tmp_path / name)
    contents.append((tmp_path / name / reader.target).read_bytes())
  assert contents[0] == contents[1]


def test_tables_name_damages_that_exist():
  table = readers.table()
  for reader in table.values():
    assert set(reader.silent) <= set(reader.damages()), reader.name
  for reader, damage in known.KNOWN:
    assert damage in table[reader].damages(), (reader, damage)
  assert {'content', 'text', 'json', 'place'} == set(damages.GROUPS)


_OPENERS = (
  *('open', 'read_text', 'read_bytes', 'read_csv', 'read_parquet', 'read_json', 'read_arrays'),
  *('read_with', 'parsed_json', 'csv_rows', 'archived_arrays', 'outline', 'restore', 'loadmat'),
  *('ZipFile', 'ReadImage', 'np.load', 'json.load', 'json.loads', 'nib.load', 'xml.read'),
)


def _opens(tree):
  """Whether code calls anything that opens a file or makes values of what is in one."""
  calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
  names = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute | ast.Name)}
  return any(name == one or name.endswith(f'.{one}') for name in names for one in _OPENERS)


def test_every_module_that_opens_files_has_a_reader_in_the_table():
  root = ROOT / 'robustmed'
  opening = {
    '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')
    for path in root.rglob('*.py')
    if _opens(ast.parse(path.read_text()))
  }
  covered = {name.removeprefix('robustmed.') for r in readers.table().values() for name in r.covers}
  assert sorted(opening - covered - set(known.OTHERS)) == []
  assert sorted(set(known.OTHERS) & covered) == [], 'these have a reader'
  assert sorted(set(known.OTHERS) - opening) == [], 'these open nothing'


def test_every_data_source_of_files_has_a_reader_in_the_table():
  from robustmed import data

  named = {name.split(':')[1] for name in readers.table() if name.startswith('source:')}
  assert {name for name in data.SOURCES if not name.startswith('phantom_')} == named

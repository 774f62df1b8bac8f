"""Imports go downwards only (the order of `FLOW`), and papers stay by themselves."""

import ast
import pathlib

import pytest

from robustmed import papers

PACKAGE = pathlib.Path(__file__).parents[1] / 'robustmed'
BELOW_ALL = {'errors', 'platforms', 'types', 'process', 'ops', 'metrics'}
FLOW = [
  'data',
  'onnx',
  'models',
  'tasks',
  'networks',
  'attacks',
  'defenses',
  'training',
  'generators',
  'evaluation',
  'report',
  'runs',
  'benchmark',
  'own_data',
  'audit',
  'papers',
]
# Rooms that may import less than what is below them.
ONLY = {
  'attacks': {'errors', 'types', 'ops'},
  'ops': {'errors', 'platforms', 'types', 'ops'},
  'onnx': {'errors', 'types', 'process', 'ops'},
  'process': {'errors', 'platforms', 'types'},
  'metrics': {'errors', 'types', 'process', 'ops'},
}
PAPERS = {path.name for path in (PACKAGE / 'papers').iterdir() if (path / '__init__.py').is_file()}
# The quickstart is no paper; it may use the disk pieces of spine, and what is claimed of them.
ALLOWED = {('quickstart.py', 'spine', 'claims'), ('quickstart.py', 'spine', 'disks')}
MOST_MODULES = 16


def _imports(path):
  """(dotted paths below robustmed that a file imports, every other top-level module)."""
  own, other = set(), set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split('.')
      if parts[0] == 'robustmed' and len(parts) > 1:
        own.add(tuple(parts[1:]))
      else:
        other.add(parts[0])
  return own, other


def _files(room):
  return sorted((PACKAGE / room).rglob('*.py'))


@pytest.mark.parametrize('room', [*FLOW, 'ops', 'metrics', 'process'])
def test_no_import_against_the_flow(room):
  allowed = ONLY.get(room, BELOW_ALL | set(FLOW[: FLOW.index(room)] if room in FLOW else []))
  for path in _files(room):
    own = {name[0] for name in _imports(path)[0]}
    assert own - {room} <= allowed, f'{path} imports {sorted(own - {room} - allowed)}'


def test_every_folder_is_a_known_room():
  folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != '_'}
  assert folders == {*FLOW, 'ops', 'metrics', 'process'}
  modules = {path.name for path in PACKAGE.glob('*.py')}
  modules_of_root = ('main', 'doctor', 'types', 'errors', 'platforms', '__init__')
  assert modules == {f'{name}.py' for name in modules_of_root}


def test_no_paper_imports_another():
  for path in _files('papers'):
    here = path.relative_to(PACKAGE / 'papers').parts[0]
    for name in _imports(path)[0]:
      if name[0] == 'papers' and len(name) > 1 and name[1] != here:
        assert (here, *name[1:]) in ALLOWED, f'{path} imports {".".join(name)}'


def test_only_main_imports_papers():
  for path in PACKAGE.rglob('*.py'):
    if path != PACKAGE / 'main.py' and PACKAGE / 'papers' not in path.parents:
      assert 'papers' not in {name[0] for name in _imports(path)[0]}, path


def test_no_room_names_a_paper_in_code():
  """As a word of its own; 'brats' and 'nodules' are data and tasks too, 'amat' a defense."""
  meant = {
    ('data/__init__.py', 'brats'),
    ('tasks/__init__.py', 'brats'),
    ('tasks/__init__.py', 'nodules'),
    ('defenses/__init__.py', 'amat'),
    ('audit/harden.py', 'amat'),
    ('own_data/choices.py', 'amat'),
    ('own_data/report.py', 'amat'),
    ('data/chest/phantom.py', 'nodules'),
    ('metrics/froc/__init__.py', 'nodules'),
    ('benchmark/workloads.py', 'spine'),
  }
  found = set()
  for path in PACKAGE.rglob('*.py'):
    place = path.relative_to(PACKAGE)
    if place.parts[0] == 'papers':
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Constant) and node.value in PAPERS:
        found.add((place.as_posix(), node.value))
  assert found <= meant, sorted(found - meant)


def test_every_experiment_introduces_itself():
  for room in (
    *(PACKAGE / 'papers' / name for name in PAPERS),
    PACKAGE / 'own_data',
    PACKAGE / 'audit',
  ):
    lines = (room / '__init__.py').read_text().splitlines()
    assert lines and lines[0].startswith('"""') and len(lines) <= 25, room
    said = '\n'.join(lines)
    for path in room.glob('[!_]*.py'):
      assert path.name in said, f'{room.name}/__init__.py does not say what {path.name} does'
  assert set(papers.EXPERIMENTS) >= PAPERS


def test_the_report_never_imports_jax():
  for path in _files('report'):
    assert not _imports(path)[1] & {'jax', 'flax', 'optax', 'orbax'}, path


def test_only_parallel_knows_devices_and_hosts():
  words = ('pmap', 'psum', 'pmean', 'all_gather', 'axis_name', 'process_index', 'device_count(')
  for path in PACKAGE.rglob('*.py'):
    if path.name == 'parallel.py':
      continue
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    code = '\n'.join(map(ast.unparse, calls))
    for name in (
      'psum',
      'pmean',
      'all_gather',
      'device_count',
      'local_device_count',
      'process_index',
    ):
      code = code.replace(f'parallel.{name}(', '').replace(f'parallel.{name}_text(', '')
    assert not [word for word in words if word in code], path


def test_folders_and_modules_stay_small():
  folders = [PACKAGE, *(path for path in PACKAGE.rglob('*') if path.is_dir())]
  full = {str(p): n for p in folders if (n := len(list(p.glob('*.py')))) > MOST_MODULES}
  assert not full
  long = {str(p): n for p in PACKAGE.rglob('*.py') if (n := len(p.read_text().splitlines())) > 350}
  assert not long

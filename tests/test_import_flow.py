"""The way data flows through the packages has no arrow back (the order of LAYERS)."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'robustmed'
EVERYWHERE = {'errors', 'types', 'files', 'console', 'parallel', 'tool', 'ops', 'metrics'}
LAYERS = [
  'data',
  'models',
  'tasks',
  'attacks',
  'defenses',
  'training',
  'generators',
  'evaluation',
  'report',
  'experiments',
]
EXTRA = {'experiments': {'commandline'}}  # the type of a parsed command
ONLY = {'attacks': {'errors', 'types', 'ops'}, 'ops': {'errors', 'types', 'ops'}}


def _imports(path):
  """Sub-packages of robustmed that a file imports, and every top-level module."""
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
      (own.add(parts[1]) if parts[0] == 'robustmed' and len(parts) > 1 else other.add(parts[0]))
  return own, other


def _files(layer):
  return sorted((PACKAGE / layer).rglob('*.py'))


@pytest.mark.parametrize('layer', [*LAYERS, 'ops', 'metrics'])
def test_no_arrow_against_the_flow(layer):
  allowed = ONLY.get(
    layer, EVERYWHERE | set(LAYERS[: LAYERS.index(layer)] if layer in LAYERS else [])
  )
  allowed = allowed | EXTRA.get(layer, set())
  for path in _files(layer):
    own, _ = _imports(path)
    assert own - {layer} <= allowed, f'{path} imports {sorted(own - {layer} - allowed)}'


def test_every_folder_is_a_known_layer():
  folders = {
    path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != '__pycache__'
  }
  assert folders == {*LAYERS, 'ops', 'metrics'}


def test_the_report_never_imports_jax():
  for path in _files('report'):
    assert not _imports(path)[1] & {'jax', 'flax', 'optax', 'orbax'}, path


def test_only_parallel_knows_devices_and_hosts():
  words = ('pmap', 'psum', 'pmean', 'all_gather', 'axis_name', 'process_index', 'device_count(')
  for path in PACKAGE.rglob('*.py'):
    if path.name == 'parallel.py':
      continue
    code = '\n'.join(
      ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
    )
    code = code.replace('parallel.device_count(', '').replace('parallel.local_device_count(', '')
    assert not [word for word in words if word in code], path


def test_no_module_is_over_350_lines():
  long = {str(p): n for p in PACKAGE.rglob('*.py') if (n := len(p.read_text().splitlines())) > 350}
  assert not long

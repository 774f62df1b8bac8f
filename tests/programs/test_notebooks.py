"""Notebooks are stored without outputs and run from top to bottom."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

from support import runs

FOLDER = pathlib.Path(__file__).parents[2] / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))


def _cells(path):
  return [cell for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == 'code']


def test_there_are_some():
  assert {'audit', 'spine'} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
  for cell in _cells(path):
    assert cell['outputs'] == [] and cell['execution_count'] is None


def _output(name, folder, *, seconds):
  """The standard output of a notebook's cells, run as a script in `folder`."""
  cells = [''.join(cell['source']) for cell in _cells(FOLDER / f'{name}.ipynb')]
  script = folder / f'{name}.py'
  script.write_text('\n\n'.join(cells))
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, str(script)],
    env=runs.environment(ROBUSTMED_CACHE=str(folder / 'cache'), XLA_FLAGS=''),
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert time.monotonic() - started < seconds
  return done.stdout


@pytest.mark.long
def test_the_spine_notebook_runs_and_fools_the_network(tmp_path):
  values = {}
  # 60 s on two quiet cores
  for line in _output('spine', tmp_path, seconds=150).splitlines():
    name, found, rest = line.partition(': ')
    if found and rest.endswith(' attacked'):
      values[name] = [float(word) for word in rest.split() if word[0].isdigit()]
  clean, attacked = values['DICE_reg']
  assert clean > 0.85 and attacked < clean - 0.08
  assert values['Error_reg'][1] > 1.5 * values['Error_reg'][0]


@pytest.mark.long
def test_the_audit_notebook_runs_and_tells_two_networks_apart(tmp_path):
  found = _output('audit', tmp_path, seconds=90)  # 25 s on two quiet cores
  rows = {
    tuple(words[:2]): [float(word) for word in words[2:] if word != 'NaN']
    for line in found.splitlines()
    if len(words := line.split()) == 6 and words[1] in ('none', 'noise', 'pgd')
  }
  last = lambda *words: rows[words][-1]
  assert last('mean', 'noise') > 0.9 > 0.85 > last('pixel', 'noise') > 0.5
  assert max(last('mean', 'pgd'), last('pixel', 'pgd')) < 0.3
  assert 'smallest breaking eps (median)' in found and '# Robustness' in found
  assert 'mean.onnx: input.normalise = scale:255 (guess)' in found

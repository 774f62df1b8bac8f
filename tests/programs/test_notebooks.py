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


def test_there_is_one():
  assert FOLDER / 'spine.ipynb' in NOTEBOOKS


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
  for cell in _cells(path):
    assert cell['outputs'] == [] and cell['execution_count'] is None


@pytest.mark.long
def test_the_spine_notebook_runs_and_fools_the_network(tmp_path):
  cells = [''.join(cell['source']) for cell in _cells(FOLDER / 'spine.ipynb')]
  script = tmp_path / 'spine.py'
  script.write_text('\n\n'.join(cells))
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, str(script)],
    env=runs.environment(ROBUSTMED_CACHE=str(tmp_path / 'cache'), XLA_FLAGS=''),
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert time.monotonic() - started < 150  # 60 s on two quiet cores
  values = {}
  for line in done.stdout.splitlines():
    name, found, rest = line.partition(': ')
    if found and rest.endswith(' attacked'):
      values[name] = [float(word) for word in rest.split() if word[0].isdigit()]
  clean, attacked = values['DICE_reg']
  assert clean > 0.85 and attacked < clean - 0.08
  assert values['Error_reg'][1] > 1.5 * values['Error_reg'][0]

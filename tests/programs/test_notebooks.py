"""Notebooks are stored without outputs and run from top to bottom."""

import json
import pathlib
import re
import resource
import subprocess
import sys

import pytest

from support import runs

FOLDER = pathlib.Path(__file__).parents[2] / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))


def _cells(path):
  return [cell for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == 'code']


def test_there_are_some():
  assert {'amat', 'attack', 'audit', 'rows', 'spine'} == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
  for cell in _cells(path):
    assert cell['outputs'] == [] and cell['execution_count'] is None


def _processor_seconds():
  """What the processes that have ended took; other programs on these cores do not count."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def _output(name, folder, *, seconds):
  """The standard output of a notebook's cells, run as a script in `folder`.

  It takes less than so many seconds of processor time, which is more than time on quiet cores.
  """
  cells = [''.join(cell['source']) for cell in _cells(FOLDER / f'{name}.ipynb')]
  script = folder / f'{name}.py'
  script.write_text('\n\n'.join(cells))
  before = _processor_seconds()
  done = subprocess.run(
    [sys.executable, str(script)],
    env=runs.environment(ROBUSTMED_CACHE=str(folder / 'cache'), XLA_FLAGS=''),
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert _processor_seconds() - before < seconds
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


def _table(text):
  """First words of lines of a printed table -> the numbers after them."""
  found = {}
  for line in text.splitlines():
    words = re.fullmatch(r'\s*([a-z][a-z ]*?)((?: +[\d.]+| +NaN)+)', line)
    if words:
      found[words[1]] = [float(word) for word in words[2].split() if word != 'NaN']
  return found


@pytest.mark.long
def test_the_attack_notebook_runs_and_breaks_a_network_of_the_users(tmp_path):
  text = _output('attack', tmp_path, seconds=90)  # 20 s on two quiet cores
  found = _table(text)
  assert found['none'][0] > 0.95 and found['noise'][-1] > 0.95
  assert max(found['pgd'][-1], found['apgd'][-1]) < 0.6
  median, left = re.search(r'median smallest eps: ([\d.]+), not broken: (\d+) of 24', text).groups()
  assert 0.04 < float(median) < 0.1 and int(left) < 6
  assert 'no gradient' not in text


@pytest.mark.long
def test_the_amat_notebook_runs_and_margins_grow(tmp_path):
  text = _output('amat', tmp_path, seconds=90)  # 45 s on two quiet cores
  found = _table(text)
  clean = {name: values[0] for name, values in found.items()}
  assert min(clean['std'], clean['amat'], clean['one level']) > 0.9
  assert min(found['amat'][1], found['one level'][1]) > found['std'][1] + 0.05  # L2 of 1
  quartiles = [float(word) for word in re.search(r'quartiles: \[(.*)\]', text)[1].split()]
  assert quartiles[0] >= 0.25 and quartiles[2] > 0.25 and quartiles[4] > 0.5


@pytest.mark.long
def test_the_rows_notebook_runs_and_agrees_with_the_summary(tmp_path):
  text = _output('rows', tmp_path, seconds=90)  # 35 s on two quiet cores
  assert '8 patients' in text and 'adv minus std:' in text
  assert float(re.search(r'difference from summary.csv: (\S+)', text)[1]) < 1e-5
  assert "'pass':" in text and 'quickstart:smoke' in text

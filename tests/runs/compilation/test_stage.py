"""Programs of whole experiments, from shapes alone."""

import json
import os

import jax
import numpy as np
import pytest

from robustmed import main, papers
from robustmed.process import parallel
from robustmed.runs import commandline
from robustmed.runs.compilation import __main__ as tables
from robustmed.runs.compilation import programs, stage
from support import runs

FILES = sorted((runs.ROOT / 'configs').glob('[!_]*.py'))


def _listed(config, *arms):
  exp = papers.find(config.experiment).build(config)
  found = programs.of_run(exp, config, arms, devices=jax.local_devices(), hosts=4)
  return exp, {f'{one.kind} {one.name}': one for one in found}


def test_programs_of_a_paper_are_listed_without_data_or_weights(monkeypatch):
  config = commandline.load_config('configs/amat_hippocampus.py:paper')
  commandline.list_settings(config)
  monkeypatch.setattr(parallel, 'device_count', lambda: 16)
  exp, found = _listed(config)
  std, pgd = found['train std'], found['attack pgd']
  assert (std.batch, std.padded, std.devices, std.idle, std.each) == (366, 368, 16, 0, 23)
  assert std.calls == 5000 and std.kind == 'train'
  assert 'augment std' in found and 'train amat' in found
  # once for each of 3 batches, 6 networks and every level
  assert pgd.calls == 3 * 6 * sum(eps > 0 for eps in exp.grid.probes['pgd'].levels)
  attacks = sum(one.calls for name, one in found.items() if name.startswith('attack'))
  assert found['score std'].calls == attacks + 3 * 6


def test_what_is_lowered_is_what_a_run_calls():
  config = commandline.load_config('configs/two_moons.py:smoke')
  commandline.list_settings(config)
  exp, found = _listed(config)
  lowered = found['attack pgd'].lower()
  assert 'num_partitions = 2' in lowered.as_text()
  source = exp.data.load()
  given = programs.Given(exp, config)
  example = source.test[0]
  for name, one in given.shapes.test.items():
    assert np.shape(example[name]) == one.shape
  with parallel.lowering(jax.local_devices()):
    batch = programs.abstract_batch(given.shapes.test, 6)
  assert batch['image'].shape == (6, *np.shape(example['image'])) and batch['mask'].dtype == bool


def test_programs_are_lowered_for_other_numbers_of_examples():
  config = commandline.load_config('configs/two_moons.py:smoke')
  commandline.list_settings(config)
  _, found = _listed(config)
  for name in ('attack pgd', 'train a_full'):
    program = found[name]
    (same,) = {one.as_text() for one in (program.lower(), program.at(program.each))}
    assert program.at(3 * program.each).as_text() != same


@pytest.mark.slow
def test_the_stage_prints_a_table_and_compiles_nothing_twice(tmp_path, capsys):
  words = ['--config', 'configs/two_moons.py:smoke', '--stage', 'compile', '--target', 'cpu-2']
  words += ['--programs', 'score,attack', '--workdir', str(tmp_path)]
  assert main.main(words) == 0
  first = capsys.readouterr()
  assert first.err.count('compiled ') == 4 and 'attack pgd' in first.out
  assert main.main(words) == 0
  again = capsys.readouterr()
  assert 'compiled ' not in again.err and again.out == first.out
  told = json.loads((tmp_path / 'compile' / 'two_moons.smoke.cpu-2.json').read_text())
  assert told['target'] == 'cpu-2' and told['distinct'] == 4
  (pgd,) = [row for row in told['programs'] if row['program'] == 'attack pgd']
  assert pgd['collectives'] == pgd['in_loops'] == 0 < pgd['flops'] < pgd['calls'] * 1e9
  assert stage.lines(told)[0].startswith('program')
  assert told['left out'] == ['train vae', 'train a_full', 'train b_tail (+4)']
  row = tables.lines([('amat_hippocampus', told)])[-1]
  assert row.startswith('| amat_hippocampus | cpu-2 | 4 of 7 | ') and ' | 8 | train vae, ' in row


@pytest.mark.long
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_all_programs_of_a_smoke_preset_compile_for_8_devices(path, tmp_path):
  if not hasattr(papers.find(commandline.load_config(f'{path}:smoke').experiment), 'build'):
    pytest.skip('it has no stages')
  # What compiles fastest: only that everything lowers and compiles is asked here.
  flags = os.environ['XLA_FLAGS'].replace('device_count=2', 'device_count=8')
  flags += ' --xla_llvm_disable_expensive_passes=true'
  words = ['--config', f'{path}:smoke', '--stage', 'compile', '--target', 'cpu-8']
  runs.main(*words, '--workdir', tmp_path, XLA_FLAGS=flags)
  (stored,) = (tmp_path / 'compile').glob('*.cpu-8.json')
  told = json.loads(stored.read_text())
  rows = told['programs']
  assert told['devices'] == 8 and all(row['each'] > 0 for row in rows)
  assert {'train', 'score', 'attack'} <= {row['kind'] for row in rows} or path.stem == 'audit'
  assert all(row['in_loops'] == 0 for row in rows if row['kind'] == 'attack')

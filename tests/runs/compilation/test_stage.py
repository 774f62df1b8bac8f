"""Programs of whole experiments, from shapes alone."""

import json
import os

import jax
import numpy as np
import pytest

from robustmed import main, papers
from robustmed.process import parallel
from robustmed.runs import commandline
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
  assert first.out.splitlines()[:6] == stage.lines(told)[:6]


class _Lowered:
  """A program whose compilation is written down."""

  def __init__(self, text, compiled, fails=False):
    self.as_text, self._compiled, self._fails = (lambda: text), compiled, fails

  def compile(self, compiler_options=None):
    self._compiled.append((self.as_text(), compiler_options))
    if self._fails:
      raise KeyboardInterrupt
    return jax.jit(lambda x: x + 1).lower(np.float32(0)).compile()


def _listed_as(monkeypatch, *lowered):
  made = [
    programs.Program('attack', one.as_text(), lambda one=one: one, 3, 4, 4, 2, 0) for one in lowered
  ]
  monkeypatch.setattr(programs, 'of_run', lambda *a, **k: iter(made))


def _run(tmp_path, *words):
  name = ['--config', 'configs/two_moons.py:smoke', '--stage', 'compile', '--target', 'cpu-2']
  command = commandline.parse([*name, '--jobs', '1', '--workdir', str(tmp_path), *words])
  return stage.run(papers.find(command.config.experiment).build(command.config), command)


def _stored(tmp_path):
  return json.loads((tmp_path / 'compile' / 'two_moons.smoke.cpu-2.json').read_text())


def test_a_stage_that_is_stopped_leaves_the_rows_that_it_had(tmp_path, capsys, monkeypatch):
  compiled = []
  words = ('first', False), ('second', False), ('third', True), ('fourth', False)
  _listed_as(monkeypatch, *(_Lowered(text, compiled, fails) for text, fails in words))
  with pytest.raises(KeyboardInterrupt):
    _run(tmp_path)
  shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
  told = _stored(tmp_path)
  assert shown == [row['arms'][0] for row in told['programs']] == ['first', 'second']
  assert told['left out'] == ['attack third', 'attack fourth']
  compiled.clear()
  _listed_as(monkeypatch, *(_Lowered(text, compiled) for text, _ in words))
  _run(tmp_path)
  assert {text for text, _ in compiled} <= {'third', 'fourth'}
  assert len(_stored(tmp_path)['programs']) == 4 and not _stored(tmp_path)['left out']


def test_programs_come_in_the_order_of_their_names(tmp_path, monkeypatch):
  _listed_as(monkeypatch, *(_Lowered(text, []) for text in ('first', 'second', 'third')))
  told = _run(tmp_path, '--programs', 'attack second,attack')
  assert [row['arms'][0] for row in told['programs']] == ['second', 'first', 'third']
  told = _run(tmp_path / 'new', '--programs', 'attack third')
  assert told['left out'] == ['attack first', 'attack second']


def test_other_programs_of_a_run_are_added_to_its_table(tmp_path, capsys, monkeypatch):
  _listed_as(monkeypatch, *(_Lowered(text, []) for text in ('first', 'second', 'third')))
  _run(tmp_path, '--programs', 'attack first,attack third', '--full')
  capsys.readouterr()
  told = _run(tmp_path, '--programs', 'attack second,attack first')
  found = [(row['arms'][0], row['quick']) for row in told['programs']]
  assert found == [('second', True), ('first', True), ('third', False)]
  assert told['left out'] == [] and _stored(tmp_path)['programs'] == told['programs']
  shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:4]]
  assert shown == ['second', 'first', 'third']
  told = _run(tmp_path, '--programs', 'attack first', '--config.train.batch_size=12')
  assert told['left out'] == ['attack second', 'attack third']  # of another run


def test_rows_of_another_version_are_dropped(tmp_path, monkeypatch):
  _listed_as(monkeypatch, *(_Lowered(text, []) for text in ('first', 'second')))
  _run(tmp_path, '--programs', 'attack first')
  monkeypatch.setattr(stage.commit, 'of_checkout', lambda: 'another')
  assert _run(tmp_path, '--programs', 'attack second')['left out'] == ['attack first']


def test_full_asks_the_compiler_for_more_and_is_a_compilation_of_its_own(tmp_path, monkeypatch):
  compiled = []
  _listed_as(monkeypatch, _Lowered('text', compiled))
  said = lambda told: any('compiled quickly' in line for line in stage.lines(told))
  assert said(_run(tmp_path)) and not said(_run(tmp_path, '--full'))
  assert said(_run(tmp_path))
  assert [given for _, given in compiled] == [{'xla_llvm_disable_expensive_passes': True}, {}]


def test_the_last_lines_name_what_was_compiled_in_full(tmp_path, monkeypatch):
  _listed_as(monkeypatch, *(_Lowered(text, []) for text in ('first', 'second')))
  _run(tmp_path, '--programs', 'attack first', '--full')
  text = '\n'.join(stage.lines(_run(tmp_path, '--programs', 'attack second')))
  assert 'compiled quickly, all but attack first: temporaries' in text and '--full' in text


@pytest.mark.long
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_all_programs_of_a_smoke_preset_compile_for_8_devices(path, tmp_path):
  if not hasattr(papers.find(commandline.load_config(f'{path}:smoke').experiment), 'build'):
    pytest.skip('it has no stages')
  # What compiles fastest: only that everything lowers and compiles is asked here.
  flags = os.environ['XLA_FLAGS'].replace('device_count=2', 'device_count=8')
  words = ['--config', f'{path}:smoke', '--stage', 'compile', '--target', 'cpu-8']
  runs.main(*words, '--workdir', tmp_path, XLA_FLAGS=flags)
  (stored,) = (tmp_path / 'compile').glob('*.cpu-8.json')
  told = json.loads(stored.read_text())
  rows = told['programs']
  assert told['devices'] == 8 and all(row['each'] > 0 for row in rows)
  assert {'train', 'score', 'attack'} <= {row['kind'] for row in rows} or path.stem == 'audit'
  assert all(row['in_loops'] == 0 for row in rows if row['kind'] == 'attack')

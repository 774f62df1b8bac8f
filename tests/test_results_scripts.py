"""The scripts that bring the results of a run into the documents and the package."""

import importlib.util
import json
import shlex
import shutil

import jax
import pandas as pd
import pytest

from robustmed import errors, networks
from robustmed.networks import shipped
from robustmed.runs import networks as trained
from support import runs

RESULTS = runs.ROOT / 'docs' / 'results'
FLAGS = ('--config', 'configs/amat_hippocampus.py:smoke', '--workdir')


def _script(name, folder=RESULTS):
  spec = importlib.util.spec_from_file_location(name, folder / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def workdir(tmp_path):
  """A finished run of two arms, written by hand."""
  folder = tmp_path / 'elsewhere' / 'amat_real'
  for name in ('results', 'logs', 'report/tables'):
    (folder / name).mkdir(parents=True)
  command = 'python -m robustmed.main --config configs/amat_hippocampus.py:real'
  command += f' --config.data.dir={tmp_path}/Task04 --workdir {folder} --stage report'
  (folder / 'env.json').write_text(json.dumps({'command': command}))
  sizes = {'groups': {'train': 8, 'test': 2}, 'sizes': {'train': 90, 'test': 6}}
  (folder / 'data.json').write_text(json.dumps(sizes))
  made = {'date': '2031-02-03T04:05:06+00:00', 'version': '9.8.7'}
  (folder / 'evaluated.json').write_text(json.dumps(made))
  columns = ['arm', 'attack', 'eps', 'DICE', 'seed', 'index', 'group']
  cells = {'std': (0.8, 0.1), 'amat': (0.75, 0.5)}
  rows = [
    (arm, attack, eps, dice + index / 100, 0, index, index // 3)
    for arm, values in cells.items()
    for (attack, eps), dice in zip((('none', 0.0), ('pgd', 10.0)), values)
    for index in range(-3, 4)
    if index
  ]
  rows = pd.DataFrame(rows, columns=columns).assign(group=lambda t: (t['index'] > 0) * 1)
  rows.to_parquet(folder / 'results' / 'rows.parquet')
  summary = rows.groupby(['arm', 'attack', 'eps'])['DICE'].mean().rename('mean').reset_index()
  summary = summary.assign(metric='DICE', std=0.1, n=6, low=0.0, high=1.0)
  order = ['arm', 'attack', 'eps', 'metric', 'mean', 'std', 'n', 'low', 'high']
  summary[order].to_csv(folder / 'results' / 'summary.csv', index=False)
  worst = pd.DataFrame({'arm': ['amat', 'std'], 'eps': 10.0, 'metric': 'DICE', 'mean': [0.4, 0.1]})
  worst.to_csv(folder / 'results' / 'worst.csv', index=False)
  members = [('amat', 10.0, 'apgd', 0.25), ('amat', 10.0, 'pgd', 0.75), ('std', 10.0, 'pgd', 1.0)]
  members = pd.DataFrame(members, columns=['arm', 'eps', '_member', 'share'])
  members.to_csv(folder / 'results' / 'worst_members.csv', index=False)
  claims = pd.DataFrame({'statement': 'abc', 'verdict': ['holds', 'fails', 'not run']})
  claims.assign(numbers='1', p=0.1).to_csv(folder / 'report/tables/claims.csv', index=False)
  steps = pd.DataFrame({'step': range(1, 101), 'mean': 2.5, 'max': 15.0})
  steps.to_csv(folder / 'logs' / 'amat.seed0.margins.csv', index=False)
  return folder


def test_tables_of_a_run_are_its_numbers_and_its_command_names_no_folder(workdir, tmp_path):
  copied = tmp_path / 'results'
  shutil.copytree(RESULTS, copied, ignore=shutil.ignore_patterns('pictures'))
  script = _script('run_tables', copied)
  words = '--page amat_hippocampus --run real --metric DICE --attack pgd --commit abc1234'
  script.main([str(workdir), *words.split()])
  folder = copied / 'amat_hippocampus'
  assert (folder / 'real.csv').read_text() == 'arm,0,10\namat,0.750,0.500\nstd,0.800,0.100\n'
  assert (folder / 'real_worst.csv').read_text().splitlines() == [
    'arm,level,attack,worst,overstated by,found by',
    'amat,10,0.500,0.400,+0.100,"pgd 75%, apgd 25%"',
    'std,10,0.100,0.100,+0.000,pgd 100%',
  ]
  assert (folder / 'real_claims.csv').read_text().count('abc') == 3
  margins = pd.read_csv(folder / 'real_margins.csv')
  assert margins.step.iloc[0] == 1 and margins.step.iloc[-1] == 100 and len(margins) == 9
  runs_table = pd.read_csv(copied / 'runs.csv', dtype=str, keep_default_na=False)
  line = runs_table[(runs_table.page == 'amat_hippocampus') & (runs_table.run == 'real')].iloc[0]
  assert line.command == (
    'python -m robustmed.main --config configs/amat_hippocampus.py:real '
    '--config.data.dir=Task04 --workdir runs/amat_real'
  )
  counts = (line.claims, line.holds, line.fails, line.undecided, line.not_run)
  assert counts == ('3', '1', '1', '0', '1') and line.commit == 'abc1234'
  with pytest.raises(SystemExit, match='no line of page'):
    script.main([str(workdir), *words.replace('--run real', '--run gone').split()])


def test_networks_of_a_run_are_packed_with_what_they_were_trained_on_and_score(
  workdir, tmp_path, monkeypatch
):
  monkeypatch.chdir(runs.ROOT)
  monkeypatch.syspath_prepend(RESULTS)
  init = lambda self, arm, trial: self._exp.task_of(arm).init(jax.random.key(0))
  monkeypatch.setattr(trained.Networks, 'load', init)
  pack, folder = _script('ship_networks').main, tmp_path / 'shipped'
  assert pack([*FLAGS, str(workdir), '--arms', 'std,amat'], folder) == [
    'hippocampus/std',
    'hippocampus/amat',
  ]
  monkeypatch.setattr(shipped, 'FOLDER', folder)
  assert shipped.names() == ['hippocampus/amat', 'hippocampus/std']
  about = shipped.about('hippocampus/amat')
  assert about['scores'] == {
    'mean Dice of slices, clean': [0.75, 0.0, 1.0],
    'mean Dice of slices under L2 pgd at 10': [0.5, 0.0, 1.0],
  }
  assert 'CC-BY-SA 4.0' in about['licence'] and about['tested on'] == '6 slices of 2 other cases'
  assert str(tmp_path) not in json.dumps(about) and about['date'].startswith('2031')
  found = networks.load('hippocampus/amat')
  assert found.name == 'hippocampus_amat' and found.output_shape((16, 16)) == (16, 16, 3)
  for arm, said in (('sat_5', 'has no scores'), ('gone', 'no arm gone')):
    with pytest.raises(errors.UserError, match=said):
      pack([*FLAGS, str(workdir), '--arms', arm], folder)


def test_the_commands_of_the_members_page_are_read():
  parse = _script('members').parsed
  lines = pd.read_csv(RESULTS / 'runs.csv', dtype=str, keep_default_na=False)
  for line in lines[lines.page == 'members'].itertuples():
    asked, command = parse(shlex.split(line.command)[2:])
    assert asked.examples in (8, 16, 48) and asked.pairs == ('--pairs' in line.command)
    assert line.run.startswith(asked.run) and command.config.evaluate.budget == 'quick'

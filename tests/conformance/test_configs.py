"""Every config file and every preset: plain data that loads, builds and describes itself."""

import json
import re

import ml_collections
import pytest

from robustmed import errors, main, papers
from robustmed.runs import artifacts, commandline, description, experiment
from support import runs

FILES = sorted((runs.ROOT / 'configs').glob('[!_]*.py'))
PRESETS = (
  *('', 'smoke', 'demo', 'real', 'paper', 'authors', 'text', 'smoke,authors', 'smoke,text'),
  'deformation',
)
DEMOS = ('', 'demo')


def _presets(path):
  found = []
  for preset in PRESETS:
    try:
      found.append((preset, commandline.load_config(f'{path}:{preset}')))
    except errors.UserError:
      assert preset not in ('', 'smoke'), f'{path} needs the preset {preset!r}'
  return found


def _plain(value):
  if isinstance(value, dict):
    return all(isinstance(key, str) and _plain(inner) for key, inner in value.items())
  if isinstance(value, tuple | list):
    return all(_plain(inner) for inner in value)
  return value is None or isinstance(value, bool | int | float | str)


@pytest.mark.slow
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_presets_are_plain_data_and_build(path):
  for preset, config in _presets(path):
    assert isinstance(config, ml_collections.ConfigDict)
    assert _plain(config.to_dict()), preset
    json.dumps(config.to_dict())
    build = papers.find(config.experiment)
    if hasattr(build, 'build'):
      exp = build.build(config)
      assert config.evaluate.budget == '', 'a budget of attacks is for the user to add'
      order, _ = experiment.training_order(exp.arms)
      assert set(order) == set(exp.arms) and exp.grid.main in exp.grid.probes
      plan = description.describe(exp, config, light=True)
      assert plan['passes']['total'] > 0
      found = description.reach(exp)
      assert found.tested > 3 and found.groups >= 2, preset
      few = description.too_few_groups(found)
      assert not few or preset not in DEMOS, few
      assert set(exp.data.sizes()) >= {'train', 'test'} or config.data.dir == ''


@pytest.mark.slow
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_budget_adds_attacks_to_every_experiment(path):
  config = commandline.load_config(f'{path}:smoke')
  if not hasattr(build := papers.find(config.experiment), 'build'):
    return
  own = build.build(config).grid
  with config.unlocked():
    config.evaluate.budget = 'standard'
  found = build.build(config).grid
  added = [name for name in found.probes if name not in own.probes]
  assert list(own.probes) == [name for name in found.probes if name in own.probes]
  assert {'square_200'} < set(added) and any(name.startswith('apgd_') for name in added)
  same = artifacts._same_ball(found.probes, found.main)
  assert set(added) <= set(same) and {'noise', found.main} <= set(same)
  for name, probe in own.probes.items():
    if name in same and not probe.source and _climbs(probe.attack):
      best = [
        other.attack.select
        for other in found.probes.values()
        if (other.levels, other.objective) == (probe.levels, probe.objective)
        and _steps(other.attack) == _steps(probe.attack)
      ]
      assert {'best', 'monitor'} & set(best), name


def _climbs(attack) -> bool:
  last = getattr(attack, 'select', '') == 'last' and not attack.minimise
  return last and attack.num_gradients > 1


def _steps(attack):
  names = ('num_steps', 'restarts', 'step_size', 'relative_step', 'random_start')
  return [getattr(attack, name, None) for name in names]


STATED = re.compile(r'(\d+) networks, (\d+) hours at 10 TFLOP/s')
PAPERS = [path for path in FILES if '`paper`' in path.read_text(encoding='utf-8').split('"""')[1]]


def _stated(path):
  """(networks, hours) of the preset paper as the docstring has them; its configuration."""
  said = ' '.join(path.read_text(encoding='utf-8').split('"""')[1].split())
  found = STATED.search(said)
  assert found, said
  return int(found[1]), int(found[2]), commandline.load_config(f'{path}:paper')


@pytest.mark.parametrize('path', PAPERS, ids=lambda path: path.stem)
def test_the_docstring_states_how_many_networks_are_trained(path):
  networks, _, config = _stated(path)
  exp = papers.find(config.experiment).build(config)
  trained = [name for name, arm in exp.arms.items() if arm.train['steps']]
  assert networks == len(trained) * config.seeds, trained


@pytest.mark.long
@pytest.mark.parametrize('path', PAPERS, ids=lambda path: path.stem)
def test_the_docstring_states_the_hours_that_are_counted(path):
  _, hours, config = _stated(path)
  exp = papers.find(config.experiment).build(config)
  (rate, counted), *_ = description.describe(exp, config)['hours'].items()
  assert rate == 'at 10 TFLOP/s' and abs(hours - counted) <= max(0.5, 0.05 * counted)


@pytest.mark.slow
@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_describe_prints_one_json_object(path, capsys):
  assert main.main(['--config', f'{path}:smoke', '--stage', 'describe']) == 0
  told = json.loads(capsys.readouterr().out)
  assert told['experiment'] == commandline.load_config(f'{path}:smoke').experiment


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_an_unknown_preset_lists_the_known(path):
  with pytest.raises(errors.UserError, match=r"unknown preset 'nope'.*smoke"):
    commandline.load_config(f'{path}:nope')

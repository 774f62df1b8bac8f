"""Presets of the disk-shape study, its readings of the paper, its claims."""

import json

import numpy as np
import pandas as pd
import pytest

from robustmed import errors
from robustmed.evaluation import claims
from robustmed.papers.spine import claims as spine_claims
from robustmed.papers.spine import experiment as spine
from robustmed.runs import commandline, experiment

KINDS = ('std', 'rand', 'adv_r', 'adv_s', 'adv_rs')


def _config(preset='', **changes):
  config = commandline.load_config(f'configs/spine.py:{preset}')
  for path, value in changes.items():
    node, *rest = [config, *path.split('__')]
    for name in rest[:-1]:
      node = node[name]
    node[rest[-1]] = value
  return config


@pytest.mark.parametrize('preset, shapes', [('demo', (3, 10)), ('real', (3, 10)),
                                            ('smoke', (3, 10)), ('paper', (3, 5, 10))])  # fmt: skip
def test_every_preset_has_its_arms(preset, shapes):
  exp = spine.build(_config(preset))
  for number in shapes:
    for kind in KINDS:
      arm = exp.arms[f'P{number:02d}_{kind}']
      assert arm.init_from == ('' if kind == 'std' else f'P{number:02d}_std')
  assert {'P10_std_rec', 'P10_adv_rs_rec', 'P10_rand_only'} < set(exp.arms)
  order, _ = experiment.training_order(exp.arms)
  assert order.index('P10_std_rec') < order.index('P10_adv_rs_rec')
  assert exp.arms['P10_std_rec'].evaluated == () and exp.arms['P10_std'].evaluated is True


def test_arms_share_programs_where_they_can():
  exp = spine.build(_config('smoke'))
  arms = exp.arms
  assert arms['P10_std'].network.task is None and exp.task_of('P10_std') is exp.task
  assert arms['P10_std_rec'].network.task is arms['P10_adv_rs_rec'].network.task is not None
  assert arms['P10_std'].augment is arms['P10_adv_s'].augment
  assert arms['P10_std'].augment is not arms['P03_std'].augment
  assert exp.model_of('P10_std_rec', _config('smoke'))['num_maps'] == 2
  assert exp.model_of('from elsewhere', _config('smoke'))['num_maps'] == 1


def test_one_arm_can_be_changed_alone():
  config = _config('smoke')
  config.arms.P10_adv_r.defense.attack.num_steps = 7
  config.arms.P10_adv_r.augment.components = 4
  assert config.arms.P10_adv_s.defense.attack.num_steps == 2
  assert config.arms.P10_adv_s.augment.components == 10
  arms = spine.build(config).arms
  assert arms['P10_adv_r'].defense.cost.gradients == 7
  assert arms['P10_adv_s'].defense.cost.gradients == 2


def test_the_paper_preset_is_the_papers(capsys, monkeypatch, tmp_path):
  from robustmed import main

  monkeypatch.setenv('ROBUSTMED_CACHE', str(tmp_path))
  file = str(commandline.CONFIGS / 'spine.py')
  assert main.main(['--config', f'{file}:paper', '--stage', 'describe']) == 0
  told = json.loads(capsys.readouterr().out)
  assert told['networks']['disk_shape']['parameters'] == 38_998_721
  # one more map of the last transposed convolution: 5 x 5 x 32 weights and a bias
  assert told['networks']['disk_shape, num_maps=2']['parameters'] == 38_998_721 + 801
  assert told['data'] == {'train': 400, 'test': 100}
  built = spine.build(_config('paper')).arms
  rules = {name: arm.train['optimisers']['main'] for name, arm in built.items()}
  letter = rules.pop('P10_adv_rs_scratch')
  adamax = {'name': 'adamax', 'lr': 1e-3, 'schedule': 'constant'}
  assert all(rule == adamax for rule in rules.values())
  assert letter == {**adamax, 'lr': 2e-3}  # 'default parameters' of Adamax
  arms = told['arms']
  assert all(arm['steps'] == 10_000 and arm['batch_size'] == 64 for arm in arms.values())
  assert len([name for name in arms if name.split('_', 1)[1] in KINDS]) == 15
  assert arms['P05_adv_rs']['passes'] == 10_000 * 64 * (2 * 20 + 3)
  assert arms['P05_adv_r']['passes'] == 10_000 * 64 * (20 + 2)
  assert arms['P10_adv_rs_scratch']['needs'] == []
  attack = told['attacks']['pgd_reg']
  assert attack['levels'] == [0.01, 0.03, 0.05, 0.07, 0.1, 0.2]
  assert attack['gradients_per_example'] == 100
  assert told['attacks']['pgd_seg_best']['gradients_per_example'] == 500
  settings = spine.ood_settings(_config('paper'))
  plain, rec = settings['ood'], settings['rec']
  assert (plain.eps, plain.attack.num_steps, plain.attack.step_size) == (20.0, 2000, 0.01)
  assert (rec.eps, rec.attack.num_steps, rec.attack.threat.max_change) == (40.0, 4000, 1.0)


def test_clean_networks_of_few_patients_have_the_recipe_that_does_not_hang_on_the_seed():
  arms = spine.build(_config('real')).arms
  clean = [arm for name, arm in arms.items() if '_std' in name]
  assert len(clean) == 3
  for arm in clean:
    rule = arm.train['optimisers']['main']
    assert (rule['name'], rule['clip'], rule['warmup_share']) == ('adamw', 1.0, 0.1)
    assert arm.train['steps'] * arm.train['batch_size'] == 600 * 64  # as many images as the demo


@pytest.mark.parametrize('preset', ['demo', 'smoke', 'real', 'paper'])
def test_attacks_from_outside_start_as_algorithm_1_does(preset):
  config = _config(preset)
  assert all(one.attack.random_start for one in spine.ood_settings(config).values())
  # one lung slice for all examples, where noise is drawn for each
  assert spine.STARTS['ct'](config, 5).shape == (1, config.data.side, config.data.side, 1)
  assert len(spine.STARTS['noise'](config, 5)) == 5
  config.ood.ct_slices = 3
  assert len(spine.STARTS['ct'](config, 5)) == 3


def _objectives(config, arm):
  return set(config.arms[arm].defense.objectives)


def test_the_readings_of_the_paper():
  code = spine._read(_config('smoke'))
  assert _objectives(code, 'P10_adv_rs') == {'train_reg', 'train_seg'}
  assert code.arms.P10_adv_rs.defense.ramp_levels == 100
  given = _config(
    'smoke',
    reading__attack_objectives='paper',
    reading__warm_start=False,
    reading__eps_ramp=False,
  )
  text = spine._read(given)
  assert _objectives(text, 'P10_adv_rs') == {'reg', 'seg'}
  assert all(not arm.get('init_from') for arm in text.arms.values())
  assert text.arms.P10_adv_rs.defense.ramp_levels == 0
  letter = spine._read(_config('paper'))
  assert _objectives(letter, 'P10_adv_rs') == {'train_reg', 'train_seg'}
  assert _objectives(letter, 'P10_adv_rs_scratch') == {'reg', 'seg'}  # eqs. 4 and 5
  assert letter.arms.P10_adv_rs_scratch.defense.ramp_levels == 0
  assert given.arms.P10_adv_rs.init_from == 'P10_std'  # what was given is left as it was
  assert spine.build(given).arms['P10_adv_rs'].needs == ()


def test_mistakes_are_one_line():
  with pytest.raises(errors.UserError, match="unknown preset 'papre'; did you mean 'paper'"):
    _config('papre')
  with pytest.raises(errors.UserError, match="unknown mismatch 'jiont'; did you mean 'joint'"):
    spine.build(_config('smoke', ood__attacks__ood__mismatch='jiont'))
  with pytest.raises(errors.UserError, match="unknown kind of OOD image 'mri'"):
    spine.build(_config('smoke', ood__attacks__ood__start='mri'))
  with pytest.raises(errors.UserError, match="OOD attack of arm 'P10_std' 'oood'"):
    spine.build(_config('smoke', ood__arms__P10_std=('oood',)))
  with pytest.raises(errors.UserError, match="reconstruction, which arm 'P10_std' has not"):
    spine.build(_config('smoke', ood__arms__P10_std=('ood', 'rec')))
  with pytest.raises(errors.UserError, match="unknown reading of the objectives 'both'"):
    spine.build(_config('smoke', reading__attack_objectives='both'))
  config = _config('smoke')
  config.arms.P10_std.augment.component = 3
  with pytest.raises(errors.UserError, match="augment field of arm 'P10_std' 'component'"):
    spine.build(config)


def test_a_folder_without_ood_images_is_found_out_before_training(tmp_path, monkeypatch):
  monkeypatch.setenv('ROBUSTMED_CACHE', str(tmp_path / 'cache'))
  exp = spine.build(_config('smoke', ood__images=str(tmp_path / 'absent')))
  with pytest.raises(errors.UserError, match='absent'):
    exp.data.load()
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.UserError, match='no image in'):
    spine.build(_config('smoke', ood__images=str(tmp_path / 'empty'))).data.load()


def _rows(scores):
  """Scores of 24 patients' own images are around 0."""
  groups = np.arange(24)
  own = np.random.default_rng(1).normal(size=24)
  frame = {'arm': 'P10_std_rec', 'seed': 0, 'index': groups, 'group': groups}
  attacked = pd.DataFrame({**frame, 'attack': 'rec', 'eps': 20.0, 'score': scores})
  return pd.concat([pd.DataFrame({**frame, 'attack': 'ind', 'eps': 0.0, 'score': own}), attacked])


def test_claims_on_attacks_from_outside_are_decided_on_their_own_rows():
  config = _config('smoke')
  random = np.random.default_rng(0)
  low, high = (_rows(random.normal(mean, 1, 24)) for mean in (-3, 3))
  grid = pd.DataFrame(
    {'arm': 'x', 'attack': 'none', 'eps': 0.0, 'index': [0], 'seed': 0, 'group': 0}
  )
  for rows, verdict in ((low, 'holds'), (high, 'fails'), (pd.DataFrame(), 'not run')):
    decided = claims.decide(spine_claims.outside_attacks(config, rows), grid)
    found = decided.set_index('statement')['verdict']
    (statement,) = [s for s in found.index if 'P10_std_rec detects nothing' in s]
    assert found[statement] == verdict
    assert (found.drop(statement) == 'not run').all()

import json
import re

import jax
import ml_collections
import numpy as np
import pytest

from robustmed import errors, main, papers, types
from robustmed.report import provenance
from robustmed.runs import commandline, description, experiment, networks, workdir
from support import toys


def _arms(**needs):
  blank = types.Defense(phases=())
  return {name: experiment.Arm(name, blank, {}, init_from=need) for name, need in needs.items()}


def test_needed_arms_come_first_and_are_said():
  arms = _arms(adv='std', student='teacher', std='', teacher='')
  assert experiment.training_order(arms) == (['std', 'adv', 'teacher', 'student'], [])
  assert experiment.training_order(arms, ('adv',)) == (['std', 'adv'], ['std'])
  assert experiment.training_order(arms, ('std',)) == (['std'], [])


def test_unknown_and_circular_needs_are_user_errors():
  with pytest.raises(errors.UserError, match=r"unknown arm 'avd'; did you mean 'adv'"):
    experiment.training_order(_arms(adv='', std=''), ('avd',))
  with pytest.raises(errors.UserError, match=r"unknown arm \(needed by adv\) 'nobody'"):
    experiment.training_order(_arms(adv='nobody'))
  with pytest.raises(errors.UserError, match='in a circle: a -> b -> a'):
    experiment.training_order(_arms(a='b', b='a'))


def _config(**arm):
  return ml_collections.ConfigDict(
    {
      'train': {'steps': 10, 'batch_size': 4},
      'arms': {'std': {'defense': {'name': 'standard'}, **arm}},
      'evaluate': {
        'levels': (0.1,),
        'attacks': {
          'pgd': {'name': 'pgd', 'num_steps': 2, 'objective': 'bce', 'levels': (0.3, 0.5)}
        },
      },
    }
  )


def test_arms_and_probes_from_plain_data():
  task = toys.task()
  arm = experiment.make_arms(task, _config(train={'steps': 3}))['std']
  assert arm.train == {'steps': 3, 'batch_size': 4} and arm.needs == ()
  probe = experiment.make_probes(task, _config())['pgd']
  assert probe.levels == (0.3, 0.5) and probe.attack.num_gradients == 2


@pytest.mark.parametrize(
  'arm, message',
  [
    ({'train': {'step': 3}}, "unknown training option of an arm 'step'; did you mean 'steps'"),
    ({'defense': {'name': 'standrad'}}, "unknown defense 'standrad'; did you mean 'standard'"),
    ({'defense': {'name': 'noise', 'epz': 1}}, "unknown field of defense 'noise' 'epz'"),
  ],
)
def test_misspelt_plain_data_is_a_user_error(arm, message):
  with pytest.raises(errors.UserError, match=message):
    experiment.make_arms(toys.task(), _config(**arm))


def test_misspelt_attacks_and_objectives_are_user_errors():
  config = _config()
  config.evaluate.attacks.pgd.objective = 'seg'
  with pytest.raises(errors.UserError, match="unknown objective 'seg'"):
    experiment.make_probes(toys.task(), config)
  config.evaluate.attacks.pgd.update({'objective': 'bce', 'name': 'pdg'})
  with pytest.raises(errors.UserError, match="unknown attack 'pdg'; did you mean 'pgd'"):
    experiment.make_probes(toys.task(), config)


def test_a_budget_adds_the_members_of_an_ensemble():
  config = _config()
  config.evaluate.budget = 'quick'
  config.evaluate.attacks.pgd.bounds = (0.0, 1.0)
  task = toys.task()._replace(objectives={'bce': lambda o, b: 0, 'ce': lambda o, b: 1})
  probes = experiment.make_probes(task, config)
  assert list(probes) == ['pgd', 'pgd_best', 'apgd_ce_10', 'apgd_bce_10']
  best = probes['pgd_best']
  assert (best.attack.select, best.attack.num_steps, best.levels) == ('best', 2, (0.3, 0.5))
  member = probes['apgd_ce_10']
  assert member.attack.threat.bounds == (0.0, 1.0)
  assert member.attack.select == 'monitor'
  assert member.objective == 'ce'
  assert member.levels == tuple(config.evaluate.levels)
  config.evaluate.budget = 'quik'
  with pytest.raises(errors.UserError, match="unknown budget of attacks 'quik'; did you mean"):
    experiment.make_probes(task, config)


def test_the_best_iterate_of_an_objective_that_changes_is_chosen_by_the_metric():
  config = _config()
  config.evaluate.budget = 'quick'
  task = toys.task()._replace(objectives={'ce': lambda o, b: 1, 'bce': lambda o, b, progress: 0})
  assert experiment.make_probes(task, config)['pgd_best'].attack.select == 'monitor'
  config.evaluate.attacks.pgd.select = 'best'
  with pytest.raises(errors.UserError, match="attack 'pgd': values of the objective 'bce' at two"):
    experiment.make_probes(task, config)


def test_a_space_is_a_transform_with_its_options():
  config, task = _config(), toys.task()._replace(image_shape=(8, 6, 1))
  config.evaluate.attacks.pgd.space = {'name': 'deformation', 'grid': 4}
  probe = experiment.make_probes(task, config)['pgd']
  batch = {'image': np.zeros((2, 8, 6, 1), np.float32)}
  assert probe.space.encode(batch).shape == (2, 5, 5, 2)
  config.evaluate.attacks.pgd.space = {'name': 'deformation', 'grit': 4}
  with pytest.raises(errors.UserError, match="option of the transform deformation 'grit'"):
    experiment.make_probes(task, config)
  config.evaluate.attacks.pgd.space = {'name': 'deformatoin'}
  with pytest.raises(errors.UserError, match="unknown transform 'deformatoin'; did you mean"):
    experiment.make_probes(task, config)


def test_an_experiment_without_its_main_attack_is_one_line():
  from robustmed.runs import stages

  config = commandline.load_config('configs/two_moons.py:smoke')
  with config.unlocked():
    del config.evaluate.attacks['pgd']
    config.evaluate.attacks.other = {'name': 'pgd', 'objective': 'bce', 'num_steps': 1}
  words = ['--config', 'configs/two_moons.py:smoke', '--stage', 'describe']
  command = commandline.parse(words)._replace(config=config)
  with pytest.raises(errors.UserError, match=r"evaluate\.attacks has no 'pgd', which two_moons"):
    stages.run(command, papers.find(config.experiment))


def test_what_the_report_alone_reads_may_change(tmp_path):
  config = {'config': {'report': {'other': '', 'pictures': 4}}}
  workdir.claim(tmp_path, config)
  config['config']['report']['other'] = 'runs/b'
  assert not workdir.claim(tmp_path, config)
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert stored['config']['report']['other'] == 'runs/b'
  config['config']['report']['pictures'] = 5
  with pytest.raises(errors.UserError, match=r'report\.pictures: 4 there, 5 here'):
    workdir.claim(tmp_path, config)


def test_a_workdir_belongs_to_one_configuration(tmp_path):
  config = {'a': {'b': 1, 'c': (1, 2)}}
  workdir.claim(tmp_path / 'w', config)
  workdir.claim(tmp_path / 'w', config)
  with pytest.raises(errors.UserError, match=r'another configuration: a\.b: 1 there, 2 here; use'):
    workdir.claim(tmp_path / 'w', {'a': {'b': 2, 'c': (1, 2)}})
  with pytest.raises(errors.UserError, match=r'a\.d: \(absent\) there'):
    workdir.claim(tmp_path / 'w', {'a': {'b': 1, 'c': (1, 2), 'd': 3}})
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='cannot make the workdir'):
    workdir.claim(tmp_path / 'file' / 'w', config)


def test_a_new_field_that_is_empty_changes_nothing(tmp_path):
  old = {'config': {'evaluate': {'levels': (0.1,)}, 'data': {'source': 'x'}}}
  workdir.claim(tmp_path, old)
  new = {'config': {'evaluate': {'levels': (0.1,), 'budget': ''}, 'data': {'source': 'x'}}}
  new['config']['data'] |= {'folds': 0, 'more': {'sigma': 0.0, 'radii': ()}}
  assert not workdir.claim(tmp_path, new)
  assert json.loads((tmp_path / 'config.json').read_text()) == json.loads(json.dumps(new))
  # what is stored by now is as good as any other field
  new['config']['evaluate']['budget'] = 'quick'
  with pytest.raises(errors.UserError, match=r"evaluate\.budget: '' there, 'quick' here"):
    workdir.claim(tmp_path, new)
  empty = {'config': {'evaluate': {'levels': ()}, 'data': {'source': 'x'}}}
  with pytest.raises(errors.UserError, match=r'levels: \[0\.1\] there, \[\] here'):
    workdir.claim(tmp_path, empty)
  new['config']['data']['more']['sigma'] = 0.5
  (tmp_path / 'older').mkdir()
  workdir.claim(tmp_path / 'older' / 'w', old)
  with pytest.raises(errors.UserError, match=r'data\.more: '):
    workdir.claim(tmp_path / 'older' / 'w', new)


def test_describe_needs_no_data_and_counts_the_papers_network(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('ROBUSTMED_CACHE', str(tmp_path))
  config = str(commandline.CONFIGS / 'quickstart.py') + ':paper'
  assert main.main(['--config', config, '--stage', 'describe', '--config.data.dir=/nowhere']) == 0
  told = json.loads(capsys.readouterr().out)
  network = told['networks']['disk_shape']
  assert network['parameters'] == 38_998_721
  assert network['gmacs_per_example'] == pytest.approx(0.581, abs=0.002)
  assert network['input_shape'] == [128, 128, 1]
  assert told['data'] == {'train': 400, 'test': 100}
  assert list(told['arms']) == ['std', 'rand', 'adv'] and told['arms']['adv']['needs'] == ['std']
  # adv: two PGD-20 and three training passes on 64 images, 10,000 times
  assert told['arms']['adv']['passes'] == 10_000 * 64 * (40 + 3)
  assert told['attacks']['pgd_seg']['levels'] == [0.01, 0.03, 0.05, 0.07, 0.1, 0.2]
  # clean, PGD-100, FGSM and noise, a forward pass; every image is scored
  # at one level the best iterate of PGD and APGD-100, whose last point is scored too
  per_network = 100 * (1 + 6 * (100 + 1 + 1 + 3) + 2 * (100 + 1 + 1))
  assert told['passes']['evaluate'] == 3 * per_network
  # one score, and of each arm a step; all draw disks in the same way
  attacked = len(told['attacks'])
  assert told['programs'] == {'train': 3, 'augment': 1, 'score': 1, 'attack': attacked}
  assert told['steps'] == 30_000 and told['device_bytes'] > 38_998_721 * 16
  assert not list(tmp_path.iterdir())


def test_a_workdir_from_before_there_were_folds_is_one_without(tmp_path):
  config = {'config': {'data': {'source': 'msd'}}}
  workdir.claim(tmp_path, config)
  config['config']['data']['folds'] = 0
  assert not workdir.claim(tmp_path, config)
  assert json.loads((tmp_path / 'config.json').read_text()) == config
  config['config']['data']['folds'] = 5
  with pytest.raises(errors.UserError, match=r'data\.folds: 0 there, 5 here'):
    workdir.claim(tmp_path, config)


def test_a_run_stays_with_the_data_it_began_with(tmp_path):
  info = {'name': 'disks', 'fingerprint': 'a1', 'sizes': {'train': 4}, 'groups': {'train': 2}}
  for _ in range(2):
    workdir.claim_data(tmp_path, {**info, 'folder': '/cache/a1', 'counts': {}})
  before = (tmp_path / 'data.json').read_bytes()
  with pytest.raises(errors.UserError, match=r'not those .*\(sizes\.train: 4 there, 5 here\); use'):
    workdir.claim_data(tmp_path, {**info, 'fingerprint': 'b2', 'sizes': {'train': 5}})
  with pytest.raises(errors.UserError, match=r'changed, replaced or touched.*remove .*data\.json'):
    workdir.claim_data(tmp_path, {**info, 'fingerprint': 'b2'})
  assert (tmp_path / 'data.json').read_bytes() == before
  workdir.release(tmp_path)
  assert not tmp_path.exists()


def test_an_editable_copy_keeps_the_order_of_the_arms_and_the_original():
  arms = {name: {'defense': {'name': 'standard'}} for name in ('std', 'sat_5', 'amat')}
  config = ml_collections.ConfigDict({'arms': {}})
  config.arms = ml_collections.ConfigDict(arms, sort_keys=False)
  copied = experiment.editable(config.lock())
  assert list(copied.arms) == ['std', 'sat_5', 'amat']
  copied.arms.std.defense.coupled = True
  assert 'coupled' not in config.arms.std.defense


@pytest.mark.parametrize('name', ('amat_hippocampus', 'brats2d', 'spine'))
def test_experiments_keep_the_order_of_the_arms(name):
  config = commandline.load_config(f'configs/{name}.py:smoke')
  built = papers.find(config.experiment).build(config)
  assert list(built.arms) == list(config.arms)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('config', 'groups', 'least'),
  [('amat_heart.py:paper', 3, 0.125), ('amat_prostate.py:paper', 5, 0.03125)],
)
def test_claims_that_the_test_volumes_cannot_decide_are_told(config, groups, least, capsys):
  assert main.main(['--config', f'configs/{config}', '--stage', 'describe']) == 0
  found = json.loads(capsys.readouterr().out)['claims']
  assert found['groups'] == groups and found['least'] == least and found['decidable'] == 0
  assert found['tested'] > 10 and 'can decide none of the' in found['warning']
  number = {3: 20, 5: 32}[groups]  # cases of the data set
  offer = f'; --config.data.folds=5 tests {number} groups, which can decide all'
  assert f'{offer} {found["tested"]} claims' in found['warning']
  chosen = commandline.load_config(f'configs/{config}')
  with chosen.unlocked():
    chosen.data.folds = 5
  exp = papers.find(chosen.experiment).build(chosen)
  every = description.reach(exp)
  assert every.groups == number and every.decidable == every.tested == found['tested']
  assert sum(data.groups() for data in exp.data.folds) == number


def test_a_run_says_first_that_its_folds_can_decide_the_claims():
  config = commandline.load_config('configs/amat_heart.py:paper')
  build = papers.find(config.experiment).build
  (line,) = description.announcement(build(config))
  assert 'can decide none of the' in line and '--config.data.folds=5 tests 20 groups' in line
  with config.unlocked():
    config.data.folds = 5
  (line,) = description.announcement(build(config))
  assert line.startswith('5 folds are one run') and 'can decide all' in line
  with config.unlocked():
    config.data.folds = 1
  with pytest.raises(errors.UserError, match='folds must be 0'):
    build(config)


@pytest.mark.parametrize(
  ('name', 'groups'),
  [
    ('quickstart', 2),
    ('spine', 4),
    ('brats2d', 2),
    ('brats3d', 2),
    ('amat_hippocampus', 2),
    ('amat_bccd', 3),
    ('amat_ceph', 3),
    ('synthesis', 2),
    ('nodules', 2),
    ('two_moons', 2),
  ],
)
def test_every_paper_says_what_its_number_of_groups_cannot_decide(name, groups):
  config = commandline.load_config(f'configs/{name}.py:smoke')
  found = description.reach(papers.find(config.experiment).build(config))
  assert found.groups == groups and found.decidable == 0 and found.tested > 3
  assert f'{groups} groups' in description.too_few_groups(found)


def test_enough_test_volumes_are_no_warning():
  config = commandline.load_config('configs/amat_hippocampus.py:paper')
  found = description.reach(papers.find(config.experiment).build(config))
  assert found.groups == 35 and found.decidable == found.tested
  assert description.too_few_groups(found) == description.too_few_groups(None) == ''


def _dtypes(task):
  """The types of what a task's network multiplies, of its variables and of its outputs."""
  variables = jax.eval_shape(task.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *task.image_shape), np.float32)
  jaxpr, outputs = jax.make_jaxpr(task.predict, return_shape=True)(variables, image)
  kinds = set(re.findall(r'([a-z]+\d+)\[[\d,]*\] = conv_general_dilated', str(jaxpr)))
  several = lambda tree: {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
  return kinds, several(variables), several(outputs)


def test_networks_trained_in_bfloat16_are_evaluated_in_float32():
  config = commandline.load_config('configs/quickstart.py:smoke')
  commandline.list_settings(config)
  build = papers.find(config.experiment).build
  exp = build(config)
  assert experiment.in_float32(exp, config, build) is exp
  config.model.dtype = 'bfloat16'
  exp = build(config)
  exact = experiment.in_float32(exp, config, build)
  assert config.model.dtype == 'bfloat16' and list(exact.arms) == list(exp.arms)
  assert _dtypes(exp.task) == ({'bf16'}, {'float32'}, {'float32'})
  assert _dtypes(exact.task) == ({'f32'}, {'float32'}, {'float32'})
  evaluator = networks.Networks(exp, config, None, exact).evaluator('std')
  assert evaluator.task is exact.task_of('std')
  told = [provenance.precision(one, {}) for one in (config.to_dict(), {'model': {}})]
  assert told == [
    'Networks computed in bfloat16 in training, with float32 weights and images, and in float32 '
    'in evaluation.',
    '',
  ]
  config.model.dtype = 'float32'
  on_tpu = provenance.precision(config.to_dict(), {'platform': 'tpu'})
  assert on_tpu.endswith('; there the factors of products in float32 are rounded to bfloat16.')

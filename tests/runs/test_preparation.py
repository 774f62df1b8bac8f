import csv

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.extend import backend

from robustmed import data, errors, types
from robustmed.process import compiled, console, tool
from robustmed.runs import commandline, description, experiment, preparation, stages
from robustmed.training import checkpoints
from support import toys


class Split(list):
  """Seven of nine examples, their numbers out of order."""

  def stack(self, feature):
    return np.stack([example[feature] for example in self])


def _source(side=toys.SIDE):
  batch, edge = toys.batch(9), (side - toys.SIDE) // 2
  pad = lambda image: np.pad(image, [(edge, edge), (edge, edge), (0, 0)], constant_values=9.0)
  examples = [
    {
      'image': pad(batch['image'][i]),
      'label': batch['target']['label'][i],
      'index': i,
      'group': i,
      'name': str(i),
    }
    for i in (3, 8, 0, 6, 1, 5, 2)
  ]
  return data.Source(Split(examples), Split(examples[:2]))


def _config(**arm):
  attack = {'name': 'pgd', 'norm': 'l2', 'num_steps': 1, 'relative_step': 0.5}
  return ml_collections.ConfigDict(
    {
      'experiment': 'toy',
      'seed': 0,
      'seeds': 1,
      'preset': 'test',
      'model': {'name': 'toy'},
      'augment': {},
      'train': {
        'steps': 2,
        'batch_size': 4,
        'optimisers': {'main': {'name': 'adamax', 'lr': 0.05}},
      },
      'arms': {
        'amat': {
          'defense': {'name': 'amat', 'attack': attack, 'step': 0.2, 'when': 'immediate'},
          'thresholds_from': 'std',
          'thresholds': {'estimator': 'mean', 'k': 1.0},
          **arm,
        },
        'std': {'defense': {'name': 'standard'}},
      },
      'evaluate': {
        'batch_size': 4,
        'levels': (0.1,),
        'attacks': {'pgd': {**attack, 'objective': 'bce'}},
      },
    }
  )


def _experiment(config, source, task=None, **more):
  task = task or toys.task()
  return experiment.Experiment(
    task=task,
    arms=experiment.make_arms(task, config, **more),
    data=experiment.Data(lambda: {'train': 7, 'test': 2}, lambda: source),
    grid=experiment.Grid(experiment.make_probes(task, config), 'pgd', checks={}),
    report=None,
  )


@pytest.mark.slow
def test_an_arm_waits_for_the_network_that_gives_its_thresholds(tmp_path, monkeypatch):
  monkeypatch.setattr(compiled, '_MAPPINGS_SHARE', 0.0)  # of the mappings that a process may have
  config, source = _config(), _source()
  exp = _experiment(config, source)
  command = commandline.Command(config, tmp_path, 'train', (), None, '', 0, -1, False)
  run = stages.Run(exp, config, command)
  assert run.order == ['std', 'amat']
  run.train(console.Stopper())
  # each arm's programs are let go of where they come near the limit of mappings
  assert len(backend.get_backend().live_executables()) < 10
  task = exp.task
  with np.load(tmp_path / 'checkpoints' / 'amat' / 'seed0' / 'thresholds.npz') as stored:
    kept = dict(stored)
  np.testing.assert_array_equal(kept['index'], [0, 1, 2, 3, 5, 6, 8])
  variables = checkpoints.load_variables(tmp_path / 'checkpoints/std/seed0/variables', task)
  batch = toys.batch(9)
  clean = np.asarray(task.losses(task.predict(variables, batch['image']), batch)['bce'])
  values = clean[kept['index']][:, None].astype(np.float64)
  np.testing.assert_allclose(kept['values'], values, rtol=1e-5)
  np.testing.assert_allclose(kept['xi'], values.mean(0) + values.std(0), rtol=1e-5)
  with (tmp_path / 'logs' / 'amat.seed0.margins.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  # two batches of 4 draw all 7, one of them twice: the largest index has its margin
  assert int(rows[-1]['drawn']) == 7
  with (tmp_path / 'logs' / 'train.csv').open(newline='') as file:
    assert {row['arm'] for row in csv.DictReader(file)} == {'std', 'amat'}


def test_out_of_memory_says_which_arm(tmp_path, monkeypatch, capsys):
  config = _config()
  exp = _experiment(config, _source())
  command = commandline.Command(config, tmp_path, 'train', (), None, '', 0, -1, False)

  def batches(*args, **kwargs):
    raise MemoryError

  monkeypatch.setattr(stages.pipeline, 'train_batches', batches)
  run = stages.Run(exp, config, command)
  assert tool.run(lambda words: run.train(console.Stopper()), []) == 2
  line = "robustmed: error: out of memory while training arm 'std' (seed 0)\n"
  assert capsys.readouterr().err.endswith(line)


def test_it_can_be_described_without_data():
  config = _config()
  exp = _experiment(config, None)
  told = description.describe(exp, config, light=True)['passes']['per_arm']
  assert told == {'std': 2 * 4, 'amat': 2 * 4 * (1 + 1 + 2) + 7}
  assert description.describe(exp, config, ('amat',))['arms']['amat']['needs'] == ['std']
  assert experiment.training_order(exp.arms, ('amat',)) == (['std', 'amat'], ['std'])


def _finished(tmp_path, source, load=None):
  variables = toys.task().init(jax.random.key(0))
  config = ml_collections.ConfigDict({'evaluate': {'batch_size': 4}})
  return preparation.Finished(load or (lambda arm: variables), source, config, 0, tmp_path)


def test_what_was_estimated_once_is_kept(tmp_path):
  prepare = _experiment(_config(), None).arms['amat'].prepared.defense
  first = prepare(_finished(tmp_path, _source())).init(3)['xi']

  def explode(arm):
    raise AssertionError('nothing was to be loaded')

  again = prepare(_finished(tmp_path, None, explode)).init(3)['xi']
  np.testing.assert_array_equal(first, again)
  (tmp_path / 'thresholds.npz').write_text('nonsense')
  with pytest.raises(errors.UserError, match=r'thresholds\.npz is damaged'):
    prepare(_finished(tmp_path, None, explode))


def test_larger_images_are_cut_at_their_centre(tmp_path):
  large = _source(side=toys.SIDE + 4)
  plain = (
    _experiment(_config(), None).arms['amat'].prepared.defense(_finished(tmp_path / 'a', _source()))
  )
  cut = _experiment(_config(), None).arms['amat'].prepared.defense(_finished(tmp_path / 'b', large))
  np.testing.assert_allclose(cut.init(1)['xi'], plain.init(1)['xi'], rtol=1e-6)


def _in_strata(**thresholds):
  """The preparation of an arm whose task has odd and even examples, and a kind without any."""
  kinds = types.Strata(('even', 'odd', 'none'), lambda batch: batch['index'] % 2)
  config = _config(thresholds={'estimator': 'mean', **thresholds})
  config.arms.amat.defense.strata = 'stratum' not in thresholds
  exp = _experiment(config, None, toys.task()._replace(strata=kinds))
  return exp.arms['amat'].prepared.defense


def test_thresholds_within_strata_and_of_one_stratum(tmp_path):
  xi = _in_strata()(_finished(tmp_path / 'all', _source())).init(1)['xi']
  odd = _in_strata(stratum=1)(_finished(tmp_path / 'odd', _source())).init(1)['xi']
  with np.load(tmp_path / 'all' / 'thresholds.npz') as stored:
    kept = dict(stored)
  np.testing.assert_array_equal(kept['stratum'], kept['index'] % 2)
  means = [kept['values'][kept['stratum'] == place].mean(axis=0) for place in (0, 1)]
  np.testing.assert_allclose(xi, [*means, [np.nan]], rtol=1e-6)
  np.testing.assert_allclose(odd, means[1], rtol=1e-6)
  with np.load(tmp_path / 'odd' / 'thresholds.npz') as stored:
    assert stored['index'].tolist() == [1, 3, 5] and set(stored['stratum']) == {1}
  with pytest.raises(errors.UserError, match="no training example is of the stratum 'none'"):
    _in_strata(stratum=-1)(_finished(tmp_path / 'none', _source()))


def test_thresholds_that_an_earlier_version_stored_are_used_or_refused_in_one_line(tmp_path):
  np.savez(tmp_path / 'thresholds.npz', values=np.ones((3, 1)), index=np.arange(3), xi=[0.25])
  finished = _finished(tmp_path, None, load=None)
  plain = _experiment(_config(), None).arms['amat'].prepared.defense
  assert plain(finished).init(1)['xi'].tolist() == [0.25]
  assert _in_strata(stratum=1)(finished).init(1)['xi'].tolist() == [0.25]
  message = (
    r'thresholds\.npz has thresholds of shape \(1,\), not a row for each of 3 strata; .*delete'
  )
  with pytest.raises(errors.UserError, match=message):
    _in_strata()(finished)


def test_strata_and_one_stratum_exclude_each_other():
  for options, message in (
    ({'stratum': 3}, 'there are 3 strata'),
    ({'stratum': -4}, 'there are 3 strata'),
  ):
    with pytest.raises(errors.UserError, match=message):
      _in_strata(**options)
  config = _config(thresholds={'stratum': 0})
  with pytest.raises(errors.UserError, match='this task has no strata'):
    _experiment(config, None)
  config.arms.amat.defense.strata = True
  kinds = types.Strata(('all',), lambda batch: batch['index'] * 0)
  with pytest.raises(errors.UserError, match='leave one out'):
    _experiment(config, None, toys.task()._replace(strata=kinds))


def test_targets_on_the_grid_of_the_image_are_cut_with_it():
  batch = {
    'image': jnp.arange(2 * 6 * 5).reshape(2, 6, 5, 1),
    'target': {'mask': jnp.arange(60).reshape(2, 6, 5), 'contour': jnp.zeros((2, 7, 2))},
  }
  cut = preparation.centre_crop(batch, (4, 4, 1))
  np.testing.assert_array_equal(cut['target']['mask'], cut['image'][..., 0])
  np.testing.assert_array_equal(cut['image'][0, :, :, 0], np.arange(30).reshape(6, 5)[1:5, 0:4])
  assert cut['target']['contour'].shape == (2, 7, 2)
  with pytest.raises(errors.UserError, match=r"smaller than the network's input \(8, 4\)"):
    preparation.centre_crop(batch, (8, 4, 1))


def test_room_in_the_memory():
  arms = _experiment(_config(), None).arms
  assert preparation.memory_slots(arms['std'].defense, _source().train) == 7
  given = experiment.make_defense(
    toys.task(), {**_config().arms.amat.defense.to_dict(), 'thresholds': (0.5,)}
  )
  assert preparation.memory_slots(given, _source().train) == 9


@pytest.mark.parametrize(
  'arm, message',
  [
    ({'thresholds_from': 'stt'}, r"needed by amat\) 'stt'; did you mean 'std'"),
    ({'thresholds': {'estimater': 'max'}}, "unknown field of thresholds 'estimater'"),
    ({'defense': {'name': 'standard'}}, "unknown field of defense 'standard' 'thresholds'"),
    ({'thresholds_from': ''}, 'amat needs thresholds'),
  ],
)
def test_mistakes_are_found_before_training(arm, message):
  with pytest.raises(errors.UserError, match=message):
    experiment.training_order(_experiment(_config(**arm), None).arms)


def test_thresholds_are_given_once():
  config = _config()
  config.arms.amat.defense.thresholds = (0.5,)
  with pytest.raises(errors.UserError, match='both thresholds and thresholds_from'):
    _experiment(config, None)


def _distilling(**student):
  config = _config()
  del config.arms.amat
  del config.arms.std
  config.arms.student = {
    'defense': {'name': 'distillation', 'temperature': 20.0},
    'teacher_from': 'teacher',
    **student,
  }
  config.arms.teacher = {
    'defense': {'name': 'distillation', 'temperature': 20.0, 'stage': 'teacher'}
  }
  config.model.logit_gain = 1.0
  return config


def test_a_student_has_the_finished_teacher_in_its_memory(tmp_path):
  config, source = _distilling(), _source()
  exp = _experiment(config, source)
  told = description.describe(exp, config, light=True)['passes']['per_arm']
  assert told == {'student': 2 * 4 * 2, 'teacher': 2 * 4}  # the student sees the teacher's outputs
  assert description.describe(exp, config, ('student',))['arms']['student']['needs'] == ['teacher']
  command = commandline.Command(config, tmp_path, 'train', (), None, '', 0, -1, False)
  run = stages.Run(exp, config, command)
  assert run.order == ['teacher', 'student']
  run.train(console.Stopper())
  folder = tmp_path / 'checkpoints'
  teacher = checkpoints.load_variables(folder / 'teacher/seed0/variables', exp.task)
  defense = exp.arms['student'].prepared.defense(_finished(tmp_path, source, lambda arm: teacher))
  toys.assert_equal_trees(defense.init(1)['teacher'], teacher)
  student = checkpoints.load_variables(folder / 'student/seed0/variables', exp.task)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(student), jax.tree.leaves(teacher)))


def test_a_copy_is_the_trained_network_and_other_keys_are_other_trainings(tmp_path):
  config, source = _distilling(), _source()
  student = config.arms.student.to_dict()
  config.arms.update({'again': student, 'other': {**student, 'key': 1}})
  config.arms.copied = {'defense': config.arms.student.defense, 'copy_of': 'student'}
  exp = _experiment(config, source)
  assert exp.arms['copied'].needs == ('student',)
  told = description.describe(exp, config, light=True)['passes']['per_arm']
  assert told['copied'] == 0 < told['student']
  stages.Run(
    exp, config, commandline.Command(config, tmp_path, 'train', (), None, '', 0, -1, False)
  ).train(console.Stopper())
  found = {
    name: checkpoints.load_variables(tmp_path / f'checkpoints/{name}/seed0/variables', exp.task)
    for name in exp.arms
  }
  for name in ('copied', 'again'):  # equal keys: equal training
    toys.assert_equal_trees(found[name], found['student'])
  apart = jax.tree.map(lambda a, b: np.any(a != b), found['other'], found['student'])
  assert any(jax.tree.leaves(apart))
  assert not (tmp_path / 'logs' / 'copied.seed0.csv').exists()
  with pytest.raises(errors.UserError, match="'studnt'; did you mean 'student'"):
    config.arms.copied.copy_of = 'studnt'
    _experiment(config, source)


@pytest.mark.parametrize(
  'student, message',
  [
    ({'teacher_from': 'techer'}, "'techer'; did you mean 'teacher'"),
    ({'teacher_from': ''}, 'distillation needs a teacher'),
    (
      {'model': {'logit_gain': 20.0}},
      "student' has model.logit_gain=20.0, its teacher 'teacher' has 1",
    ),
    (
      {'defense': {'name': 'distillation', 'temperature': 2.0, 'teacher': (1.0,)}},
      'both teacher and teacher_from',
    ),
    ({'defense': {'name': 'standard'}}, "unknown field of defense 'standard' 'teacher'"),
  ],
)
def test_mistakes_about_teachers(student, message):
  with pytest.raises(errors.UserError, match=message):
    _experiment(_distilling(**student), None, make_task=lambda model: toys.task())

"""A run over all folds on toys: data, networks, attacks and tables of one fold belong together."""

import jax
import ml_collections
import numpy as np
import pandas as pd
import pytest

from robustmed import data, errors
from robustmed.evaluation import trials
from robustmed.process import console
from robustmed.runs import commandline, description, experiment, forecast, networks, plan, stages
from robustmed.training import checkpoints
from support import toys

pytestmark = pytest.mark.slow

FOLDS, COUNT = 2, 12
ARMS = ('std', 'amat')


class Split(list):
  @property
  def groups(self):
    return [example['group'] for example in self]

  def stack(self, feature):
    return np.stack([example[feature] for example in self])


def _source(fold):
  batch = toys.batch(COUNT)
  examples = [
    {
      'image': batch['image'][i],
      'label': batch['target']['label'][i],
      'index': i,
      'group': i // 2,
      'name': str(i),
    }
    for i in range(COUNT)
  ]
  tested = lambda example: example['group'] % FOLDS == fold
  train, test = (Split(e for e in examples if tested(e) == held) for held in (False, True))
  return data.Source(train, test)


def _config(seeds=1):
  attack = {'name': 'pgd', 'norm': 'l2', 'num_steps': 1, 'relative_step': 0.5}
  return ml_collections.ConfigDict(
    {
      'experiment': 'toy',
      'seed': 0,
      'seeds': seeds,
      'preset': 'test',
      'model': {'name': 'toy'},
      'augment': {},
      'train': {
        'steps': 2,
        'batch_size': 4,
        'optimisers': {'main': {'name': 'adamax', 'lr': 0.05}},
        'checkpoint_every': 1,
        'log_every': 1,
      },
      'arms': {
        'amat': {
          'defense': {'name': 'amat', 'attack': attack, 'step': 0.2, 'when': 'immediate'},
          'thresholds_from': 'std',
        },
        'std': {'defense': {'name': 'standard'}},
      },
      'evaluate': {
        'batch_size': 4,
        'save_examples': 0,
        'levels': (0.1,),
        'attacks': {
          'pgd': {**attack, 'objective': 'bce'},
          'transfer': {**attack, 'objective': 'bce', 'source': 'std'},
        },
      },
      'report': {'pictures': 0},
    }
  )


def _experiment(config, folds=FOLDS):
  task = toys.task()
  of = lambda fold: experiment.Data(
    lambda: {'train': COUNT // 2, 'test': COUNT // 2}, lambda: _source(fold), groups=lambda: 3
  )
  checks = {'metric': 'accuracy', 'higher_is_better': True}
  return experiment.Experiment(
    task=task,
    arms=experiment.make_arms(task, config),
    data=experiment.over_folds([of(fold) for fold in range(folds)]) if folds else of(0),
    grid=experiment.Grid(experiment.make_probes(task, config), 'pgd', checks=checks),
    report=None,
  )


def _run(folder, exp=None, config=None):
  config = config or _config()
  command = commandline.Command(config, folder, 'all', (), None, '', 0, -1, False)
  return stages.Run(exp or _experiment(config), config, command)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """A finished run."""
  run = _run(tmp_path_factory.mktemp('folds') / 'run')
  run.train(console.Stopper())
  run.evaluate(console.Stopper())
  return run


def _rows(run):
  return pd.read_parquet(run.folder / 'results' / 'rows.parquet')


def test_every_fold_has_networks_logs_and_cards_of_its_own(done):
  for arm in ARMS:
    for fold in range(FOLDS):
      folder = done.folder / 'checkpoints' / arm / 'seed0' / f'fold{fold}'
      card = checkpoints.read_card(folder)
      assert (card['arm'], card['seed'], card['fold']) == (arm, 0, fold)
      assert (done.folder / 'logs' / f'{arm}.seed0.fold{fold}.csv').is_file()
  log = pd.read_csv(done.folder / 'logs' / 'train.csv')
  assert list(log.columns[:3]) == ['arm', 'seed', 'fold']
  assert log.groupby('arm')['fold'].agg(set).to_dict() == {arm: {0, 1} for arm in ARMS}
  assert done.networks.untrained(ARMS) == []


def test_thresholds_are_those_of_the_folds_own_network_and_training_examples(done):
  batch = toys.batch(COUNT)
  for fold in range(FOLDS):
    folder = done.folder / 'checkpoints' / 'amat' / 'seed0' / f'fold{fold}'
    with np.load(folder / 'thresholds.npz') as stored:
      index, values = stored['index'], stored['values']
    assert (index // 2 % FOLDS != fold).all() and len(index) == COUNT // 2
    variables = done.networks.load('std', trials.Trial(0, fold))
    clean = toys.task().losses(toys.task().predict(variables, batch['image']), batch)['bce']
    np.testing.assert_allclose(values[:, 0], np.asarray(clean)[index], rtol=1e-5)


def test_rows_are_of_the_network_that_never_saw_the_example(done):
  rows, batch = _rows(done), toys.batch(COUNT)
  assert (rows['group'] % FOLDS == rows['fold']).all()
  assert set(rows['attack']) == {'none', 'pgd', 'transfer'}
  for _, cell in rows.groupby(['arm', 'attack', 'eps']):
    assert sorted(cell['index']) == list(range(COUNT))
  clean = rows[(rows['arm'] == 'amat') & (rows['attack'] == 'none')].set_index('index')
  moved = rows[(rows['arm'] == 'amat') & (rows['attack'] == 'transfer')].set_index('index')
  evaluator = done.networks.evaluator()
  for fold in range(FOLDS):
    own, std = (done.networks.load(arm, trials.Trial(0, fold)) for arm in ('amat', 'std'))
    value = toys.task().objectives['bce'](toys.task().predict(own, batch['image']), batch)
    images, _ = evaluator.attack(std, batch, 'transfer', 0.1)
    here = clean.index[clean['fold'] == fold].to_numpy()
    np.testing.assert_allclose(clean['_value'][here], np.asarray(value)[here], rtol=1e-5)
    brightness = np.asarray(images).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(moved['brightness'][here], brightness[here], rtol=1e-5)


def test_the_summary_pools_the_folds(done):
  table = pd.read_csv(done.folder / 'results' / 'summary.csv', keep_default_na=False)
  assert set(table['metric']) == {'accuracy', 'brightness'} and (table['n'] == COUNT).all()


def test_all_folds_are_counted(done, tmp_path):
  exp, config = done.exp, done.config
  images = 8  # six of a fold in two batches; an attack, its last point and a score
  std, amat, clean, pgd = 2 * 4, 2 * 4 * (1 + 1 + 2), images, images * (1 + 1 + 1)
  told = description.describe(exp, config)
  assert told['folds'] == FOLDS and told['steps'] == 2 * FOLDS * 2
  assert told['data'] == {'fold0': {'train': 6, 'test': 6}, 'fold1': {'train': 6, 'test': 6}}
  whole = told['passes']
  assert whole['train'] == FOLDS * (std + amat + COUNT // 2)  # with the thresholds'
  assert whole['evaluate'] == FOLDS * (
    2 * (clean + pgd) + pgd
  )  # amat also meets those made for std
  models = done.networks.models(ARMS)
  left = lambda results, *names: (
    forecast.remaining(exp, config, untrained=names, models=models, results=results).passes
  )
  assert left(done.folder / 'results') == 0
  assert left(tmp_path, *ARMS * FOLDS) == whole['total'] == whole['train'] + whole['evaluate']
  assert left(tmp_path) == whole['evaluate']
  waves = plan.make(exp, config, order=ARMS, unfinished=ARMS, jobs=2)
  one = plan.make(_experiment(config, folds=0), config, order=ARMS, unfinished=ARMS, jobs=2)
  costs = lambda waves: [job.cost for wave in waves for job in wave.jobs]
  assert costs(waves) == [FOLDS * cost for cost in costs(one)]


def test_a_run_says_what_its_folds_can_tell(done):
  (line,) = description.announcement(done.exp)
  assert line.startswith(
    '2 folds are one run: every arm is trained in each, and tested on 6 groups'
  )
  assert line.endswith('verdicts are conditional on these networks')
  assert description.announcement(_experiment(done.config, folds=0)) == []


def test_stopped_between_folds_it_goes_on_to_the_same_rows(done, tmp_path):
  class After(console.Stopper):
    """Asks for an end once a file is there."""

    def __init__(self, path):
      super().__init__()
      self.path = path

    def requested(self):
      return self.path.exists()

  run = _run(tmp_path)
  first = run.networks.final('std', trials.Trial(0, 1))
  with pytest.raises(console.Stopped):
    run.train(After(first))
  assert run.networks.untrained(ARMS) == [('amat', (0, 1))]
  kept = (run.folder / 'logs' / 'std.seed0.fold1.csv').read_bytes()
  run = _run(tmp_path)
  run.train(console.Stopper())
  assert (run.folder / 'logs' / 'std.seed0.fold1.csv').read_bytes() == kept
  cell = run.folder / 'results' / 'parts' / 'std.seed0.fold1.none.0.parquet'
  with pytest.raises(console.Stopped):
    run.evaluate(After(cell))
  _run(tmp_path).evaluate(console.Stopper())
  pd.testing.assert_frame_equal(_rows(run), _rows(done), check_exact=True)


def test_a_saved_network_is_tested_on_the_cases_of_its_fold(done, tmp_path):
  config = _config()
  saved = done.folder / 'checkpoints' / 'std' / 'seed0' / 'fold1'
  (model,) = networks.Networks(done.exp, config, tmp_path).imported(saved)
  assert model.trial == (0, 1)
  jax.tree.map(np.testing.assert_array_equal, model.load(), done.networks.load('std', model.trial))
  elsewhere = networks.Networks(_experiment(config, folds=0), config, tmp_path)
  assert elsewhere.imported(saved)[0].trial == (0,)
  card = checkpoints.read_card(saved)
  checkpoints.write_card(tmp_path, {k: v for k, v in card.items() if k != 'fold'})
  with pytest.raises(errors.UserError, match='of none of the 2 folds'):
    networks.Networks(done.exp, config, tmp_path).imported(tmp_path)


def test_data_of_a_run_over_folds_are_those_of_one_of_them():
  exp = _experiment(_config())
  with pytest.raises(ValueError, match='one source for each'):
    exp.data_of().load()
  assert exp.trials(2) == [(0, 0), (0, 1), (1, 0), (1, 1)]
  assert _experiment(_config(), folds=0).trials(2) == [(0,), (1,)]

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import attacks, errors
from robustmed.evaluation import examples, grid, movement, stored_tables, trials
from robustmed.process import console, parallel, tool
from support import toys

PGD = attacks.pgd(num_steps=3, relative_step=0.5, bounds=(0.0, 1.0))


def _evaluator(task, **more):
  probes = {'pgd': grid.Probe(PGD, 'bce', (0.05, 0.2)), **more}
  return grid.Evaluator(task, probes, key=jax.random.key(5), main='pgd')


def _batches():
  whole = [toys.batch(6), toys.batch(4, start=6)]
  return [parallel.pad(batch, 6) for batch in whole]


def _models(task):
  return [
    grid.Model(arm, trials.Trial(0), lambda seed=seed: task.init(jax.random.key(seed)))
    for seed, arm in enumerate(('std', 'adv'))
  ]


def _run(folder, task, *, stopper=None, evaluator=None):
  return grid.run(
    evaluator or _evaluator(task),
    _models(task),
    batches=_batches,
    folder=folder,
    stopper=stopper or console.Stopper(),
  )


def test_rows_are_complete_sorted_and_right(tmp_path):
  task = toys.task()
  rows = _run(tmp_path, task)
  assert list(rows.columns[:6]) == list(grid.KEYS)
  assert len(rows) == 2 * 3 * 10 and not rows.isna().any().any()
  assert sorted(rows['index'].unique()) == list(range(10))
  clean = rows[(rows.arm == 'std') & (rows.attack == 'none')].sort_values('index')
  batch = toys.batch(10)
  outputs = task.predict(
    task.init(jax.random.key(0)), np.concatenate([b['image'] for b in _valid()])
  )
  value = task.objectives['bce'](outputs, {'target': {'label': _labels()}})
  np.testing.assert_allclose(clean['_value'], value, rtol=1e-5)
  np.testing.assert_array_equal(clean['group'], batch['group'])
  for eps in (0.05, 0.2):
    cell = rows[(rows.arm == 'std') & (rows.eps == eps)].sort_values('index')
    np.testing.assert_allclose(cell['_start'], value, rtol=1e-5)
    assert (cell['_distance'] <= eps + 1e-6).all() and (cell['_value'] > cell['_start']).all()
    np.testing.assert_allclose(cell['_gain'], cell['_value'] - cell['_start'])
    assert not cell[list(FLAGS)].to_numpy().any()


FLAGS = {'_not_moved': '_distance', '_not_finite': '_value.bce', '_no_gradient': '_zero_grad'}


def test_what_an_attack_could_not_do_is_in_its_rows(tmp_path):
  table = pd.DataFrame({'index': range(4), 'arm': 'std', 'seed': 0, 'group': 0, 'eps': 0.1})
  good = {'_distance': 0.1, '_value.bce': 1.0, '_zero_grad': 0.2, 'attack': 'pgd'}
  bad = {'_distance': 0.0, '_value.bce': np.nan, '_zero_grad': 1.0}
  attacked = table.assign(**good)
  for number, (column, value) in enumerate(bad.items()):
    attacked.loc[number, column] = value
  clean = table.assign(**{**good, **bad, 'attack': grid.CLEAN, 'eps': 0.0})
  wanted = [
    grid.Cell('std', trials.Trial(0), name, eps) for name, eps in ((grid.CLEAN, 0), ('pgd', 0.1))
  ]
  for cell, part in zip(wanted, (clean, attacked), strict=True):
    part.to_parquet(tmp_path / cell.file)
  probes = {'pgd': grid.Probe(PGD, 'bce', (0.1,))}
  rows = grid.collect(tmp_path, wanted, probes, main='bce')
  found = rows[rows['attack'] == 'pgd'][list(FLAGS)].to_numpy()
  np.testing.assert_array_equal(found, np.eye(4)[:, :3])
  assert not rows[rows['attack'] == grid.CLEAN][list(FLAGS)].to_numpy().any()


def _valid():
  return [jax.tree.map(lambda leaf: leaf[np.asarray(b['mask'])], b) for b in _batches()]  # noqa: B023


def _labels():
  return np.concatenate([b['target']['label'] for b in _valid()])


def test_metrics_see_the_attacked_image(tmp_path):
  rows = _run(tmp_path, toys.task())
  change = rows.pivot_table(index=['arm', 'index'], columns='eps', values='brightness')
  assert (change[0.2] != change[0.0]).all()


class _StopAt(console.Stopper):
  def __init__(self, after):
    super().__init__()
    self._left = after

  def requested(self):
    self._left -= 1
    return self._left < 0


@pytest.mark.slow
@pytest.mark.parametrize('after', [0, 1, 4])
def test_a_stopped_grid_goes_on_to_the_same_rows(tmp_path, after):
  task = toys.task()
  whole = _run(tmp_path / 'whole', task)
  with pytest.raises(console.Stopped):
    _run(tmp_path / 'cut', task, stopper=_StopAt(after))
  assert len(list((tmp_path / 'cut').glob('*.parquet'))) == after
  pd.testing.assert_frame_equal(_run(tmp_path / 'cut', task), whole)
  evaluator = _evaluator(task)
  evaluator._attack = evaluator._score = None  # nothing is left to be done
  pd.testing.assert_frame_equal(_run(tmp_path / 'cut', task, evaluator=evaluator), whole)


def test_pieces_are_files_of_their_kind_and_made_once(tmp_path):
  made = []

  def piece(file, value):
    table = lambda: made.append(file) or pd.DataFrame({'arm': ['std'], 'value': [value]})
    return stored_tables.Table(file, table, f'piece {file}', file)

  pieces = [piece('a.csv', 1 / 3), piece('b.parquet', 2 / 3), piece('c.csv', np.nan)]
  fill = lambda stopper: stored_tables.fill_missing(
    'pieces', pieces, folder=tmp_path, stopper=stopper
  )
  with pytest.raises(console.Stopped):
    fill(_StopAt(1))
  assert made == ['a.csv'] and (tmp_path / 'a.csv').read_text() == 'arm,value\nstd,0.333333\n'
  fill(console.Stopper())
  fill(console.Stopper())
  assert made == ['a.csv', 'b.parquet', 'c.csv']
  assert pd.read_parquet(tmp_path / 'b.parquet')['value'].tolist() == [2 / 3]

  def broken():
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError) as caught:
    stored_tables.fill_missing(
      'pieces',
      [stored_tables.Table('d.csv', broken, 'piece d', 'd')],
      folder=tmp_path,
      stopper=console.Stopper(),
    )
  assert caught.value.__notes__ == ['while evaluating piece d']
  assert not (tmp_path / 'd.csv').exists()


def test_one_program_serves_all_arms_and_levels(tmp_path):
  task = toys.task()
  traces = []

  def counted(objective, x, **kwargs):
    traces.append(x.shape)
    return PGD(objective, x, **kwargs)

  counted.minimise, counted.judged = PGD.minimise, PGD.judged
  evaluator = _evaluator(task)
  evaluator.probes['pgd'] = grid.Probe(counted, 'bce', (0.01, 0.05, 0.1, 0.2))
  evaluator._attack['pgd'] = grid.attack_program(task, evaluator.probes['pgd'])
  _run(tmp_path, task, evaluator=evaluator)
  assert len(traces) == 1


def test_every_example_has_its_own_level():
  task = toys.task()
  evaluator, variables = _evaluator(task), task.init(jax.random.key(0))
  levels = np.array([0.02, 0.1, 0.05, 0.1, 0.0, 0.03, 0.1, 0.1, 0.1, 0.1, 0.2])
  own = grid.scored(
    evaluator, variables, _batches(), attack='pgd', eps_of=lambda batch: levels[batch['index']]
  )
  same = grid.scored(evaluator, variables, _batches(), attack='pgd', eps_of=lambda batch: 0.1)
  assert (own['_distance'] <= levels[own['index']] + 1e-6).all()
  alike = levels[own['index']] == 0.1
  assert 3 < alike.sum() < len(own)
  pd.testing.assert_frame_equal(own[alike], same[alike])


def test_metrics_of_the_host_see_all_examples_of_a_cell(tmp_path):
  task, seen = toys.task(), []

  def columns(kept):
    seen.append(len(kept['logit']))
    return {'rank': kept['logit'][:, 0].argsort().argsort(), 'own': kept['index']}

  kept = lambda outputs, batch: {'logit': outputs['logit'], 'index': batch['index']}
  evaluator = _evaluator(task)
  evaluator.host = grid.HostMetrics(kept, columns)
  rows = _run(tmp_path, task, evaluator=evaluator)
  assert set(seen) == {10} and (rows['own'] == rows['index']).all()
  cell = rows[(rows['arm'] == 'std') & (rows['attack'] == grid.CLEAN)]
  assert sorted(cell['rank']) == list(range(10))


def test_an_example_is_attacked_alike_alone_and_in_a_batch():
  task = toys.task()
  evaluator, variables = _evaluator(task), task.init(jax.random.key(0))
  found = list(
    examples.attack(evaluator, variables, _batches, attack='pgd', eps=0.1, wanted=[7, 2])
  )
  assert [int(one.example['index']) for one in found] == [2, 7]
  alone = jax.tree.map(lambda leaf: leaf[2:4], toys.batch(6))
  images, _ = evaluator.attack(variables, grid.device_batch(alone), 'pgd', 0.1)
  np.testing.assert_allclose(np.asarray(images)[0], found[0].image, atol=1e-6)
  again = task.predict(variables, found[1].image[None])['logit'][0]
  np.testing.assert_allclose(found[1].attacked['logit'], again, atol=1e-5)


def test_an_attack_that_is_judged_by_a_metric_hands_over_its_worst_iterate(tmp_path):
  """The metric wants dark images, the objective another thing: the darkest iterate is kept."""
  task = toys.task()
  dark = lambda outputs, batch: {'light': jnp.mean(batch['image'], axis=(1, 2, 3))}
  task = task._replace(metrics=dark)
  trace = attacks.pgd(
    num_steps=3, relative_step=0.5, bounds=(0.0, 1.0), select='monitor', fold='trace'
  )
  probes = {name: grid.Probe(trace, 'bce', (0.2,)) for name in ('pgd', 'judged')}
  make = lambda judge: grid.Evaluator(task, probes, key=jax.random.key(5), main='pgd', judge=judge)
  with pytest.raises(errors.UserError, match='needs a metric to choose by'):
    make(None)
  rows = {
    name: _run(tmp_path / name, task, evaluator=make(('light', name == 'dark')))
    for name in ('dark', 'bright')
  }
  attacked = {name: found[found.attack == 'judged'] for name, found in rows.items()}
  assert (attacked['dark']['light'].to_numpy() <= attacked['bright']['light'].to_numpy()).all()
  assert attacked['dark']['light'].mean() < attacked['bright']['light'].mean()
  assert attacked['dark']['_gain'].isna().all()  # its objective is not what it is chosen by


def test_a_transfer_attack_looks_at_one_arm_and_meets_the_others(tmp_path):
  task = toys.task()
  evaluator = _evaluator(task, moved=grid.Probe(PGD, 'bce', (0.2,), 'std'))
  models = {model.arm: model for model in _models(task)}
  rows = grid.run(
    evaluator,
    list(models.values()),
    batches=_batches,
    folder=tmp_path,
    stopper=console.Stopper(),
    source=lambda arm, seed: models[arm],
  )
  moved = rows[rows['attack'] == 'moved']
  assert set(moved['arm']) == {'adv'} and len(moved) == 10
  std, adv = (models[arm].load() for arm in ('std', 'adv'))
  wanted = []
  for batch in map(grid.device_batch, _batches()):
    images, _ = evaluator.attack(std, batch, 'moved', 0.2)
    columns = evaluator.score(adv, batch, images).columns
    wanted.append(np.asarray(columns['brightness'])[np.asarray(batch['mask'])])
  found = moved.sort_values('index')['brightness']
  np.testing.assert_allclose(found, np.concatenate(wanted), rtol=1e-6)
  assert moved['_gain'].isna().all()  # it did not climb there


def test_outputs_beside_their_targets_are_stored_of_clean_images(tmp_path):
  plain = toys.task()
  task = plain._replace(
    compared=lambda outputs, batch: {
      'label': (jax.nn.sigmoid(outputs['logit']), batch['target']['label'])
    }
  )
  rows = _run(tmp_path, task)
  clean = rows['attack'] == grid.CLEAN
  columns = [name for name in rows.columns if movement.is_column(name)]
  assert len(columns) == 2 * movement.SKETCHES
  assert rows.loc[clean, columns].notna().all().all()
  assert rows.loc[~clean, columns].isna().all().all()
  here = rows[clean & (rows['arm'] == 'std')].sort_values('index')
  np.testing.assert_allclose(here['_target.label.0'].abs(), _labels()[:, 0])
  images = np.concatenate([batch['image'] for batch in _valid()])
  logit = plain.predict(plain.init(jax.random.key(0)), images)['logit']
  wanted = jax.nn.sigmoid(logit)[:, 0]
  np.testing.assert_allclose(here['_output.label.0'].abs(), wanted, rtol=1e-5)


def test_an_attack_that_minimises_gains_by_going_down(tmp_path):
  task = toys.task()
  down = attacks.make('tifgsm', num_steps=3, relative_step=0.5, bounds=(0.0, 1.0))
  evaluator = _evaluator(task, down=grid.Probe(down, 'bce', (0.2,)))
  rows = _run(tmp_path, task, evaluator=evaluator)
  here = rows[rows['attack'] == 'down']
  assert (here['_value'] < here['_start']).all() and (here['_gain'] > 0).all()


@pytest.mark.parametrize(
  ('wrong', 'says'),
  [
    (
      {'metrics': lambda outputs, batch: {'dice': jnp.mean(outputs['logit'])}},
      "'dice' of the task",
    ),
    ({'metrics': lambda outputs, batch: outputs['logit']}, "task's metrics must return a dict"),
    ({'diagnostics': lambda outputs: {'_flat': outputs['logit']}}, r"'_flat' of .*\(3, 1\)"),
    ({'objectives': {'bce': lambda outputs, batch: outputs['logit']}}, r"'bce' must .*\(3, 1\)"),
  ],
)
def test_what_a_task_returns_is_checked(wrong, says):
  task = toys.task()._replace(**wrong)
  evaluator, batch = _evaluator(task), toys.batch(6)
  with pytest.raises(errors.UserError, match=says):
    evaluator.score(task.init(jax.random.key(0)), batch, batch['image'])


@pytest.mark.parametrize('at, what', [(1, 'without attack'), (2, "under 'pgd' at 0.05")])
def test_out_of_memory_says_which_cell(tmp_path, capsys, at, what):
  task = toys.task()
  evaluator, calls = _evaluator(task), []

  class Full(grid.Evaluator):
    def __init__(self):
      self.probes, self.main_objective = evaluator.probes, evaluator.main_objective
      self.host = None

    def attack(self, *args):
      calls.append(1)
      if len(calls) > 2 * (at - 1):  # two batches a cell
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')
      return evaluator.attack(*args)

    def score(self, *args):
      return evaluator.score(*args)

  assert tool.run(lambda words: _run(tmp_path, task, evaluator=Full()), [], memory='less') == 2
  line = f"out of memory while evaluating arm 'std' (seed 0) {what}; less"
  # a slow machine shows progress before
  assert capsys.readouterr().err.endswith(f'robustmed: error: {line}\n')


def test_an_unknown_objective_is_a_user_error():
  with pytest.raises(errors.UserError, match="unknown objective 'dice'"):
    _evaluator(toys.task(), other=grid.Probe(PGD, 'dice', (0.1,)))


def test_networks_finished_by_other_calls_join_the_rows(tmp_path):
  task = toys.task()
  whole = _run(tmp_path / 'whole', task)
  evaluator, folder = _evaluator(task), tmp_path / 'parts'
  std, adv = _models(task)
  options = {'batches': _batches, 'folder': folder, 'stopper': console.Stopper()}
  assert grid.finished(evaluator, [std, adv], folder=folder) == []
  alone = grid.run(evaluator, [adv], **options)
  assert set(alone['arm']) == {'adv'}
  assert grid.finished(evaluator, [std, adv], folder=folder) == [adv]
  with pytest.raises(console.Stopped):
    grid.run(evaluator, [std, adv], **{**options, 'stopper': _StopAt(2)})
  assert grid.finished(evaluator, [std, adv], folder=folder) == [adv]  # half of std is not std
  grid.run(evaluator, [std], **options)
  both = grid.finished(evaluator, [std, adv], folder=folder)
  assert both == [std, adv]
  pd.testing.assert_frame_equal(grid.gather(evaluator, both, folder=folder), whole)

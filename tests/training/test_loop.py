import csv

import jax
import numpy as np
import optax
import pytest

from robustmed import attacks, errors
from robustmed.defenses import amat, standard
from robustmed.process import console, memory
from robustmed.training import checkpoints, loop, step
from robustmed.training import state as train_state
from support import toys

CONFIG = {
  'steps': 7,
  'optimisers': {'main': {'name': 'adamax', 'lr': 0.05}},
  'log_every': 2,
  'checkpoint_every': 3,
}


class StopAt(console.Stopper):
  """Asks for a stop after so many questions, as SIGTERM would."""

  def __init__(self, after):
    super().__init__()
    self._left = after

  def requested(self):
    self._left -= 1
    return self._left < 0


def _fit(folder, *, stopper=None, config=None, **kwargs):
  task = toys.task()
  return loop.fit(
    'std',
    task=task,
    defense=kwargs.pop('defense', standard.make)(task),
    batches=kwargs.pop('batches', toys.stream()),
    config={**CONFIG, **(config or {})},
    folder=folder / 'state',
    log=folder / 'logs' / 'std.csv',
    key=jax.random.key(0),
    num_examples=48,
    stopper=stopper or console.Stopper(),
    **kwargs,
  )


def _log(folder):
  with (folder / 'logs' / 'std.csv').open(newline='') as file:
    return [{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize('stop_after', [0, 2, 3, 5])
def test_stopping_and_going_on_changes_nothing(tmp_path, stop_after):
  whole = _fit(tmp_path / 'whole')
  with pytest.raises(console.Stopped) as ended:
    _fit(tmp_path / 'cut', stopper=StopAt(stop_after))
  assert ended.value.code == 143
  store = checkpoints.Store(tmp_path / 'cut' / 'state')
  assert store.latest() == stop_after + 1
  store.close()
  toys.assert_equal_trees(_fit(tmp_path / 'cut'), whole)
  assert [int(row['step']) for row in _log(tmp_path / 'cut')][-1] == 7
  whole_rows = {row['step']: row for row in _log(tmp_path / 'whole')}
  for row in _log(tmp_path / 'cut'):
    assert whole_rows.get(row['step'], row) == row


def test_a_run_whose_newest_checkpoint_is_damaged_ends_like_an_undisturbed_one(tmp_path, capsys):
  whole = _fit(tmp_path / 'whole')
  with pytest.raises(console.Stopped):
    _fit(tmp_path / 'cut', stopper=StopAt(4))  # saved are the steps 3 and 5
  files = [
    path for path in (tmp_path / 'cut' / 'state' / '5' / 'state').rglob('*') if path.is_file()
  ]
  toys.flip_bit(max(files, key=lambda path: path.stat().st_size))
  toys.assert_equal_trees(_fit(tmp_path / 'cut'), whole)
  lines = [line for line in capsys.readouterr().err.splitlines() if 'SHA-256' in line]
  assert len(lines) == 1 and 'the one of step 3 is taken' in lines[0]
  whole_rows = {row['step']: row for row in _log(tmp_path / 'whole')}
  assert {row['step']: row for row in _log(tmp_path / 'cut')} == whole_rows


def _margins(folder):
  with (folder / 'logs' / 'std.margins.csv').open(newline='') as file:
    return list(csv.DictReader(file))


def test_memory_and_its_summary_survive_a_stop(tmp_path):
  def defense(task):
    attack = attacks.pgd(norm='l2', num_steps=2, relative_step=0.5, bounds=(0.0, 1.0))
    return amat.make(
      task, attack=attack, step=0.2, thresholds=(0.7,), epoch_steps=2, max_margin=1.0
    )

  def batches(start):
    for batch in toys.stream()(start):
      yield {**batch, 'index': batch['index'] % 8}

  options = {'defense': defense, 'batches': batches}
  whole = _fit(tmp_path / 'whole', **options)
  with pytest.raises(console.Stopped):
    _fit(tmp_path / 'cut', stopper=StopAt(4), **options)
  assert _margins(tmp_path / 'cut')[-1]['step'] == '4'
  toys.assert_equal_trees(_fit(tmp_path / 'cut', **options), whole)
  margin = np.asarray(whole.memory['margin'])
  assert len(np.unique(margin[:8])) > 2 and (margin[8:] == np.float32(0.2)).all()
  rows = _margins(tmp_path / 'whole')
  assert [row['step'] for row in rows] == ['1', '2', '4', '6', '7']
  assert [row for row in _margins(tmp_path / 'cut') if row['step'] != '5'] == rows
  assert float(rows[-1]['max']) == pytest.approx(margin.max(), rel=1e-5)
  bins = [int(value) for name, value in rows[-1].items() if name.startswith('from_')]
  assert sum(bins) == int(rows[-1]['drawn']) == 8 and len(bins) == 11


def test_a_finished_run_is_not_done_again(tmp_path):
  programs = []
  first = _fit(tmp_path, before=programs.append)
  (program,) = programs  # the compiled step, before the first one
  assert 0 < memory.program_bytes(program) < 2**24

  def explode(start):
    raise AssertionError('no batch was due')
    yield

  toys.assert_equal_trees(_fit(tmp_path, batches=explode), first)


def test_the_program_of_a_step_is_made_once(tmp_path):
  traced = []

  def make(task):
    defense = standard.make(task)
    (phase,) = defense.phases

    def loss(params, context):
      traced.append(1)
      return phase.loss(params, context)

    return defense._replace(phases=(phase._replace(loss=loss),))

  _fit(tmp_path, defense=make, config={'steps': 3})
  assert len(traced) == 1
  traced.clear()
  _fit(tmp_path, defense=make, config={'steps': 6})  # from the checkpoint
  assert len(traced) == 1


def test_the_loss_goes_down_and_is_logged(tmp_path):
  _fit(tmp_path, config={'steps': 200, 'checkpoint_every': 200})
  rows = _log(tmp_path)
  assert [int(row['step']) for row in rows][:3] == [1, 2, 4]
  assert float(rows[-1]['main/loss']) < 0.7 * float(rows[0]['main/loss'])
  assert list((tmp_path / 'logs' / 'std').glob('events.*'))


def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path):
  def batches(start):
    for number, batch in enumerate(toys.stream()(start), start=start):
      if number == 4:
        batch['image'][:] = np.nan
      yield batch

  with pytest.raises(
    loop.Diverged, match=r'not finite at step 5; the last good checkpoint is .*/3;'
  ):
    _fit(tmp_path, batches=batches)
  assert issubclass(loop.Diverged, errors.UserError)
  store = checkpoints.Store(tmp_path / 'state')
  assert store.latest() == 3
  store.close()


def test_warm_start_begins_at_the_given_network(tmp_path):
  task = toys.task()
  given = task.init(jax.random.key(9))
  frozen = {'optimisers': {'main': {'name': 'sgd', 'lr': 0.0}}, 'steps': 1}
  state = _fit(tmp_path, initial=given, config=frozen)
  toys.assert_equal_trees(train_state.variables(state), given)
  doubled = lambda drawn: jax.tree.map(lambda leaf: 2 * leaf, drawn)
  state = _fit(tmp_path / 'c', initial=doubled, config=frozen)
  drawn = _fit(tmp_path / 'd', config=frozen)
  toys.assert_equal_trees(state.params, doubled(drawn.params))
  other = jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 2), np.float32), given)
  with pytest.raises(errors.UserError, match='other shapes'):
    _fit(tmp_path / 'b', initial=other)


def test_saved_variables_come_back_and_misfits_are_user_errors(tmp_path):
  task = toys.task()
  variables = task.init(jax.random.key(3))
  checkpoints.save_variables(tmp_path / 'v', variables)
  toys.assert_equal_trees(checkpoints.load_variables(tmp_path / 'v', task), variables)
  with pytest.raises(errors.UserError, match='no saved network'):
    checkpoints.load_variables(tmp_path / 'nothing', task)
  with pytest.raises(errors.UserError, match='does not fit'):
    checkpoints.load_variables(tmp_path / 'v', toys.task(toys.Net(norm=True)))
  card = {'arm': 'std', 'seed': 0, 'model': {}, 'image_shape': [4, 4, 1]}
  checkpoints.write_card(tmp_path, card)
  assert checkpoints.read_card(tmp_path) == card
  checkpoints.write_card(tmp_path, ['std'])
  with pytest.raises(errors.UserError, match='does not describe a network'):
    checkpoints.read_card(tmp_path)
  (tmp_path / 'w' / 'variables').mkdir(parents=True)
  (tmp_path / 'w' / 'variables' / 'a').write_text('one')
  first = checkpoints.digest(tmp_path / 'w')
  (tmp_path / 'w' / 'variables' / 'a').write_text('two')
  assert checkpoints.digest(tmp_path / 'w') != first
  with pytest.raises(errors.UserError, match=r'no network\.json'):
    checkpoints.read_card(tmp_path / 'nothing')


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
  _fit(tmp_path, config={'steps': 2})
  task = toys.task(toys.Net(norm=True))
  state = train_state.create(
    task,
    standard.make(task),
    step.for_phases(standard.make(task), {'main': optax.sgd(0.1)}),
    key=jax.random.key(0),
    num_examples=8,
    average=False,
  )
  store = checkpoints.Store(tmp_path / 'state')
  with pytest.raises(errors.UserError, match='does not fit this configuration'):
    store.restore(2, state)
  store.close()

"""Attacks from outside on toy networks: rows, resumption, detectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import attacks
from robustmed.evaluation import grid, trials
from robustmed.papers.spine import ood
from robustmed.process import console
from support import toys

SIDE = toys.SIDE


def _target():
  return ood.Target(
    own=lambda outputs: outputs['logit'],
    agreement=lambda outputs, wanted: {'gap': jnp.abs(outputs['logit'] - wanted)[:, 0]},
    score=lambda outputs, image: jnp.mean(image, axis=(1, 2, 3)),
    mismatches={
      'square': lambda outputs, wanted, image: jnp.square(outputs['logit'] - wanted)[:, 0],
      'dark': lambda outputs, wanted, image: jnp.mean(image, axis=(1, 2, 3)),
    },
    change=lambda change, batch: {'moved': jnp.abs(change).max(axis=(1, 2, 3))},
  )


def _setting(mismatch='square', start='white', eps=3.0, **more):
  attack = attacks.ood(num_steps=200, step_size=0.01, bounds=(0.0, 1.0), **more)
  return ood.Setting(attack, eps, mismatch, start)


STARTS = {
  'white': np.full((2, SIDE, SIDE, 1), 0.8, np.float32),
  'ramp': np.linspace(0, 1, 3 * SIDE * SIDE, dtype=np.float32).reshape(3, SIDE, SIDE, 1),
}
SETTINGS = {
  'same': _setting(),
  'dark': _setting('dark'),
  'tiny': _setting(eps=0.01),
  'ramp': _setting(start='ramp'),
}


@pytest.fixture(scope='module')
def world():
  task = toys.task()
  evaluator = ood.Evaluator(task, _target(), SETTINGS, key=jax.random.key(0))
  variables = task.init(jax.random.key(3))
  return task, evaluator, variables


def _batches():
  yield toys.batch(6)
  yield toys.batch(4, start=6)


def _run(world, folder, settings=tuple(SETTINGS), load=None, stopper=None):
  _, evaluator, variables = world
  model = grid.Model('toy', trials.Trial(0), load or (lambda: variables))
  return ood.run(
    [ood.Model(model, evaluator, settings)],
    batches=_batches,
    starts=STARTS,
    folder=folder,
    stopper=stopper or console.Stopper(),
  )


@pytest.fixture(scope='module')
def rows(world, tmp_path_factory):
  return _run(world, tmp_path_factory.mktemp('parts'))


def _cell(rows, attack):
  return rows[rows['attack'] == attack].sort_values('index')


def test_rows_of_every_cell(rows):
  counts = rows.groupby('attack').size()
  assert set(counts.index) == {'ind', 'start.white', 'start.ramp', *SETTINGS}
  assert (counts == 10).all()
  assert set(rows.loc[rows['attack'].isin(['ind', 'start.white']), 'eps']) == {0.0}
  assert set(rows.loc[rows['attack'] == 'same', 'eps']) == {3.0}
  assert rows['group'].tolist() == (rows['index'] // 2).tolist()


def test_the_attack_reproduces_the_outputs(rows):
  """The IND image agrees with itself; attacked images come nearer, the more the budget allows."""
  assert (_cell(rows, 'ind')['gap'] == 0).all()
  before, after = _cell(rows, 'start.white')['gap'], _cell(rows, 'same')['gap']
  assert after.max() < 0.1 * before.mean()
  assert (_cell(rows, 'tiny')['gap'].to_numpy() <= before.to_numpy() + 1e-6).all()
  assert _cell(rows, 'tiny')['gap'].mean() > 2 * after.mean()


def test_the_ball_is_around_the_start(rows):
  for name, setting in SETTINGS.items():
    cell = _cell(rows, name)
    assert (cell['_distance'] <= setting.eps * (1 + 1e-5)).all()
    assert (cell['moved'] <= cell['_distance'] + 1e-5).all()
  assert (_cell(rows, 'start.white')['_distance'] == 0).all()


def test_the_score_is_that_of_the_image_seen(rows):
  images = np.concatenate([batch['image'] for batch in _batches()])
  np.testing.assert_allclose(_cell(rows, 'ind')['score'], images.mean(axis=(1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(_cell(rows, 'start.white')['score'], 0.8, rtol=1e-6)
  ramp = STARTS['ramp'].mean(axis=(1, 2, 3))
  np.testing.assert_allclose(_cell(rows, 'start.ramp')['score'], ramp[np.arange(10) % 3], rtol=1e-5)
  # 'dark' may go as far as 3 in L2, which is 0.75 a pixel on 16 pixels
  np.testing.assert_allclose(_cell(rows, 'dark')['score'], 0.05, atol=0.02)


def test_a_second_run_computes_nothing(world, rows, tmp_path):
  first = _run(world, tmp_path)
  times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

  def forbidden():
    raise AssertionError('a finished cell was done again')

  again = _run(world, tmp_path, load=forbidden)
  pd.testing.assert_frame_equal(first, again)
  pd.testing.assert_frame_equal(first, rows)
  assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
  gone = sorted(tmp_path.iterdir())[0]
  gone.unlink()
  pd.testing.assert_frame_equal(_run(world, tmp_path), rows)
  assert gone.exists()


def test_a_stop_is_between_cells(world, tmp_path):
  class OneCell(console.Stopper):
    def __init__(self):
      super().__init__()
      self.calls = 0

    def requested(self):
      self.calls += 1
      return self.calls > 1

  with pytest.raises(console.Stopped):
    _run(world, tmp_path, stopper=OneCell())
  assert len(list(tmp_path.iterdir())) == 1


def test_chosen_examples_are_the_same_in_other_batches(world, rows, tmp_path):
  _, evaluator, variables = world
  wanted = [1, 4, 7]
  few = ood.chosen(_batches, wanted, size=2)
  sizes = [len(batch['mask']) for batch in few()]
  assert sizes == [2, 2]
  model = ood.Model(grid.Model('toy', trials.Trial(0), lambda: variables), evaluator, ('same',))
  found = ood.run([model], batches=few, starts=STARTS, folder=tmp_path, stopper=console.Stopper())
  found = found[found['attack'] == 'same'].reset_index(drop=True)
  assert found['index'].tolist() == wanted
  expected = rows[(rows['attack'] == 'same') & rows['index'].isin(wanted)].reset_index(drop=True)
  pd.testing.assert_frame_equal(found, expected[found.columns], rtol=1e-3, atol=1e-4)


def test_pictures_are_those_of_the_rows(world, rows):
  _, evaluator, variables = world
  model = ood.Model(grid.Model('toy', trials.Trial(0), lambda: variables), evaluator, ('same',))
  held = list(ood.attacked(model, batches=_batches, start=STARTS['white'], name='same'))
  assert [len(part['attacked']) for part in held] == [6, 4]
  gap = np.concatenate([part['gap'] for part in held])
  np.testing.assert_allclose(gap, _cell(rows, 'same')['gap'], rtol=1e-4, atol=1e-5)
  first = held[0]
  moved = np.abs(first['attacked'] - first['start']).max(axis=(1, 2, 3))
  np.testing.assert_allclose(moved, _cell(rows, 'same')['moved'][:6], rtol=1e-5)


def _scored(**scores):
  parts = []
  for attack, values in scores.items():
    index = np.arange(len(values))
    parts.append(
      pd.DataFrame(
        {'arm': 'a', 'seed': 0, 'attack': attack, 'eps': 0.0 if attack == 'ind' else 1.0,
         'index': index, 'group': index, 'score': values}
      )
    )  # fmt: skip
  return pd.concat(parts, ignore_index=True)


def test_detectors_by_hand():
  rows = _scored(ind=[0.0, 2.0], far=[5.0, 6.0], near=[1.0, 3.0], fooled=[-1.0, -2.0])
  found = ood.detectors(rows).set_index('attack')
  assert found['auroc'].to_dict() == {'far': 1.0, 'near': 0.75, 'fooled': 0.0}
  assert (found['n'] == 2).all()
  # two patients: no limits but those of what cannot be exceeded
  assert found.loc['far', 'high'] == 1 and np.isnan(found.loc['far', 'low'])
  assert found.loc['fooled', 'low'] == 0 and np.isnan(found.loc['fooled', 'high'])


def test_detectors_leave_networks_without_a_score_out():
  rows = _scored(ind=[np.nan, np.nan], far=[np.nan, np.nan])
  assert ood.detectors(rows).empty

"""Best weights and early ends, through the one training loop."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from robustmed.defenses import standard
from robustmed.process import console, files
from robustmed.training import checkpoints, loop, selection
from robustmed.training import state as train_state
from support import buckets, toys


class Evaluation(NamedTuple):
  score: float
  stop: str
  row: dict[str, float]


class Scorer:
  """Gives the scores in turn and remembers the weights that it saw."""

  def __init__(self, *scores, stop_at=None):
    self.scores, self.stop_at, self.seen = scores, stop_at, []

  def __call__(self, variables, rows):
    self.seen.append(jax.tree.map(np.asarray, variables))
    stop = 'far away' if len(rows) == self.stop_at else ''
    return Evaluation(self.scores[len(rows)], stop, {'X': float(len(rows))})


def _fit(folder, scorer, *, steps=6, stopper=None, batches=None):
  task = toys.task()
  config = {
    'steps': steps,
    'optimisers': {'main': {'name': 'sgd', 'lr': 0.5}},
    'checkpoint_every': 2,
  }
  state = loop.fit(
    'arm',
    task=task,
    defense=standard.make(task),
    batches=batches or toys.stream(),
    config=config,
    folder=folder / 'state',
    log=folder / 'arm.csv',
    key=jax.random.key(0),
    num_examples=64,
    stopper=stopper or console.Stopper(),
    scorer=scorer,
  )
  return state, train_state.variables(state)


def _rows(folder):
  return selection.BestWeights(folder / 'best', None, toys.task()).rows()


def test_the_best_of_all_looks_is_returned(tmp_path):
  scorer = Scorer(3.0, 1.0, 2.0)
  state, found = _fit(tmp_path, scorer)
  assert int(state.step) == 6 and [row['step'] for row in _rows(tmp_path)] == [2, 4, 6]
  toys.assert_equal_trees(found, scorer.seen[1])
  assert np.any(
    scorer.seen[1]['params']['out']['kernel'] != scorer.seen[2]['params']['out']['kernel']
  )
  assert [path.name for path in (tmp_path / 'best').glob('weights_*')] == ['weights_4']


def test_it_ends_when_the_scorer_says_so(tmp_path, capsys):
  scorer = Scorer(1.0, 5.0, 0.0, stop_at=1)
  state, found = _fit(tmp_path, scorer)
  assert int(state.step) == 4 and len(scorer.seen) == 2
  toys.assert_equal_trees(found, scorer.seen[0])
  assert 'arm: ended early: far away; the weights of step 2 are kept' in capsys.readouterr().err
  again, same = _fit(tmp_path, scorer)  # nothing is trained any more
  assert int(again.step) == 4 and len(scorer.seen) == 2
  toys.assert_equal_trees(same, found)


class StopAt(console.Stopper):
  def __init__(self, after):
    super().__init__()
    self._left = after

  def requested(self):
    self._left -= 1
    return self._left < 0


def test_a_run_that_goes_on_ends_with_the_same_weights(tmp_path):
  whole, expected = Scorer(3.0, 2.0, 1.0), Scorer(3.0, 2.0, 1.0)
  _, want = _fit(tmp_path / 'a', whole)
  with pytest.raises(console.Stopped):
    _fit(tmp_path / 'b', expected, stopper=StopAt(3))
  _, found = _fit(tmp_path / 'b', expected)
  toys.assert_equal_trees(found, want)
  assert _rows(tmp_path / 'b') == _rows(tmp_path / 'a')


def test_a_loss_that_is_not_finite_ends_it_with_the_best_so_far(tmp_path, capsys):
  def batches(start):
    for number, batch in enumerate(toys.stream()(start), start=start):
      if number >= 3:
        batch['image'][:] = np.nan
      yield batch

  scorer = Scorer(1.0, 2.0, 3.0)
  _, found = _fit(tmp_path, scorer, batches=batches)
  toys.assert_equal_trees(found, scorer.seen[0])
  assert 'diverged' in capsys.readouterr().err
  with pytest.raises(loop.Diverged):
    _fit(tmp_path / 'none', None, batches=batches)


def test_looks_in_an_object_store(monkeypatch):
  buckets.use(monkeypatch)
  folder = files.path_of('gs://bucket/runs/x/checkpoints/gen/seed0/best')
  save = lambda path, variables: files.write_json(path / 'weights.json', variables)
  monkeypatch.setattr(checkpoints, 'save_variables', save)
  load = lambda path, task: files.read_json(path / 'weights.json')
  monkeypatch.setattr(checkpoints, 'load_variables', load)
  best = selection.BestWeights(str(folder), Scorer(3.0, 1.0, 2.0), None)
  names = lambda: [str(path.relative_to(folder)) for path in files.iter_files(folder)]
  # the folder of a run that is open in this process has check sums beside them
  there = lambda: [name for name in names() if '.sha256' not in name]
  assert [best.evaluate(step, {'w': step / 10}) for step in (2, 4, 6)] == ['', '', '']
  assert there() == ['looks.json', 'weights_4/weights.json']
  assert [row['score'] for row in best.rows()] == [3.0, 1.0, 2.0]
  found, chosen = best.load()
  assert found == {'w': 0.4} and (chosen.step, chosen.score) == (4, 1.0)
  files.write_text(folder / 'weights_4' / 'half', 'of an interrupted evaluation')
  best.evaluate(4, {'w': 0.5})
  assert there() == ['looks.json', 'weights_4/weights.json'] and best.load()[0] == {'w': 0.5}

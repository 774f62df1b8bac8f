import json

import jax
import numpy as np
import pytest

from robustmed import errors
from robustmed.generators import training
from robustmed.process import console
from robustmed.training import loop, optimisers, step
from robustmed.training import state as train_state
from support import synths

pytestmark = pytest.mark.slow

RULES = {
  'generator': {'name': 'rmsprop', 'lr': 0.005},
  'critic': {'name': 'rmsprop', 'lr': 0.001, 'clip_weights': 0.05},
}
WEIGHTS = training.Weights(min_pixels=5.0, displacement=0.1)
XI = 1.0


def _defense(model, *, xi=XI, **more):
  task = synths.task()
  segmenter = task.init(jax.random.key(0))
  weights = WEIGHTS._replace(**more)
  return training.make(model, task, xi=xi, segmenter=segmenter, weights=weights)


def _one_step(model, defense, *, phases=None):
  if phases is not None:
    defense = defense._replace(phases=[p for p in defense.phases if p.name in phases])
  rules = {name: optimisers.make(options, num_steps=9) for name, options in RULES.items()}
  state = train_state.create(
    model.task,
    defense,
    step.for_phases(defense, rules),
    key=jax.random.key(0),
    num_examples=4,
    average=False,
  )
  run = step.make(defense, optimisers=rules, num_steps=9)
  return state, *run(state, synths.batch(), jax.random.key(1))


def _changed(before, after):
  return {
    name: any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before[name], after[name]))))
    for name in before
  }


@pytest.mark.parametrize('phase', [training.CRITIC, training.GENERATOR])
def test_each_phase_moves_its_own_network_alone(phase):
  model = synths.model()
  before, after, scalars = _one_step(model, _defense(model), phases=(phase,))
  assert _changed(before.params, after.params) == {
    'critic': phase == training.CRITIC, 'generator': phase == training.GENERATOR
  }  # fmt: skip
  stats = _changed(before.state['batch_stats'], after.state['batch_stats'])
  assert stats[phase] and not stats[({'critic', 'generator'} - {phase}).pop()]
  assert not _changed(before.memory, after.memory)['segmenter']
  assert int(after.bad_step) == -1 and all(np.isfinite(float(v)) for v in scalars.values())
  if phase == training.CRITIC:  # 2 devices draw alike: fresh generators leave the image alone
    assert float(scalars['critic/gap']) == pytest.approx(0, abs=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(after.params['critic'])) < 0.0501


def test_a_gradient_penalty_and_the_other_terms_are_finite_and_count():
  model = synths.model(critic_norm='layer')
  plain = _one_step(model, _defense(model))[2]
  more = _one_step(
    model, _defense(model, penalty=10.0, divergence=1.0, variation=0.1, critic_steps=2)
  )[2]
  assert float(more['critic/loss']) > float(plain['critic/loss']) + 0.1
  assert float(more['generator/loss']) > float(plain['generator/loss'])
  assert np.isfinite([float(v) for v in more.values()]).all()


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
  """A generator that has learnt to move the threshold network by XI nats."""
  folder = tmp_path_factory.mktemp('gen')
  model, task = synths.model(), synths.task()
  segmenter = task.init(jax.random.key(0))
  judge = training.make_validation(
    model,
    task,
    xi=XI,
    segmenter=segmenter,
    batches=lambda: [synths.batch(6, start=100)],
    key=jax.random.key(7),
    min_pixels=5.0,
  )
  with console.stop_on_signal() as stopper:
    state = loop.fit(
      'gen',
      task=model.task,
      defense=_defense(model),
      batches=synths.stream(4),
      config={'steps': 120, 'optimisers': RULES, 'log_every': 20, 'checkpoint_every': 20},
      folder=folder / 'state',
      log=folder / 'gen.csv',
      key=jax.random.key(0),
      num_examples=64,
      stopper=stopper,
      scorer=judge,
    )
  return model, train_state.variables(state), judge, folder


def test_it_learns_to_move_the_output_by_xi(fitted):
  _, variables, judge, folder = fitted
  start = abs(judge(synths.model().task.init(jax.random.key(0)), []).row['X'] - XI)
  found = judge(variables, [])
  assert start > 0.6 and found.score < 0.25 * start
  header = (folder / 'gen.csv').read_text().splitlines()[0]
  for name in ('generator/X', 'generator/D', 'generator/V', 'generator/p', 'critic/gap'):
    assert name in header


def test_the_weights_that_are_kept_are_the_best_of_all_looks(fitted):
  _, variables, judge, folder = fitted
  rows = json.loads((folder / 'best' / 'looks.json').read_text())
  assert [row['step'] for row in rows] == [20, 40, 60, 80, 100, 120]
  assert judge(variables, []).score == pytest.approx(min(row['score'] for row in rows), rel=1e-4)


def _look(row, misses=(), **model):
  rows = [{'X': XI + miss} for miss in misses]
  full = {'X': XI, 'D': 0.1, 'V': 0.1, 'p': 0.1, **row}
  return training._verdict(full, rows, xi=XI, model=synths.model(**model))


def test_of_equally_near_weights_the_least_perceptible_are_best():
  def score(x, p, tolerance=0.05):
    row = {'X': x, 'D': 0.1, 'V': 0.1, 'p': p}
    return training._verdict(row, [], xi=XI, model=synths.model(), tolerance=tolerance).score

  assert score(0.96 * XI, 0.2) < score(XI, 0.5) < score(0.9 * XI, 0.2)
  assert score(XI, 0.5, tolerance=0.0) < score(0.96 * XI, 0.2, tolerance=0.0)


def test_collapse_is_told_by_name():
  assert _look({}).stop == '' and _look({'X': 1.5}).score == pytest.approx(0.5, abs=2e-4)
  assert 'not finite' in _look({'X': np.nan}).stop
  assert '|D| has run to its bound' in _look({'D': 1.9}).stop
  assert '|V| has run to its bound' in _look({'V': 1.4}).stop
  drifted = _look({'X': 9.0}, misses=(0.1, 5.0, 6.0, 7.0))
  assert 'X is 9, was at best 0.1 from 1' in drifted.stop
  assert _look({'X': 9.0}, misses=(5.0, 0.1, 7.0)).stop == ''  # not that long in a row


def test_mistakes():
  with pytest.raises(errors.UserError, match='xi must be at least 0'):
    training.make(synths.model(), synths.task(), xi=-1.0, segmenter=())
  with pytest.raises(ValueError, match='without the network'):
    training.make(synths.model(), synths.task(), xi=1.0, segmenter=()).init(3)

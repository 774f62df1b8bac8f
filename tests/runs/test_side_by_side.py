"""Arms whose batches do not divide by the devices train at once, as each would on fewer devices."""

import threading
import types as plain

import jax
import ml_collections
import numpy as np
import pytest

from robustmed import data, errors
from robustmed.process import console, parallel
from robustmed.runs import commandline, experiment, side_by_side, stages
from robustmed.training import checkpoints
from support import toys

pytestmark = pytest.mark.slow

ARMS = ('std', 'sat', 'amat', 'noise')


class Split(list):
  def stack(self, feature):
    return np.stack([example[feature] for example in self])


def _source():
  batch = toys.batch(8)
  examples = [
    {
      'image': batch['image'][i],
      'label': batch['target']['label'][i],
      'index': i,
      'group': i,
      'name': str(i),
    }
    for i in range(8)
  ]
  return data.Source(Split(examples), Split(examples[:2]))


def _run(folder, *, batch_size, seeds=1, **train):
  attack = {'name': 'pgd', 'norm': 'l2', 'num_steps': 2, 'relative_step': 0.5}
  eps = {'eps': 0.2, 'clean_weight': 0.5}
  config = ml_collections.ConfigDict(
    {
      'experiment': 'toy',
      'seed': 0,
      'seeds': seeds,
      'model': {'name': 'toy'},
      'augment': {},
      'train': {
        'steps': 3,
        'batch_size': batch_size,
        'micro_batch': 0,
        'optimisers': {'main': {'name': 'adamax', 'lr': 0.05}},
        **train,
      },
      'arms': {
        'std': {'defense': {'name': 'standard'}},
        'sat': {
          'defense': {'name': 'adversarial', 'attack': attack, 'objectives': {'bce': 0.5}, **eps}
        },
        'amat': {
          'defense': {'name': 'amat', 'attack': attack, 'step': 0.2, 'when': 'immediate'},
          'thresholds_from': 'std',
        },
        'noise': {'defense': {'name': 'noise', **eps}, 'init_from': 'std'},
      },
      'evaluate': {
        'batch_size': 4,
        'levels': (0.1,),
        'attacks': {'pgd': {**attack, 'objective': 'bce'}},
      },
    }
  )
  task, source = toys.task(), _source()
  exp = experiment.Experiment(
    task=task,
    arms=experiment.make_arms(task, config),
    data=experiment.Data(lambda: {'train': 8, 'test': 2}, lambda: source),
    grid=experiment.Grid(experiment.make_probes(task, config), 'pgd', checks={}),
    report=None,
  )
  command = commandline.Command(config, folder, 'train', (), None, '', 0, -1, False)
  return stages.Run(exp, config, command)


def _variables(run, folder, seeds=1):
  return {
    (arm, seed): checkpoints.load_variables(
      folder / 'checkpoints' / arm / f'seed{seed}' / 'variables', run.exp.task
    )
    for arm in ARMS
    for seed in range(seeds)
  }


def test_networks_are_those_of_one_device(tmp_path, capsys, monkeypatch):
  assert parallel.device_count() == 2
  at_once, most, guard, fit = [], [], threading.Lock(), stages.loop.fit

  def counted(name, **kwargs):
    with guard:
      at_once.append(name)
      most.append((len(at_once), parallel.device_count()))
    try:
      return fit(name, **kwargs)
    finally:
      with guard:
        at_once.remove(name)

  monkeypatch.setattr(stages.loop, 'fit', counted)
  run = _run(tmp_path / 'two', batch_size=1, seeds=2)
  run.train(console.Stopper())
  assert max(most) == (2, 1) and len(most) == 8
  assert 'up to 2 trainings at once, each on 1 of 2 devices' in capsys.readouterr().err
  with parallel.on_devices(1, 1):
    alone = _run(tmp_path / 'one', batch_size=1, seeds=2)
    alone.train(console.Stopper())
  toys.assert_equal_trees(
    _variables(run, tmp_path / 'two', 2), _variables(alone, tmp_path / 'one', 2)
  )
  logs = [(tmp_path / name / 'logs' / 'train.csv').read_text() for name in ('two', 'one')]
  drop = lambda text: [line.split(',')[:3] + line.split(',')[4:] for line in text.splitlines()]
  assert drop(logs[0]) == drop(logs[1])


def test_batches_that_divide_have_all_devices(tmp_path, monkeypatch):
  seen, fit = [], stages.loop.fit
  monkeypatch.setattr(
    stages.loop, 'fit', lambda *a, **k: seen.append(parallel.device_count()) or fit(*a, **k)
  )
  _run(tmp_path, batch_size=2).train(console.Stopper())
  assert seen == [2] * 4


def test_a_stop_is_heard_by_all(tmp_path):
  class Stop(console.Stopper):
    def requested(self):
      return True

  run = _run(tmp_path, batch_size=1)
  with pytest.raises(console.Stopped):
    run.train(Stop())
  assert not list((tmp_path / 'checkpoints').glob('*/seed0/variables'))


def _arm(batch_size, needs=(), micro_batch=0):
  return plain.SimpleNamespace(
    train={'batch_size': batch_size, 'micro_batch': micro_batch}, needs=needs
  )


def test_needs_come_first_and_a_failure_waits_for_the_others(monkeypatch):
  arms = {'a': _arm(1), 'b': _arm(1), 'c': _arm(1, ('a',)), 'd': _arm(4)}
  order = []

  def train(fails=()):
    order.clear()

    def run(training):
      order.append((training[0], parallel.device_count()))
      if training[0] in fails:
        raise errors.UserError(f'{training[0]} fails')

    side_by_side.train([(name, 0) for name in 'abcd'], run, arms=arms, stopper=console.Stopper())

  train()
  assert {*order[:2]} == {('a', 1), ('b', 1)} and order[2:] == [('c', 1), ('d', 2)]
  with pytest.raises(errors.UserError, match='a fails'):
    train(fails=('a',))
  assert {*order} == {('a', 1), ('b', 1)}


def test_devices_share_micro_batches_evenly(monkeypatch):
  monkeypatch.setattr(parallel, 'device_count', lambda: 8)
  found = lambda *args, **more: side_by_side.share_of(_arm(*args, **more).train).devices
  assert [found(size) for size in (1, 2, 6, 8, 12, 64)] == [1, 2, 2, 8, 4, 8]
  assert [found(64, micro_batch=size) for size in (4, 8, 100)] == [4, 8, 8]
  monkeypatch.setattr(parallel, 'process_count', lambda: 2)
  assert found(16) == 8


@pytest.mark.parametrize(
  ('size', 'micro', 'count', 'hosts', 'expected'),
  [
    (366, 0, 16, 4, (16, 368, 0)),  # 23 on each of 16
    (366, 0, 16, 1, (16, 368, 0)),  # little is wasted, so on one host, too
    (40, 0, 16, 1, (8, 40, 0)),  # a sixth would be wasted
    (40, 0, 16, 4, (16, 48, 2)),  # 3 on each of 14
    (1, 0, 256, 64, (256, 256, 255)),
    (366, 0, 256, 64, (256, 512, 73)),
    (64, 8, 16, 4, (16, 128, 8)),  # each of 8 parts is padded
    (32, 0, 16, 4, (16, 32, 0)),
  ],
)
def test_batches_are_padded_to_the_devices(monkeypatch, size, micro, count, hosts, expected):
  monkeypatch.setattr(parallel, 'device_count', lambda: count)
  options = _arm(size, micro_batch=micro).train
  assert side_by_side.share_of(options, hosts=hosts) == expected


def test_padded_batches_train_the_same_networks(tmp_path, capsys, monkeypatch):
  with parallel.on_devices(0, 1):
    alone = _run(tmp_path / 'one', batch_size=3)
    alone.train(console.Stopper())
  monkeypatch.setattr(side_by_side, 'WORTH', 0.0)
  seen, fit = [], stages.loop.fit
  monkeypatch.setattr(
    stages.loop, 'fit', lambda *a, **k: seen.append(parallel.device_count()) or fit(*a, **k)
  )
  padded = _run(tmp_path / 'two', batch_size=3)
  padded.train(console.Stopper())
  assert seen == [2] * 4
  ours, theirs = _variables(padded, tmp_path / 'two'), _variables(alone, tmp_path / 'one')
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), ours, theirs)
  capsys.readouterr()
  _run(tmp_path / 'idle', batch_size=1).train(console.Stopper())
  assert 'steps of 1; 1 of 2 devices are idle' in capsys.readouterr().err


def test_one_host_computes_on_the_chosen_devices_alone():
  with parallel.on_devices(1, 1):
    assert parallel.device_count() == parallel.local_device_count() == 1
    add = parallel.each_device(lambda x: x + parallel.psum(x.sum()), split=(0,))
    found = add(np.ones(3, np.float32))
    assert found.devices() == {jax.local_devices()[1]} == jax.numpy.zeros(1).devices()
    assert parallel.replicate(np.ones(2)).devices() == {jax.local_devices()[1]}
  np.testing.assert_array_equal(found, np.full(3, 4.0))
  assert parallel.device_count() == 2

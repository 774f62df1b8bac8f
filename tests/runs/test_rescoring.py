"""What tables say of the worst of all attacks, beside a look at the saved images alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from robustmed import papers
from robustmed.attacks import ensemble
from robustmed.data import pipeline
from robustmed.evaluation import examples, grid, statistics, trials
from robustmed.metrics import landmarks
from robustmed.process import console
from robustmed.runs import artifacts, commandline
from robustmed.tasks import landmarks as landmark_task
from support import runs

COUNT = 4


def _dice(outputs, target, truth):
  """2 |A and B| / (|A| + |B|), the mean over classes."""
  labels, found = np.asarray(truth), np.argmax(outputs['head0'], -1)
  classes = range(1, outputs['head0'].shape[-1])
  both = [[np.sum((a == k) & (b == k)) for k in classes] for a, b in zip(found, labels)]
  sizes = [[np.sum(a == k) + np.sum(b == k) for k in classes] for a, b in zip(found, labels)]
  return np.mean(2 * np.array(both) / (np.array(sizes) + 1e-8), axis=1)


def _radial_error(outputs, target, truth):
  apart = (_points(outputs) - truth) * np.asarray(target['scale'])[:, None]
  return np.sqrt((apart**2).sum(-1)).mean(1)


def _points(outputs):
  radius = landmark_task.radius_of(outputs['heat'].shape[1:3])
  return np.asarray(
    landmarks.vote(outputs['heat'], outputs['offset_x'], outputs['offset_y'], radius=radius)
  )


KINDS = {  # a name in the target, what the network says of it, and the metric
  'hippocampus': ('labels', lambda outputs: np.argmax(outputs['head0'], -1), _dice),
  'ceph': ('landmarks', _points, _radial_error),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(KINDS))
def test_the_worst_of_a_table_is_what_its_saved_image_scores(name, tmp_path):
  """The images that all attacks together chose are saved, read, and shown to the network alone.

  The Dice and the radial error are computed here, from the outputs.
  """
  config = commandline.load_config(f'{runs.ROOT}/configs/amat_{name}.py:smoke')
  with config.unlocked():
    config.evaluate.budget, config.data.cache_dir = 'quick', str(tmp_path / 'data')
  exp = papers.find(config.experiment).build(config)
  field, says, metric = KINDS[name]
  task, plan = exp.task_of('std'), exp.grid
  variables = task.init(jax.random.key(1))
  predict = jax.jit(lambda image: task.predict(variables, image))  # no part of an attack
  source = exp.data_of().load()
  told = {'shard_index': 0, 'shard_count': 1, 'crop': source.crop}
  batch = next(iter(pipeline.eval_batches(source.train, batch_size=COUNT, **told)))
  # a network that was not trained is right about what it says of the clean images
  truth = says(predict(jnp.asarray(batch['image'])))
  batch['target'] = {**batch['target'], field: truth}

  members = list(ensemble.settings_of(tuple(task.objectives), 'quick'))
  level = max(plan.probes[plan.main].levels)
  names = [plan.main, *members]
  probes = {one: plan.probes[one]._replace(levels=(level,)) for one in names}
  judge = plan.checks['metric'], plan.checks['higher_is_better']
  evaluator = grid.Evaluator(task, probes, key=jax.random.key(0), main=plan.main, judge=judge)
  rows = grid.run(
    evaluator,
    [grid.Model('std', trials.Trial(0), lambda: variables)],
    batches=lambda: [batch],
    folder=tmp_path,
    stopper=console.Stopper(),
  )
  artifacts.save_rows(
    plan._replace(probes=probes, subjects=lambda r: r), rows, folder=tmp_path, seed=0
  )
  table = pd.read_parquet(tmp_path / 'worst.parquet').set_index('index')[judge[0]]
  told = {'metric': judge[0], 'higher_is_better': judge[1]}
  found = statistics.worst(rows, attacks=names, **told).set_index('index')['_member']

  for member in sorted(set(found) - {grid.CLEAN}):
    wanted = found.index[found == member]
    made = examples.attack(
      evaluator, variables, lambda: [batch], attack=member, eps=level, wanted=wanted
    )
    for one in made:
      np.save(tmp_path / f'{int(one.example["index"])}.npy', one.image)
  clean = dict(zip(batch['index'].tolist(), batch['image']))
  read = lambda index: (
    np.load(path) if (path := tmp_path / f'{index}.npy').is_file() else clean[index]
  )
  saved = np.stack([read(int(index)) for index in batch['index']])
  again = metric(jax.device_get(predict(jnp.asarray(saved))), batch['target'], truth)
  np.testing.assert_allclose(again, table.loc[batch['index']], rtol=1e-5, atol=1e-6)
  before = metric(jax.device_get(predict(jnp.asarray(batch['image']))), batch['target'], truth)
  worse = again < before if judge[1] else again > before
  assert len(table) == COUNT and worse.all() and set(found) & set(members), (before, again, found)

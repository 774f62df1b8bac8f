"""Checks of the networks of a run before they are attacked, stored, a table each."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import types
from robustmed.attacks import objectives
from robustmed.evaluation import examples, grid, stored_tables
from robustmed.evaluation.checks import network
from robustmed.evaluation.checks.check import Check
from robustmed.process import files

EXAMPLES = 4  # on which a network is checked, fewer where batches are smaller, but two


def fill(
  models: Sequence[grid.Model],
  *,
  task_of: Callable[[str], types.Task],
  probe: grid.Probe,
  judge: Mapping[str, Any],
  batches: grid.Batches,
  folder,
  stopper,
) -> None:
  """Writes what `of_network` finds of each network that lacks it, under the main attack `probe`.

  judge: 'metric' and 'higher_is_better'.
  """
  tables = [
    stored_tables.Table(
      _file(model),
      functools.partial(_table, model, task_of(model.arm), probe, judge, batches),
      f'the checks of {model.arm}',
      model.arm,
    )
    for model in models
  ]
  stored_tables.fill_missing('checks of networks', tables, folder=folder, stopper=stopper)


def read(models: Sequence[grid.Model], *, folder) -> list[Check]:
  """Returns the stored checks of these networks."""
  paths = [path for model in models if (path := folder / _file(model)).is_file()]
  tables = [files.read_with(path, pd.read_csv) for path in paths]
  return [Check(**line) for table in tables for line in table.to_dict('records')]


def _file(model: grid.Model) -> str:
  return f'network.{files.name_of(model.arm, what="an arm")}.{model.trial}.csv'


def _table(model, task, probe, judge, batches) -> pd.DataFrame:
  rest = iter(batches(*model.trial.fold))
  head = next(rest)
  count = min(EXAMPLES, max(2, len(head['mask'])))
  batch = examples.first(itertools.chain([head], rest), count)
  if batch is None or len(batch['mask']) < 2:
    found = [Check('same image, same output', model.arm, 'skipped', 'needs two examples')]
  else:
    batch = jax.tree.map(jnp.asarray, batch)
    found = of_model(model, task, probe, judge=judge, batch=batch)
  return pd.DataFrame([check._asdict() for check in found])


def of_model(model, task: types.Task, probe: grid.Probe, *, judge, batch) -> list[Check]:
  """Returns the checks of a network on a batch, as `probe` attacks it at its largest level."""
  variables, eps, clean = model.load(), max(probe.levels), {**batch, 'clean': batch['image']}
  x, region, decode = batch['image'], None, lambda x: x
  if probe.space is not None:
    x, decode = probe.space.encode(batch), lambda x: probe.space.decode(x, batch)
    moved = [decode(x + step) != batch['image'] for step in (eps, -eps)]
    region = moved[0] | moved[1] if x.shape == batch['image'].shape else None
  if probe.attack.threat.norm == 'l2':
    eps /= float(np.sqrt(np.prod(x.shape[1:])))
  told = {'progress': 0.0} if objectives.takes_progress(task.objectives[probe.objective]) else {}

  def badness(outputs, _):
    value = task.metrics(outputs, clean)[judge['metric']]
    return -value if judge['higher_is_better'] else value

  return network.of_network(
    lambda x: task.predict(variables, decode(x)),
    lambda outputs, _: task.objectives[probe.objective](outputs, clean, **told),
    badness,
    {**batch, 'image': x},
    eps=eps,
    key=jax.random.key(0),
    arm=model.arm,
    region=region,
  )

"""Attacked examples that outlive an evaluation: arrays for pictures, worst cases as data files."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import pandas as pd

from robustmed import console, files, parallel
from robustmed.evaluation import grid
from robustmed.experiments import experiment


class Context(NamedTuple):
  """What evaluations beside the grid need of a run."""

  exp: experiment.Experiment
  config: ml_collections.ConfigDict
  results: pathlib.Path
  evaluator: grid.Evaluator
  batches: grid.Batches
  source: Callable[[], Any]
  stopper: console.Stopper

  def attacked(self, model: grid.Model, *, eps: float, wanted):
    """The wanted examples under the main attack, as `grid.Example`."""
    return grid.attacked_examples(
      model.evaluator or self.evaluator,
      model.load(),
      self.batches,
      attack=self.exp.main,
      eps=eps,
      wanted=wanted,
    )

  def meets_main(self, model: grid.Model) -> bool:
    return model.attacks is None or self.exp.main in model.attacks


def save_pictures(context: Context, models: Sequence[grid.Model], rows: pd.DataFrame) -> None:
  """results/examples.npz: evenly spaced examples of the first seed under the main attack."""
  options, path = context.config.report, context.results / 'examples.npz'
  if context.exp.pictures is None or not options.pictures:
    return
  arms = [m.arm for m in models if m.seed == models[0].seed and context.meets_main(m)]
  if bool(parallel.from_writer(np.array(_pictured(path) == set(arms)))):
    return
  indices = np.sort(rows['index'].unique())
  indices = indices[:: max(1, len(indices) // options.pictures)][: options.pictures]
  columns: dict[str, list[Any]] = {}
  for model in models:
    if model.seed != models[0].seed or not context.meets_main(model):
      continue
    found = list(context.attacked(model, eps=options.picture_eps, wanted=indices))
    if not found:
      continue
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    same = {'arm': model.arm, 'attack': context.exp.main, 'eps': options.picture_eps}
    arrays = {
      **{name: np.array([value] * len(found)) for name, value in same.items()},
      'index': stacked.example['index'],
      'image': stacked.example['image'],
      'adversarial': stacked.image,
      **context.exp.pictures(stacked),
    }
    for name, value in arrays.items():
      columns.setdefault(name, []).append(np.asarray(value))
  if parallel.is_writer() and columns:
    with files.replacing(path) as temporary:
      np.savez_compressed(temporary, **{k: np.concatenate(v) for k, v in columns.items()})


def _pictured(path: pathlib.Path) -> set[str]:
  """The arms of the pictures that are there."""
  if not path.exists():
    return set()
  with np.load(path) as stored:
    return {str(arm) for arm in stored['arm']}


def save_worst(context: Context, models: Sequence[grid.Model], rows: pd.DataFrame) -> None:
  """The worst evaluate.save_examples examples of every network at the strongest level.

  They are files that the task's own source reads, in results/worst/ARM.seedN.ATTACK.EPS/.
  """
  count, name = context.config.evaluate.save_examples, context.exp.main
  if not count:
    return
  eps = max(context.exp.probes[name].levels)
  metric, higher = context.exp.checks['metric'], context.exp.checks['higher_is_better']
  cell = rows[(rows.attack == name) & (rows.eps == eps)]
  for model in filter(context.meets_main, models):
    here = cell[(cell.arm == model.arm) & (cell.seed == model.seed)]
    worst = here.sort_values([metric, 'index'], ascending=[higher, True]).head(count)
    folder = context.results / 'worst' / f'{model.arm}.seed{model.seed}.{name}.{eps:g}'
    for found in context.attacked(model, eps=eps, wanted=worst['index']):
      context.exp.write_example(folder, found.image, found.example)
    console.say(f'the {len(worst)} worst examples of {model.arm} are in {folder}')

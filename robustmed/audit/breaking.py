"""The smallest level that breaks each case, over all attacks bounded by eps."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from robustmed.evaluation import grid, stored_tables
from robustmed.process import parallel
from robustmed.runs import artifacts, costs, experiment

COLUMNS = ('index', 'group', 'clean', 'below', 'level')


def cases(rows: pd.DataFrame, *, arm: str, attacks: Sequence[str], metric: str, share: float):
  """Returns one row per case: index, group, clean value, level (inf: none of the grid broke it),
  below (the largest level of the grid under it, 0: none).

  A case is broken where the metric of the worst attack is below `share` of its clean value. Where a
  smaller level breaks it, so do larger ones, which contain its image. A case whose clean value is 0
  or unknown has the level nan: nothing is left to break.
  """
  mine = rows[rows['arm'] == arm]
  clean = mine[mine['attack'] == grid.CLEAN].set_index('index')
  attacked = mine[mine['attack'].isin(attacks)]
  worst = attacked.groupby(['index', 'eps'])[metric].min().unstack('eps')
  found = []
  for index, line in clean.iterrows():
    level, value = np.nan, line[metric]
    if np.isfinite(value) and value > 0:
      levels = [eps for eps in sorted(worst) if worst.loc[index, eps] < share * value]
      level = levels[0] if levels else np.inf
    below = max((eps for eps in worst if eps < level), default=0.0)
    found.append((int(index), int(line['group']), float(value), float(below), float(level)))
  return pd.DataFrame(found, columns=[*COLUMNS])


def quartiles(levels: Sequence[float]) -> tuple[float, float, float]:
  """Returns first quartile, median and third quartile of the known levels, each one of them."""
  known = np.sort(np.asarray(levels, np.float64))
  known = known[~np.isnan(known)]
  if not len(known):
    return (np.nan,) * 3
  at = [int(np.ceil(q * len(known))) - 1 for q in (0.25, 0.5, 0.75)]
  return tuple(float(known[max(0, place)]) for place in at)


def file_of(arm: str, trial) -> str:
  return f'breaking.{arm}.{trial}.csv'


def study(
  probes: Mapping[str, grid.Probe],
  *,
  attacks: Sequence[str],
  main: str,
  metric: str,
  share: float,
  halvings: int,
  case_of: Callable[[dict], np.ndarray],
  size: Callable[[], int],
) -> experiment.Study:
  """Returns the study that halves, so many times, the interval in which each case breaks.

  Each case has its own eps, in one program, under the attack `main`. At every level found, an
  attack did break the case. case_of: batch -> [b], the index of the case of every example. size: ()
  -> examples that are attacked.
  """
  how = {'attacks': attacks, 'metric': metric, 'share': share}

  def run(context: artifacts.Context, models, rows) -> None:
    rows = context.exp.grid.subjects(rows)
    pieces = [
      stored_tables.Table(
        file_of(model.arm, model.trial),
        functools.partial(_refined, context, model, rows, how, main, halvings, case_of),
        f'the smallest breaking eps of {model.arm}',
        model.arm,
      )
      for model in models
    ]
    stored_tables.fill_missing(
      'smallest breaking eps', pieces, folder=context.results, stopper=context.stopper
    )

  def cells(arm, trial, arms):
    del arms
    return {file_of(arm, trial): costs.attacked(probes[main].attack, halvings * size())}

  return experiment.Study('the smallest breaking eps', run, cells)


def _refined(context, model, rows, how, main, halvings, case_of) -> pd.DataFrame:
  table = cases(rows, arm=model.arm, **how).set_index('index')
  plain = copy.copy(model.evaluator or context.evaluator)
  plain.host, variables = None, model.load()
  broken = how['share'] * table['clean']
  opened = np.isfinite(table['level'])
  for _ in range(halvings if opened.any() else 0):
    middle = ((table['below'] + table['level']) / 2).where(opened, 0.0)
    level = functools.partial(_level, middle, case_of)
    batches = [
      batch
      for batch in context.batches(*model.trial.fold)
      if parallel.any_host(bool((level(batch) > 0).any()))
    ]
    found = grid.scored(plain, variables, batches, attack=main, eps_of=level)
    found = found.assign(arm=model.arm, attack=main, eps=1.0, **model.trial.columns)
    metric = context.exp.grid.subjects(found).set_index('index')[how['metric']]
    hit = opened & (metric.reindex(table.index) < broken)
    table['level'] = table['level'].where(~hit, middle)
    table['below'] = table['below'].where(hit | ~opened, middle)
  return table.reset_index()[[*COLUMNS]]


def _level(levels, case_of, batch) -> np.ndarray:
  """The level of every example of a batch, that of its case."""
  return levels.reindex(case_of(batch)).to_numpy()

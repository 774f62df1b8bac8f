"""The smallest level of the grid that breaks each case, over all attacks bounded by eps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustmed.evaluation import grid


def cases(rows: pd.DataFrame, *, arm: str, attacks: Sequence[str], metric: str, share: float):
  """Returns one row per case: index, group, clean value, level (inf: none of the grid broke it).

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
    found.append((int(index), int(line['group']), float(value), float(level)))
  return pd.DataFrame(found, columns=['index', 'group', 'clean', 'level'])


def quartiles(levels: Sequence[float]) -> tuple[float, float, float]:
  """Returns first quartile, median and third quartile of known levels, each a level of the grid."""
  known = np.sort(np.asarray(levels, np.float64))
  known = known[~np.isnan(known)]
  if not len(known):
    return (np.nan,) * 3
  at = [int(np.ceil(q * len(known))) - 1 for q in (0.25, 0.5, 0.75)]
  return tuple(float(known[max(0, place)]) for place in at)

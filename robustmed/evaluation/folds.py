"""The effect of folds: whether the groups of one fold differ from those of another by more than
chance, as they do where the network of one fold is better than that of another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from robustmed.evaluation import statistics


class Effect(NamedTuple):
  """F of a one-way analysis of variance and its p; nan where nothing varies within the folds."""

  f: np.ndarray
  p: np.ndarray


def effect(folds: Sequence[np.ndarray]) -> Effect:
  """Returns the effect of folds on the means of their groups, [..., groups of the fold] each."""
  sizes = np.array([values.shape[-1] for values in folds])
  means = np.stack([values.mean(-1) for values in folds], -1)
  overall = (means * sizes).sum(-1, keepdims=True) / sizes.sum()
  between = (sizes * np.square(means - overall)).sum(-1)
  within = sum(np.square(values - values.mean(-1, keepdims=True)).sum(-1) for values in folds)
  free = len(folds) - 1, int(sizes.sum()) - len(folds)
  varies = (within > 0) & (free[1] > 0)
  f = np.where(varies, between / free[0] / np.where(varies, within / max(free[1], 1), 1), np.nan)
  return Effect(f, stats.f.sf(f, *free))


def table(
  rows: pd.DataFrame, *, arms: Sequence[str], metric: str, attack: str, levels: Sequence[float]
) -> pd.DataFrame:
  """Returns a line per arm and level: the mean over the groups of every fold, and their effect.

  rows: prepared, with a column 'fold'; a group is in one fold.
  """
  number = rows.drop_duplicates('group').set_index('group')['fold']
  every, lines = sorted(number.unique()), []
  for arm in arms:
    for eps in levels:
      cell = statistics.select(rows, arm=arm, attack=attack, eps=eps)
      means = statistics.examples(cell, metric=metric).groupby('group')['value'].mean()
      found = [means[number[means.index] == fold].to_numpy() for fold in every]
      if all(map(len, found)):
        f, p = effect(found)
        lines.append((arm, eps, *(values.mean() for values in found), float(f), float(p)))
  return pd.DataFrame(lines, columns=['arm', 'level', *(f'fold {n}' for n in every), 'F', 'p'])

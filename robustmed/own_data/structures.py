"""Which structures a network finds at all, and how far off the outlines of these are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustmed.evaluation import statistics


def lines(
  rows: pd.DataFrame, *, names: Sequence[str], attack: str, eps: float, whole: bool
) -> list[dict[str, Any]]:
  """Returns a line per network and class: cases that have it, how many of them the network misses,
  and HD95 over the cases in which it is found untouched and attacked.

  HD95 of a structure that is not found is the diagonal of the image, which is no distance. whole:
  distances are of whole cases; those of single slices are not told apart, so they are nan.
  """
  found = []
  for arm, mine in rows.groupby('arm', sort=False):
    cells = [
      statistics.select(mine, arm=arm, attack=name, eps=level)
      .groupby('index')
      .mean(numeric_only=True)  # over seeds
      for name, level in ((statistics.CLEAN, 0.0), (attack, eps))
    ]
    for number, name in enumerate(names, start=1):
      column, there, absent = f'HD95_{name}', [], []
      for cell in cells:
        tp, fp, fn = (cell[f'_{kind}{number}'] for kind in ('tp', 'fp', 'fn'))
        there.append(tp + fn > 0)
        absent.append(there[-1] & (tp + fp == 0))
      shown = there[0].index[there[0]]
      kept = [case for case in shown if not any(one.get(case, True) for one in absent)]
      known = whole and column in mine and len(kept)
      found.append(
        {
          'network': arm,
          'class': name,
          'eps': eps,
          'cases': len(shown),
          'absent_clean': int(absent[0].sum()),
          'absent_attacked': int(absent[1].sum()),
          'compared': len(kept) if known else 0,
          'HD95_clean': float(cells[0].loc[kept, column].mean()) if known else np.nan,
          'HD95_attacked': float(cells[1].loc[kept, column].mean()) if known else np.nan,
        }
      )
  return found


def words(listed: Sequence[Mapping[str, Any]], *, unit: str, means: Sequence[float | None]) -> str:
  """Returns sentences on one network's lines; means: HD95 of all, clean and attacked, with those
  that are not found, for single slices."""
  compared, cases = (sum(line[name] for line in listed) for name in ('compared', 'cases'))
  text = ''
  if compared:
    near, far = (
      sum(line['compared'] * line[f'HD95_{kind}'] for line in listed if line['compared']) / compared
      for kind in ('clean', 'attacked')
    )
    of = 'in all cases' if compared == cases else f'{compared} of {cases} over all cases'
    text = (
      f'Of the outlines of structures that are found ({of}) 95 % lies within {near:.3g} {unit} of '
      f'the reference on untouched images, within {far:.3g} under attack. '
    )
  elif listed and None not in means and not all(line['absent_clean'] for line in listed):
    text = (
      f'The 95 % distance of outlines is {means[0]:.3g} {unit} on untouched images, {means[1]:.3g} '
      'under attack, where a slice without the structure counts as far off as its diagonal. '
    )
  missed = [
    f'{line["class"].replace("_", " ")} in {line["absent_clean"]} of {line["cases"]} cases '
    f'untouched, {line["absent_attacked"]} attacked'
    for line in listed
    if line['absent_clean'] or line['absent_attacked']
  ]
  return text + (f'Not found at all: {"; ".join(missed)}. ' if missed else '')

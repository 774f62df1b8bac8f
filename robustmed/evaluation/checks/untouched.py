"""Checks of a network on untouched images: whether its input and its classes can be right."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustmed.evaluation import statistics
from robustmed.evaluation.checks.check import Check

ADVICE = 'check the input (normalise, orientation, spacing) and the names and order of the classes'


VALUE, CLASSES = UNTOUCHED = 'clean value', 'every class is found'  # names of the checks


def of_untouched(
  rows: pd.DataFrame, *, metric: str, poor: float | None, classes: Sequence[str] = ()
) -> list[Check]:
  """Returns for every arm whether its clean metric is at least `poor`, where that is known, and
  whether every class is found.

  Of classes, `_tp1`, `_fn1` and so on are counts of each row. A class has Dice 0 where no element
  of it is found.
  """
  found = []
  for arm, mine in rows.groupby('arm', sort=False):
    clean = mine[mine['attack'] == statistics.CLEAN]
    if poor is not None:
      found.append(Check(VALUE, arm, *_value(clean[metric].mean(), metric, poor)))
    if classes:
      found.append(Check(CLASSES, arm, *_classes(clean, classes)))
  return found


def _value(mean: float, metric: str, poor: float) -> tuple[str, str]:
  if not np.isfinite(mean):
    return 'skipped', f'{metric} of untouched images is unknown'
  text = f'{metric} on untouched images is {mean:.3f}'
  if mean < poor:
    return 'warn', f'{text}, below {poor:g}: {ADVICE}'
  return 'pass', f'{text}, not below {poor:g}'


def _classes(clean: pd.DataFrame, classes: Sequence[str]) -> tuple[str, str]:
  never, shown = [], 0
  for number, name in enumerate(classes, start=1):
    there = clean[clean[f'_tp{number}'] + clean[f'_fn{number}'] > 0]
    shown += bool(len(there))
    if len(there) and not (there[f'_tp{number}'] > 0).any():
      never.append(
        f'{name} is never found: Dice 0 on all {len(there)} untouched cases that have it'
      )
  if never:
    return 'warn', f'{"; ".join(never)}; {ADVICE}'
  if not shown:
    return 'skipped', 'the labels show no class'
  return 'pass', f'{shown} of {len(classes)} classes are in the labels, each is found somewhere'

"""Which training of an arm a network is of: its seed and, where a run has several folds, its fold.

A seed is to the initial weights what a fold is to the data. Both are columns of the rows; a run
without folds has no column of folds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

AXES = ('seed', 'fold')


class Trial(tuple[int, ...]):
  """(seed,) or (seed, fold)."""

  def __new__(cls, seed: int, *fold: int):
    if len(fold) >= len(AXES):
      raise ValueError(f'a trial has {AXES}, not {(seed, *fold)}')
    return super().__new__(cls, (seed, *fold))

  @property
  def seed(self) -> int:
    return self[0]

  @property
  def fold(self) -> tuple[int, ...]:
    """(fold,), or () without folds."""
    return self[1:]

  @property
  def columns(self) -> dict[str, int]:
    """{'seed': 0, 'fold': 2}, the columns of its rows."""
    return dict(zip(AXES, self))

  @property
  def folder(self) -> str:
    """'seed0/fold2'."""
    return '/'.join(self._parts('{}{}'))

  @property
  def said(self) -> str:
    """'seed 0, fold 2', for messages."""
    return ', '.join(self._parts('{} {}'))

  def __str__(self) -> str:
    """'seed0.fold2', for names of files."""
    return '.'.join(self._parts('{}{}'))

  def _parts(self, form: str) -> list[str]:
    return [form.format(name, number) for name, number in self.columns.items()]


def listed(seeds: int, folds: int) -> list[Trial]:
  """Returns all trainings of an arm in their order; `folds` 0: a run without folds."""
  every = [(fold,) for fold in range(folds)] or [()]
  return [Trial(seed, *fold) for seed in range(seeds) for fold in every]


def parse(text: str) -> Trial:
  """Returns the trial of its `str`."""
  parts = text.split('.')
  return Trial(*(int(part.removeprefix(name)) for name, part in zip(AXES, parts, strict=False)))


def of(record: Mapping[str, Any]) -> Trial:
  """Returns the trial of a record with its columns, such as the card of a network."""
  return Trial(*(int(record[name]) for name in names(record)))


def names(record) -> list[str]:
  """Returns the columns of trials that rows or a record have."""
  return [name for name in AXES if name in record]


def select(rows: pd.DataFrame, trial: Trial) -> pd.DataFrame:
  """Returns the rows of a trial."""
  here = [rows[name] == number for name, number in trial.columns.items()]
  return rows[np.logical_and.reduce(here)]

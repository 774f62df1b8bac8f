"""Reads the results of training and evaluation from a workdir. Nothing is ever unpickled."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robustmed import errors
from robustmed.evaluation import checks, statistics, trials
from robustmed.process import files

EXAMPLE_KEYS = ('arm', 'attack', 'eps', 'index', 'image', 'adversarial')


class Inputs(NamedTuple):
  """What a report is made of; None: not in the workdir."""

  rows: pd.DataFrame
  metrics: tuple[str, ...]
  summary: pd.DataFrame
  checks: tuple[checks.Check, ...]
  examples: Mapping[str, np.ndarray] | None
  training: pd.DataFrame | None
  config: Mapping[str, Any]
  env: Mapping[str, Any]
  worst: pd.DataFrame | None  # summary of the worst of all attacks ...
  worst_members: pd.DataFrame | None  # ... and which attack found it
  stored: pd.DataFrame | None = None  # attacked images as their files hold them, a line each


def read(workdir: pathlib.Path) -> Inputs:
  """Returns everything that the report is made of.

  Only `results/rows.parquet` must exist. `results/summary.csv` is used when it covers every
  metric of the rows, else it is computed again.

  Raises:
    UserError: no rows, or a file that cannot be read.
  """
  workdir = files.path_of(workdir)
  results = workdir / 'results'
  path = results / 'rows.parquet'
  if not path.is_file():
    raise errors.UserError(f'no results at {path}: run --stage evaluate with this workdir first')
  rows = statistics.prepare(files.read_with(path, pd.read_parquet))
  if rows.empty:
    raise errors.UserError(f'{path} holds no rows: run --stage evaluate with this workdir again')
  skip = {*statistics.KEYS, 'group', *trials.AXES}
  metrics = tuple(
    name
    for name in rows.columns
    if name not in skip and not name.startswith('_') and pd.api.types.is_numeric_dtype(rows[name])
  )
  found = _json(results / 'checks.json', default=[])
  return Inputs(
    rows=rows,
    metrics=metrics,
    summary=_summary(results / 'summary.csv', rows=rows, metrics=metrics),
    checks=tuple(_check(line, results / 'checks.json') for line in found),
    examples=_examples(results / 'examples.npz'),
    training=_optional(workdir / 'logs' / 'train.csv', pd.read_csv),
    config=_json(workdir / 'config.json', default={}),
    env=_json(workdir / 'env.json', default={}),
    worst=_optional(results / 'worst.csv', pd.read_csv),
    worst_members=_optional(results / 'worst_members.csv', pd.read_csv),
    stored=_stored(results / 'stored'),
  )


def no_rows(metrics: Sequence[str]) -> pd.DataFrame:
  """The rows of a run before it has any."""
  return pd.DataFrame({name: np.zeros(0) for name in (*statistics.KEYS, 'group', *metrics)})


def _stored(folder: pathlib.Path) -> pd.DataFrame | None:
  # sums of the files lie beside them
  found = [path for path in files.iter_files(folder) if path.suffix == '.json']
  lines = [_json(path, default={}) for path in found]
  return pd.DataFrame(lines) if lines else None


def _optional(path: pathlib.Path, reader):
  return files.read_with(path, reader) if path.is_file() else None


def _json(path: pathlib.Path, *, default):
  return files.read_with(path, json.load) if path.is_file() else default


def _check(line, path: pathlib.Path) -> checks.Check:
  try:
    return checks.Check(**line) if isinstance(line, Mapping) else checks.Check(*line)
  except TypeError as error:
    raise errors.UserError(
      f'{path} holds a check without name, arm, status and detail; run --stage evaluate again'
    ) from error


def _summary(path: pathlib.Path, *, rows: pd.DataFrame, metrics) -> pd.DataFrame:
  def reader(file):
    return pd.read_csv(
      file, keep_default_na=False, na_values={'mean': '', 'std': '', 'low': '', 'high': ''}
    )

  stored = _optional(path, reader)
  if stored is not None and [*stored.columns] == [*statistics.SUMMARY]:
    keys = ['arm', 'attack', 'eps']
    cells = set(rows[keys].itertuples(index=False, name=None))
    if all(
      cells == set(stored.loc[stored['metric'] == metric, keys].itertuples(index=False, name=None))
      for metric in metrics
    ):
      return stored
  return statistics.summary(rows, metrics=metrics)


def arrays(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """Everything in an .npz file, None where there is none; a damaged one is a `UserError`."""
  return files.read_arrays(path) if path.is_file() else None


def seconds_per_step(training: pd.DataFrame | None) -> pd.DataFrame:
  """Seconds per step of every interval of the training log; the first, with compilation, left out.

  Columns arm, seed (and fold), step and per_step. Time starts from 0 again where a run was resumed;
  such an interval is left out too.
  """
  if training is None:
    return pd.DataFrame(columns=['arm', 'seed', 'step', 'per_step'])
  keys, lines = ['arm', *trials.names(training)], []
  for values, part in training.groupby(keys, sort=False):
    part = part.sort_values('step')
    passed = part['seconds'].diff() / part['step'].diff()
    for step, value in list(zip(part['step'], passed))[1:]:
      if value > 0:
        lines.append((*values, step, value))
  return pd.DataFrame(lines, columns=[*keys, 'step', 'per_step'])


def _examples(path: pathlib.Path):
  stored = arrays(path)
  if stored is None or not len(stored.get('arm', ())):
    return None
  missing = [name for name in EXAMPLE_KEYS if name not in stored]
  if missing:
    raise errors.UserError(f'{path} lacks the arrays {missing}; run --stage evaluate again')
  stored['eps'] = np.array([statistics.level(eps) for eps in stored['eps']])
  return stored

"""Reads the results of training and evaluation from a workdir. Nothing is ever unpickled."""

import datetime
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from robustmed import errors
from robustmed.evaluation import checks, statistics, trials
from robustmed.process import checksums, files

_NUMBERS = (*trials.AXES, 'seconds', 'loss', 'n', 'low', 'high', 'std')
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
  evaluated: Mapping[str, Any] = {}  # when and by what, see `evaluated`
  data: Mapping[str, Any] = {}  # name, fingerprint and sizes
  networks: Mapping[str, str] = {}  # ARM/seed0 -> sha256 of the list of sums of its files


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
  if not files.present(path):
    raise errors.UserError(f'no results at {path}: run --stage evaluate with this workdir first')
  rows = read_rows(path)
  metrics = _metrics(rows)
  worst = {'arm': False, 'attack': False, 'metric': False, 'eps': True, 'mean': True}
  members = {'arm': False, '_member': False, 'eps': True, 'share': True}
  log = {'arm': False, 'step': True}
  return Inputs(
    rows=rows,
    metrics=metrics,
    summary=_summary(results / 'summary.csv', rows=rows, metrics=metrics),
    checks=read_checks(workdir),
    examples=_examples(results / 'examples.npz'),
    training=_table(workdir / 'logs' / 'train.csv', log),
    config=_json(workdir / 'config.json', default={}),
    env=_json(workdir / 'env.json', default={}),
    worst=_table(results / 'worst.csv', worst),
    worst_members=_table(results / 'worst_members.csv', members),
    stored=_stored(results / 'stored'),
    evaluated=evaluated(workdir),
    data=_json(workdir / 'data.json', default={}),
    networks=_networks(workdir / 'checkpoints'),
  )


def evaluated(workdir: files.Path) -> dict[str, Any]:
  """Returns evaluated.json: date, commit and version of the evaluation.

  Where an earlier version left none, the date alone, that of the rows.
  """
  path = workdir / 'evaluated.json'
  if files.present(path):
    return _json(path, default={})
  stamp = (workdir / 'results' / 'rows.parquet').stat().st_mtime
  when = datetime.datetime.fromtimestamp(round(stamp), datetime.UTC)
  return {'date': when.isoformat()}


def _networks(folder: files.Path) -> dict[str, str]:
  """The digest of every trained network whose files have sums."""
  if not folder.is_dir():
    return {}
  lists = {
    f'{arm.name}/{trial.name}': trial / 'variables' / checksums.LIST
    for arm in sorted(folder.iterdir())
    if arm.is_dir()
    for trial in sorted(arm.iterdir())
  }
  return {name: checksums.digest(path) for name, path in lists.items() if files.present(path)}


def read_rows(path: files.Path) -> pd.DataFrame:
  """Returns the rows of rows.parquet as `statistics.prepare` does; none are a `UserError`."""
  found = files.read_with(path, pd.read_parquet)
  try:
    rows = statistics.prepare(found)
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f'{path} is damaged ({str(error)[:200]}); run --stage evaluate with this workdir again'
    ) from error
  if rows.empty:
    raise errors.UserError(f'{path} holds no rows: run --stage evaluate with this workdir again')
  return rows


def _metrics(rows) -> tuple[str, ...]:
  skip = {*statistics.KEYS, 'group', *trials.AXES}
  return tuple(
    name
    for name in rows.columns
    if name not in skip and not name.startswith('_') and pd.api.types.is_numeric_dtype(rows[name])
  )


def read_summary(workdir: files.Path) -> pd.DataFrame:
  """Returns results/summary.csv, or what is computed of the rows where it does not fit them."""
  results = workdir / 'results'
  rows = read_rows(results / 'rows.parquet')
  return _summary(results / 'summary.csv', rows=rows, metrics=_metrics(rows))


def read_checks(workdir: files.Path) -> tuple[checks.Check, ...]:
  """Returns the checks of the evaluation; none where the file is missing."""
  path = workdir / 'results' / 'checks.json'
  found = _json(path, default=[], kind=list)
  return tuple(_check(line, path) for line in found)


def no_rows(metrics: Sequence[str]) -> pd.DataFrame:
  """The rows of a run before it has any."""
  return pd.DataFrame({name: np.zeros(0) for name in (*statistics.KEYS, 'group', *metrics)})


def _stored(folder: pathlib.Path) -> pd.DataFrame | None:
  # sums of the files lie beside them
  found = [path for path in files.iter_files(folder) if path.suffix == '.json']
  lines = [_json(path, default={}) for path in found]
  return pd.DataFrame(lines) if lines else None


def _table(path: pathlib.Path, columns: Mapping[str, bool]) -> pd.DataFrame | None:
  """Returns a table, None where there is none; columns: those it must have -> are they numbers.

  Others of `_NUMBERS` must be numbers, too.
  """
  if not files.present(path):
    return None
  found = files.read_with(path, _read_csv)
  others = {name: True for name in _NUMBERS if name in found}
  for name, number in {**others, **columns}.items():
    if name not in found or (number and not pd.api.types.is_numeric_dtype(found[name])):
      what = 'no column' if name not in found else 'no numbers in the column'
      raise errors.UserError(
        f'{path} is damaged ({what} {name}); run the stage that wrote it again'
      )
  return found


def _read_csv(file, **options) -> pd.DataFrame:
  text = file.read().decode('utf-8-sig')
  if '\0' in text:
    raise ValueError('it has zero bytes')
  found = pd.read_csv(io.StringIO(text), **options)
  if not isinstance(found.index, pd.RangeIndex):  # pandas takes the first cells for names
    raise ValueError('its rows have more cells than the first row')
  return found


def _json(path: pathlib.Path, *, default, kind=dict):
  if not files.present(path):
    return default
  found = files.parsed_json(path, help_text='delete it and run that stage again')
  if not isinstance(found, kind):
    raise errors.UserError(f'{path} is damaged (no {kind.__name__}); run that stage again')
  return found


def _check(line, path: pathlib.Path) -> checks.Check:
  try:
    found = checks.Check(**line) if isinstance(line, Mapping) else checks.Check(*line)
    if not all(isinstance(value, str) for value in found):
      raise TypeError('no text')
  except TypeError as error:
    raise errors.UserError(
      f'{path} holds a check without name, arm, status and detail; run --stage evaluate again'
    ) from error
  return found


def _summary(path: pathlib.Path, *, rows: pd.DataFrame, metrics) -> pd.DataFrame:
  unknown = {'mean': '', 'std': '', 'low': '', 'high': ''}
  stored = None
  if files.present(path):
    try:
      stored = files.read_with(
        path, lambda file: _read_csv(file, keep_default_na=False, na_values=unknown)
      )
    except errors.UserError as error:
      from robustmed.process import console  # here, so that reading imports no JAX

      console.say(f'{error}; it is computed from the rows')
  if stored is not None and _is_summary(stored):
    keys = ['arm', 'attack', 'eps']
    cells = set(rows[keys].itertuples(index=False, name=None))
    if all(
      cells == set(stored.loc[stored['metric'] == metric, keys].itertuples(index=False, name=None))
      for metric in metrics
    ):
      return stored
  return statistics.summary(rows, metrics=metrics)


def _is_summary(table) -> bool:
  numbers = ('eps', 'mean', 'std', 'n', 'low', 'high')
  return [*table.columns] == [*statistics.SUMMARY] and all(
    pd.api.types.is_numeric_dtype(table[name]) for name in numbers
  )


def arrays(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """Everything in an .npz file, None where there is none; a damaged one is a `UserError`."""
  return files.read_arrays(path) if files.present(path) else None


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
  kinds = {'arm': 'U', 'attack': 'U', 'eps': 'f', 'index': 'iu', 'image': 'fiu'}
  bad = [name for name in kinds if stored[name].dtype.kind not in kinds[name]]
  sizes = {len(stored[name]) if stored[name].ndim else 0 for name in EXAMPLE_KEYS}
  if bad or len(sizes) > 1 or stored['image'].shape != stored['adversarial'].shape:
    raise errors.UserError(f'{path} is damaged (its arrays do not fit); run --stage evaluate again')
  stored['eps'] = np.array([statistics.level(eps) for eps in stored['eps']])
  return stored

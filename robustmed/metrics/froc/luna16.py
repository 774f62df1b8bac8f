"""Reads the tables of the LUNA16 challenge: annotations, irrelevant findings, scans, submissions.

A folder of annotations holds the files that come with the challenge's evaluation script:

- `annotations.csv`: seriesuid, coordX, coordY, coordZ (world, mm), diameter_mm of the nodules;
- `annotations_excluded.csv`: the same of irrelevant findings; a negative diameter means unknown;
- `seriesuids.csv`: one scan a line, without a header; 'per scan' counts all of them.

A submission has seriesuid, coordX, coordY, coordZ and probability. Errors in a file are a
`UserError` with the file and the row, counted from the header, which is row 1.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed import errors
from robustmed.metrics import froc
from robustmed.process import files

_PLACE = ('coordX', 'coordY', 'coordZ')
_HELP = 'copy the folder evaluationScript/annotations of the LUNA16 challenge'


class Annotations(NamedTuple):
  """The scans and all findings on them."""

  scans: tuple[str, ...]  # series ids in the order of seriesuids.csv
  findings: froc.Findings


def read_annotations(folder: pathlib.Path, *, min_diameter: float = 0.0) -> Annotations:
  """Returns nodules and irrelevant findings; nodules below `min_diameter` mm become irrelevant."""
  names = ('annotations.csv', 'annotations_excluded.csv', 'seriesuids.csv')
  missing = [name for name in names if not (folder / name).is_file()]
  if missing:
    raise errors.UserError(f'{folder}: has no {missing[0]}; {_HELP}')
  scans = read_scans(folder / names[2])
  nodules = read_rows(folder / names[0], 'diameter_mm', scans, once=True)
  others = read_rows(folder / names[1], 'diameter_mm', scans, empty=True)
  large = nodules.value >= min_diameter
  if not large.any():
    raise errors.UserError(f'{folder / names[0]}: has no nodule of {min_diameter:g} mm or more')
  findings = froc.Findings(
    scan=np.concatenate([nodules.scan, others.scan]),
    centre=np.concatenate([nodules.centre, others.centre]),
    diameter=np.concatenate([nodules.value, others.value]),
    nodule=np.concatenate([large, np.zeros(len(others.scan), bool)]),
  )
  return Annotations(scans, findings)


def read_submission(path: pathlib.Path, scans: Sequence[str]) -> froc.Marks:
  """Returns the marks of a submission; an empty one is a `UserError`."""
  table = read_rows(path, 'probability', scans)
  return froc.Marks(scan=table.scan, centre=table.centre, probability=table.value)


class Rows(NamedTuple):
  """A checked table of positions with one more column."""

  scan: np.ndarray  # [n] int, index into the list of scans
  centre: np.ndarray  # [n, 3] world, mm
  value: np.ndarray  # [n], the requested column
  row: np.ndarray  # [n] int, row of the file, the header being 1


def read_scans(path: pathlib.Path) -> tuple[str, ...]:
  """Returns the series ids that `seriesuids.csv` lists, with or without a header."""
  table = _csv(path, header=None)
  names = tuple(table[0].astype(str).str.strip())
  if names and names[0] == 'seriesuid':
    names = names[1:]
  if not names or len(set(names)) < len(names):
    raise errors.UserError(f'{path}: must list every scan once, and at least one; {_HELP}')
  return names


def read_rows(
  path: pathlib.Path,
  value: str,
  scans: Sequence[str],
  *,
  empty: bool = False,
  once: bool = False,
) -> Rows:
  """Returns a table of positions in scans with one more column of numbers, `value`.

  A missing column, a value that is not a number or an id that is not among `scans` is a `UserError`
  with the file and the row; so is a table without rows, unless `empty`, and, if `once`, a row that
  is there before.
  """
  columns = read_columns(path, (*_PLACE, value), scans)
  if not len(columns.row) and not empty:
    raise errors.UserError(f'{path}: has no rows below its header; nothing to score')
  place = np.stack([columns.values[name] for name in _PLACE], axis=-1)
  rows = Rows(columns.scan, place, columns.values[value], columns.row)
  again = pd.DataFrame({'scan': rows.scan, **columns.values}).duplicated().to_numpy()
  if once and again.any():
    raise errors.UserError(f'{path}, row {rows.row[np.argmax(again)]}: lists a nodule again')
  return rows


class Columns(NamedTuple):
  """Checked columns of a table."""

  scan: np.ndarray  # [n] int, index into the list of scans
  values: dict[str, np.ndarray]  # [n] float64 each
  row: np.ndarray  # [n] int, row of the file, the header being 1


def read_columns(path: pathlib.Path, wanted: Sequence[str], scans: Sequence[str]) -> Columns:
  """Returns the columns `wanted` of a table with a seriesuid, checked as in `read_rows`."""
  table = _csv(path, header=0)
  table.columns = [str(name).strip() for name in table.columns]
  twice = [name for name in ('seriesuid', *wanted) if list(table.columns).count(name) > 1]
  if twice:
    raise errors.UserError(f'{path}, row 1: has the column {twice[0]} twice')
  for name in ('seriesuid', *wanted):
    if name not in table.columns:
      raise errors.UserError(
        f'{path}, row 1: has no column {name}; needs seriesuid, {", ".join(wanted)}'
      )
  rows = table.index.to_numpy() + 2  # counted from the header, which is row 1
  names = table['seriesuid'].astype(str).str.strip()
  scan = pd.Index(scans).get_indexer(names)
  if (scan < 0).any():
    bad = int(np.argmax(scan < 0))
    shown = str(names.iloc[bad])[:60]
    raise errors.UserError(
      f'{path}, row {rows[bad]}: unknown series id {shown!r}; not in seriesuids.csv'
    )
  return Columns(scan, {name: _numbers(table[name], path, rows) for name in wanted}, rows)


def _numbers(column, path, rows):
  values = pd.to_numeric(column, errors='coerce').to_numpy(np.float64)
  bad = ~np.isfinite(values) | (column.dtype.kind == 'b')
  if bad.any():
    first = int(np.argmax(bad))
    shown = str(column.iloc[first])[:60]
    raise errors.UserError(
      f'{path}, row {rows[first]}: {column.name} is {shown}, not a finite number'
    )
  return values


def _csv(path, *, header):
  """Returns the table without its blank rows, which the index counts."""
  try:
    table = pd.read_csv(
      files.regular(path, missing_ok=True),
      header=header,
      dtype={'seriesuid' if header == 0 else 0: str},
      skip_blank_lines=False,
      skipinitialspace=True,
      keep_default_na=False,  # a scan may be called NA
      na_values=[''],
      encoding='utf-8-sig',
      low_memory=False,
    )
  except (OSError, ValueError) as error:  # errors of pandas are ValueErrors
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise errors.UserError(f'{path}: cannot be read as a table ({reason})') from error
  if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells for names
    raise errors.UserError(f'{path}: its rows have more cells than the first row')
  return table.dropna(how='all')

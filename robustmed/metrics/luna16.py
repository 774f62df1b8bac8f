"""Reads the tables of the LUNA16 challenge: annotations, irrelevant findings, scans, submissions.

A folder of annotations holds, as the challenge's evaluation script comes with them:

- `annotations.csv`: seriesuid, coordX, coordY, coordZ (world, mm), diameter_mm of the nodules;
- `annotations_excluded.csv`: the same of findings that count neither way; a negative diameter
  means that it is not known;
- `seriesuids.csv`: one scan a line, without a header; all of them count in 'per scan'.

A submission has seriesuid, coordX, coordY, coordZ and probability. Whatever is wrong in a file is a
`UserError` with the file and the row as an editor shows it (the header is row 1).
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed import errors
from robustmed.metrics import froc

_PLACE = ('coordX', 'coordY', 'coordZ')
_HELP = 'copy the folder evaluationScript/annotations of the LUNA16 challenge'


class Annotations(NamedTuple):
  scans: tuple[str, ...]  # series ids in the order of seriesuids.csv
  findings: froc.Findings


def read_annotations(folder: pathlib.Path, *, min_diameter: float = 0.0) -> Annotations:
  """Returns nodules and irrelevant findings; nodules below `min_diameter` mm become irrelevant."""
  names = ('annotations.csv', 'annotations_excluded.csv', 'seriesuids.csv')
  missing = [name for name in names if not (folder / name).is_file()]
  if missing:
    raise errors.UserError(f'{folder}: has no {missing[0]}; {_HELP}')
  scans = _scans(folder / names[2])
  nodules = _table(folder / names[0], 'diameter_mm', scans)
  others = _table(folder / names[1], 'diameter_mm', scans, empty=True)
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
  table = _table(path, 'probability', scans)
  return froc.Marks(scan=table.scan, centre=table.centre, probability=table.value)


class _Rows(NamedTuple):
  scan: np.ndarray  # [n]
  centre: np.ndarray  # [n, 3]
  value: np.ndarray  # [n]


def _scans(path):
  table = _csv(path, header=None)
  names = tuple(table[0].astype(str).str.strip())
  if names and names[0] == 'seriesuid':
    names = names[1:]
  if not names or len(set(names)) < len(names):
    raise errors.UserError(f'{path}: must list every scan once, and at least one; {_HELP}')
  return names


def _table(path, value, scans, *, empty=False):
  """The checked rows of one table whose last column of interest is `value`."""
  table = _csv(path, header=0)
  table.columns = [str(name).strip() for name in table.columns]
  for name in ('seriesuid', *_PLACE, value):
    if name not in table.columns:
      raise errors.UserError(
        f'{path}, row 1: has no column {name}; needs seriesuid, {", ".join(_PLACE)}, {value}'
      )
  if not len(table) and not empty:
    raise errors.UserError(f'{path}: has no rows below its header; nothing to score')
  rows = table.index.to_numpy() + 2  # counted from 1, and the header is one
  names = table['seriesuid'].astype(str).str.strip()
  scan = pd.Index(scans).get_indexer(names)
  if (scan < 0).any():
    bad = int(np.argmax(scan < 0))
    raise errors.UserError(
      f'{path}, row {rows[bad]}: unknown series id {names.iloc[bad]!r}; not in seriesuids.csv'
    )
  numbers = {name: _numbers(table[name], path, rows) for name in (*_PLACE, value)}
  return _Rows(scan, np.stack([numbers[name] for name in _PLACE], axis=-1), numbers[value])


def _numbers(column, path, rows):
  values = pd.to_numeric(column, errors='coerce').to_numpy(np.float64)
  bad = ~np.isfinite(values)
  if bad.any():
    first = int(np.argmax(bad))
    raise errors.UserError(
      f'{path}, row {rows[first]}: {column.name} is {column.iloc[first]!s}, not a finite number'
    )
  return values


def _csv(path, *, header):
  """The table as it stands, blank rows left out but counted in the index."""
  try:
    table = pd.read_csv(
      path,
      header=header,
      dtype={'seriesuid' if header == 0 else 0: str},
      skip_blank_lines=False,
      skipinitialspace=True,
      encoding='utf-8-sig',
      low_memory=False,
    )
  except (OSError, ValueError) as error:  # of pandas too: its errors are ValueErrors
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise errors.UserError(f'{path}: cannot be read as a table ({reason})') from error
  return table.dropna(how='all')

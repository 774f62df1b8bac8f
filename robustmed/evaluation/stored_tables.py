"""Tables of an evaluation, one file each; finished ones are not repeated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed import errors
from robustmed.process import checksums, compiled, console, files, parallel

HELD = 0.5  # of the memory mappings that a process may have, from which programs are dropped


class Table(NamedTuple):
  """A table to compute, with the file that stores it."""

  file: str  # .parquet or .csv
  make: Callable[[], pd.DataFrame]  # the same on every host
  what: str  # of 'evaluating ...' in error messages
  note: str  # shown beside the progress bar


def fill_missing(name: str, tables: Sequence[Table], *, folder, stopper: console.Stopper) -> None:
  """Makes, in order, all tables whose files `folder` lacks.

  Every file is written whole or not at all; one that is damaged is computed again. A requested stop
  raises `console.Stopped` between two tables.
  """
  found = parallel.broadcast_from_writer(
    np.array([_is_stored(folder / one.file) for one in tables], bool)
  )
  progress = console.Progress(name, len(tables), done=int(found.sum()))
  for number, (one, have) in enumerate(zip(tables, found)):
    if have:
      continue
    if stopper.requested():
      progress.close()
      console.say('stopped in evaluation; run the same command to resume')
      raise console.Stopped
    compiled.drop_programs(HELD)
    with errors.during(f'evaluating {one.what}'):
      table = one.make()
    if parallel.is_writer():
      with files.replacing(folder / one.file) as temporary:
        write(table, temporary)
    progress.update(number + 1, one.note)
  progress.close()
  parallel.barrier(name)


def _is_stored(path) -> bool:
  if checksums.is_intact(path):
    return True
  if path.is_file():
    console.say(f'{path} is damaged and is computed again')
  return False


def write(table: pd.DataFrame, path) -> None:
  """Writes a table as its suffix says, .csv or .parquet."""
  if path.suffix == '.csv':
    table.to_csv(path, index=False, float_format='%.6g')
  else:
    table.to_parquet(path, index=False)

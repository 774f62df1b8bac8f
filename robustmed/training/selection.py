"""Of the weights at all checkpoints those that a judge likes best, and an end before the last step.

For trainings whose last weights need not be their best, such as two networks against each other.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from robustmed import types
from robustmed.process import files, parallel
from robustmed.training import checkpoints

PyTree = Any
_WEIGHTS = 'weights_'


class Verdict(Protocol):
  """score: smaller is better; stop: why training should end now, or ''; row: what was measured."""

  score: float
  stop: str
  row: Mapping[str, float]


Judge = Callable[[PyTree, list[Mapping[str, float]]], Verdict]  # (variables, earlier rows)


class Ending(NamedTuple):
  """How a training that was judged ended."""

  step: int
  score: float
  stop: str


class Keeper:
  """Looks at a training's weights at its checkpoints; all it knows lies in `folder`.

  A look is repeated bit for bit by a run that goes on, so nothing depends on when it was killed.
  """

  def __init__(self, folder: str | os.PathLike, judge: Judge, task: types.Task):
    self._folder, self._judge, self._task = files.path_of(folder), judge, task

  @property
  def _table(self) -> files.Path:
    return self._folder / 'looks.json'

  def rows(self, until: int | None = None) -> list[dict[str, Any]]:
    """{'step', 'score', 'stop', ...} of every look so far."""
    found = files.read_json(self._table) if self._table.is_file() else []
    return [row for row in found if until is None or row['step'] <= until]

  def look(self, step: int, variables: PyTree) -> str:
    """Judges, keeps the weights if they are the best; returns the reason to stop or ''."""
    rows = self.rows(step - 1)
    verdict = self._judge(variables, rows)
    best = min((row['score'] for row in rows), default=float('inf'))
    if verdict.score < best or not rows:
      self._keep(step, variables)
    rows.append({'step': step, 'score': verdict.score, 'stop': verdict.stop, **verdict.row})
    if parallel.is_writer():
      files.write_json(self._table, rows)
      kept = self._place(_best(rows)['step']).name
      for old in list(self._folder.iterdir()):
        if old.name.startswith(_WEIGHTS) and old.name != kept:
          with contextlib.suppress(OSError):
            files.remove_folder(old)
    parallel.barrier('look')
    return verdict.stop

  def _keep(self, step, variables):
    path = self._place(step)
    if parallel.is_writer():
      self._folder.mkdir(parents=True, exist_ok=True)
      files.remove_folder(path)  # of a look that was interrupted
    parallel.barrier('keep')
    checkpoints.save_variables(path, variables)

  def ended(self, step: int) -> bool:
    """Whether a look at or before `step` ended the training."""
    return any(row['stop'] for row in self.rows(step))

  def best(self) -> tuple[PyTree, Ending]:
    rows = self.rows()
    chosen = _best(rows)
    variables = checkpoints.load_variables(self._place(chosen['step']), self._task)
    stop = next((row['stop'] for row in rows if row['stop']), '')
    return variables, Ending(chosen['step'], chosen['score'], stop)

  def _place(self, step):
    return self._folder / f'{_WEIGHTS}{step}'


def _best(rows):
  """The first of the smallest scores: later ones must be better to take its place."""
  return min(rows, key=lambda row: (row['score'], row['step']))

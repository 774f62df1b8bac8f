"""Selection of the weights with the best score among all checkpoints, and early stopping.

For trainings whose last weights need not be their best, such as adversarial ones of two networks.
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


class Evaluation(Protocol):
  """A score (smaller is better), the reason to stop now or '', and what was measured."""

  score: float
  stop: str
  row: Mapping[str, float]


Scorer = Callable[[PyTree, list[Mapping[str, float]]], Evaluation]  # (variables, earlier rows)


class Selected(NamedTuple):
  """The selected step, its score, and why training stopped early ('' if it did not)."""

  step: int
  score: float
  stop: str


class BestWeights:
  """Scores a training's weights at its checkpoints and keeps the best; its state lies in `folder`.

  A resumed run repeats an evaluation bit for bit, so the result does not depend on interruptions.
  """

  def __init__(self, folder: str | os.PathLike, scorer: Scorer, task: types.Task):
    self._folder, self._scorer, self._task = files.path_of(folder), scorer, task

  @property
  def _table(self) -> files.Path:
    return self._folder / 'looks.json'

  def rows(self, until: int | None = None) -> list[dict[str, Any]]:
    """Returns {'step', 'score', 'stop', ...} of every evaluation up to step `until`."""
    found = files.read_json(self._table) if self._table.is_file() else []
    return [row for row in found if until is None or row['step'] <= until]

  def evaluate(self, step: int, variables: PyTree) -> str:
    """Scores the weights, keeps them if they are the best; returns the reason to stop, or ''."""
    rows = self.rows(step - 1)
    found = self._scorer(variables, rows)
    best = min((row['score'] for row in rows), default=float('inf'))
    if found.score < best or not rows:
      self._keep(step, variables)
    rows.append({'step': step, 'score': found.score, 'stop': found.stop, **found.row})
    if parallel.is_writer():
      files.write_json(self._table, rows)
      kept = self._path(_best(rows)['step']).name
      for old in list(self._folder.iterdir()):
        if old.name.startswith(_WEIGHTS) and old.name != kept:
          with contextlib.suppress(OSError):
            files.remove_folder(old)
    parallel.barrier('look')
    return found.stop

  def _keep(self, step, variables):
    path = self._path(step)
    if parallel.is_writer():
      self._folder.mkdir(parents=True, exist_ok=True)
      files.remove_folder(path)  # of an interrupted evaluation
    parallel.barrier('keep')
    checkpoints.save_variables(path, variables)

  def ended(self, step: int) -> bool:
    """Returns whether an evaluation at or before `step` ended the training."""
    return any(row['stop'] for row in self.rows(step))

  def load(self) -> tuple[PyTree, Selected]:
    """Returns the weights with the smallest score, and which they are."""
    rows = self.rows()
    chosen = _best(rows)
    variables = checkpoints.load_variables(self._path(chosen['step']), self._task)
    stop = next((row['stop'] for row in rows if row['stop']), '')
    return variables, Selected(chosen['step'], chosen['score'], stop)

  def _path(self, step):
    return self._folder / f'{_WEIGHTS}{step}'


def _best(rows):
  """Returns the row with the smallest score, of equal ones the first."""
  return min(rows, key=lambda row: (row['score'], row['step']))

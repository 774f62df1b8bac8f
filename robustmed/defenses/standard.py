"""Standard training: the task's loss on the clean image."""

from robustmed import types
from robustmed.defenses import weighted


def make(task: types.Task, *, coupled: bool = False, objective: str = '') -> types.Defense:
  """With `coupled` the task's loss is the one that couples the examples of a batch; `objective`
  names one of the task's objectives to train on instead of its losses."""
  phase = weighted.phase(task, [weighted.CLEAN], coupled=coupled, objective=objective)
  return types.Defense(phases=(phase,), coupled=coupled)

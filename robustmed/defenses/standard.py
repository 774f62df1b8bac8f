"""Standard training: the task's loss on the clean image."""

from robustmed import types
from robustmed.defenses import weighted


def make(task: types.Task, *, coupled: bool = False) -> types.Defense:
  """With `coupled` the task's loss is the one that couples the examples of a batch."""
  phase = weighted.phase(task, [weighted.CLEAN], coupled=coupled)
  return types.Defense(phases=(phase,), coupled=coupled)

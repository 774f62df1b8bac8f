"""Standard training: the task's loss on the clean image."""

from robustmed import types
from robustmed.defenses import weighted


def make(task: types.Task) -> types.Defense:
  return types.Defense(phases=(weighted.phase(task, [weighted.CLEAN]),))

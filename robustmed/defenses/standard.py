"""Standard training: the task's loss on the clean image."""

from robustmed import types
from robustmed.defenses import weighted


def make(task: types.Task, *, coupled: bool = False, objective: str = '') -> types.Defense:
  """Returns training on the task's losses on clean images.

  With `coupled` these are `task.coupled`; `objective` names an objective of the task to train on
  instead.
  """
  phase = weighted.phase(task, [weighted.CLEAN], coupled=coupled, objective=objective)
  return types.Defense(phases=(phase,), coupled=coupled)

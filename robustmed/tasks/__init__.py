"""Tasks: what a network is for. One file and one line here per task."""

from robustmed.tasks import shape

TASKS = {'shape': shape.make}

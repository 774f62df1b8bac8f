"""Tasks: what a network is for. One file and one line here per task."""

from robustmed.tasks import segmentation, shape

TASKS = {'segmentation': segmentation.make, 'shape': shape.make}

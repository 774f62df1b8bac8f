"""Tasks: what a network is for. One file and one line here per task."""

from robustmed.tasks import brats, landmarks, segmentation, shape

TASKS = {
  'brats': brats.make,
  'landmarks': landmarks.make,
  'segmentation': segmentation.make,
  'shape': shape.make,
}

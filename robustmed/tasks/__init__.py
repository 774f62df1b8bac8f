"""Tasks: losses, attack objectives and metrics of networks. One file and one line here each."""

from robustmed.tasks import (
  blobs,
  brats,
  classes,
  heat_maps,
  landmarks,
  nodules,
  objects,
  proposals,
  segmentation,
  shape,
)

TASKS = {
  'blobs': blobs.make,
  'brats': brats.make,
  'classes': classes.make,
  'heat_maps': heat_maps.make,
  'landmarks': landmarks.make,
  'nodules': nodules.make,
  'objects': objects.make,
  'proposals': proposals.make,
  'segmentation': segmentation.make,
  'shape': shape.make,
}

"""Networks by name; each entry is a linen module class: MODELS[name](**fields)."""

from robustmed.models import (
  brats_unet,
  disk_shape,
  disk_shape_lite,
  landmark_unet,
  nnunet,
  yolo,
)

MODELS = {
  'brats_unet': brats_unet.BratsUNet,
  'disk_shape': disk_shape.DiskShapeNet,
  'disk_shape_lite': disk_shape_lite.DiskShapeLite,
  'landmark_unet': landmark_unet.LandmarkUNet,
  'nnunet': nnunet.NnUNet,
  'yolov5s': yolo.Yolo,
}

"""Networks by name; each entry is a linen module class: `MODELS[name](**fields)`."""

from robustmed.models import (
  blob_unet,
  brats_unet,
  disk_shape,
  disk_shape_lite,
  landmark_unet,
  nnunet,
  nodule_resnet,
  nodule_unet,
  resnet,
  unet,
  yolo,
)

MODELS = {
  'blob_unet': blob_unet.BlobUNet,
  'brats_unet': brats_unet.BratsUNet,
  'disk_shape': disk_shape.DiskShapeNet,
  'disk_shape_lite': disk_shape_lite.DiskShapeLite,
  'landmark_unet': landmark_unet.LandmarkUNet,
  'nnunet': nnunet.NnUNet,
  'nodule_resnet': nodule_resnet.NoduleResNet,
  'nodule_unet': nodule_unet.NoduleUNet,
  'resnet': resnet.ResNet,
  'unet': unet.UNet,
  'yolov5s': yolo.Yolo,
}

"""Networks by name; each entry is a linen module class: MODELS[name](**fields)."""

from robustmed.models import brats_unet, disk_shape, disk_shape_lite, nnunet

MODELS = {
  'brats_unet': brats_unet.BratsUNet,
  'disk_shape': disk_shape.DiskShapeNet,
  'disk_shape_lite': disk_shape_lite.DiskShapeLite,
  'nnunet': nnunet.NnUNet,
}

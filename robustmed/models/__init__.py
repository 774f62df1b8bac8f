"""Networks by name; each entry is a linen module class: MODELS[name](**fields)."""

from robustmed.models import disk_shape, disk_shape_lite, nnunet

MODELS = {
  'disk_shape': disk_shape.DiskShapeNet,
  'disk_shape_lite': disk_shape_lite.DiskShapeLite,
  'nnunet': nnunet.NnUNet,
}

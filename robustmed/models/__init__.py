"""Networks by name; each entry is a linen module class: MODELS[name](**fields)."""

from robustmed.models import disk_shape

MODELS = {'disk_shape': disk_shape.DiskShapeNet}

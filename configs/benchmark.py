"""Speed of attacks: one JSON line per workload on stdout.

  python -m robustmed.main --config configs/benchmark.py --config.workloads=spine

`spine` is PGD-20 Linf on the full-width disk-shape network, batch 8, 1x128x128; `hippo` is PGD-20
L2 on nnU-Net 2D for the hippocampus, batch 32, 1x56x40; `brats3d` is FGSM on the 3D residual U-Net,
batch 1, 4 series of `size`^3; `ceph` is PGD-20 L2 on the landmark U-Net, batch 1, 3x160x128; `bccd`
the same on YOLOv5s, batch 2, 3x256x320; `small_grids` is a 3x3 convolution, 1024 to 1024 channels,
on the 1x1, 2x2 and 4x4 grids at the bottom of every U-Net; `onnx` is PGD-10 Linf on a 2D U-Net, a
3D U-Net and a SegResNet that come from ONNX graphs, images of 256^2 and `size`^3; `scaling` runs
attack and training of `spine` on 1, 2, 4 and 8 virtual devices and counts their collectives (batch:
per device). `ensemble` is three members of APGD-10 on `hippo`'s network, `sweep` the same at four
levels, `volume` one step of PGD on a volume of 3 x 3 x 2 windows of `size`^3 (64 in the figures),
these three with CPU seconds and the memory of the process.
Preset `smoke`: the same at a size for tests.
"""

import ml_collections

from robustmed import errors


def get_config(preset: str = '') -> ml_collections.ConfigDict:
  """The configuration of a preset: '' (full size) or 'smoke'."""
  errors.lookup(dict.fromkeys(('', 'smoke')), preset, kind='preset')
  config = ml_collections.ConfigDict()
  config.experiment = 'benchmark'
  config.preset = preset
  config.workloads = ('spine',)  # also as 'spine,small_grids'
  config.batch = 0  # 0: the workload's own
  config.steps = 0  # 0: the workload's own
  config.repeats = 3
  config.width = 1.0  # share of every network's channels
  config.dtype = 'float32'  # bfloat16: of the networks of spine, hippo, brats3d, ceph and bccd
  config.size = 48  # side of the cubes of brats3d and onnx, and of the windows of volume
  if preset == 'smoke':
    config.workloads = ('spine', 'small_grids')
    config.update({'batch': 2, 'steps': 2, 'repeats': 2, 'width': 1 / 32})
  return config

"""Glioma in MR volumes: Liu et al. 2021, 3D U-Net, Tables 1 and 2, Figures 2-5, 7 and 9.

Presets: none or `demo` (synthetic heads of 32^3 at a quarter of the width), `smoke` (seconds, for
tests), `real` (`--config.data.dir=` a folder of BraTS 2017, MSD Task01 or the like, half the width,
64^3, a GPU) and `paper` (128^3, full width, 8,269,676 parameters, 176.5 GMAC a volume, batch 1,
400 epochs of 228 volumes, 4.9 GiB: 15 networks, 89 hours at 10 TFLOP/s; on several GPUs they train
side by side). `deformation` is the demo with one more attack: a smooth deformation of the brain by
2 mm along each axis, of labels that stay where they are.
The paper's clean whole-tumour Dice is 0.890, under FGSM at 0.05 it is 0.676; distilled at T = 5000
0.809, after adversarial training 0.803.
"""

import importlib

brats = importlib.import_module('_brats')


def get_config(preset: str = ''):
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper', 'deformation'."""
  real, deformed = preset == 'real', preset == 'deformation'
  config = brats.glioma(
    '' if deformed else preset,
    dimension=3,
    demo={
      'data': {'side': 32},
      'model': {'width': 0.25},
      'train': {
        'steps': 300,
        'batch_size': 1,
        'optimisers': {'main': {'name': 'adam', 'lr': 1e-2, 'schedule': 'cosine'}},
      },
      'judged': 4,
    },
    paper={
      'data': {'side': 64 if real else 128},
      'model': {'width': 0.5 if real else 1.0, 'remat': not real},
      'train': {
        'steps': 10_000 if real else 91_200,  # 400 epochs of 228 volumes
        'batch_size': 1,
        'optimisers': {'main': {'name': 'adam', 'lr': 5e-4, 'schedule': 'constant'}},
      },
      'judged': 1,
    },
  )
  if deformed:
    config.preset = preset
    config.evaluate.attacks.deformation = {
      'name': 'apgd',
      'num_steps': 20,
      'objective': 'dice',
      'levels': (2.0,),  # mm
      # the phantom's brain is some 160 mm, 32 voxels, wide
      'space': {'name': 'deformation', 'spacing': (5.0, 5.0, 5.0), 'grid': 6},
    }
  return config

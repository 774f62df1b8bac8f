"""Glioma in axial MR slices: Liu et al. 2021, 2D U-Net, Table 3, Figures 6 and 8.

Presets: none or `demo` (synthetic heads of 64^3, every eighth slice, a quarter of the width),
`smoke` (seconds, for tests), `real` (`--config.data.dir=` a folder of BraTS 2017, MSD Task01 or the
like, half the width, 96^2, a GPU) and `paper` (128^2, full width, 2,775,788 parameters, 1.09 GMAC a
slice, batch 64, 400 epochs of 29,184 slices: 15 networks, 70 hours at 10 TFLOP/s).
Predictions are stacked again and scored per volume. The paper's clean whole-tumour Dice is 0.804,
under FGSM at 0.05 it is 0.607; distilled at T = 5000 0.760, after adversarial training 0.757.
"""

import importlib

brats = importlib.import_module('_brats')


def get_config(preset: str = ''):
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper'."""
  real = preset == 'real'
  return brats.glioma(
    preset,
    dimension=2,
    demo={
      'data': {'side': 64, 'slice_step': 8},
      'model': {'width': 0.25},
      'train': {
        'steps': 300,
        'batch_size': 16,
        'optimisers': {'main': {'name': 'adam', 'lr': 1e-2, 'schedule': 'cosine'}},
      },
      'judged': 32,
    },
    paper={
      'data': {'side': 96 if real else 128},
      'model': {'width': 0.5 if real else 1.0},
      'train': {
        'steps': 10_000 if real else 182_400,  # 400 epochs of 228 x 128 slices
        'batch_size': 64,
        'optimisers': {'main': {'name': 'adam', 'lr': 1e-4 if real else 1e-5}},
      },
      'judged': 64,
    },
  )

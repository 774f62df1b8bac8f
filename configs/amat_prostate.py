"""AMAT on the prostate (MSD Task05), 320x320 slices of T2 and ADC: Ma & Liang 2022, Figures 2-4.

Presets: none or `demo` (synthetic prostates at a quarter of the side and of the width), `smoke`
(seconds, for tests), `real` (`--config.data.dir=.../Task05_Prostate`, a quarter of the width, a
GPU) and `paper` (full width, batch 32 by micro-batches of 8, which need 16 GiB in place of 64, 50 x
50 steps, PGD-20; 5 networks, 20 hours at 10 TFLOP/s; Table 2 gives 20, 465 and 467 seconds per
epoch of STD, SAT and AMAT on one V100; clean TVDI of STD is 0.82). Readings and the trainings of
the short presets are as in amat_hippocampus.py.

The published split tests 5 volumes; all folds as one run test 32
(`--config.data.folds=5`, five times the hours).
"""

import importlib

amat = importlib.import_module('_amat')


def get_config(preset: str = ''):
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper', or a reading."""
  return amat.segmentation(
    preset,
    name='prostate',
    patch=(320, 320),
    levels=(0, 10, 20, 40),
    sat=(10, 20, 40),
    step=10,
    cap=40,
    batch_size=32,
    micro_batch=8,
    epochs=50,
    pictured=20,
    demo={
      'patch': (80, 80),
      'sat': (10, 40),
      'epoch_steps': 15,
      'batch_size': 16,
      'data': {
        'scale': 0.25,
        'cases': 75,
        'train_cases': 25,
        'test_cases': 10,
        'slices_per_case': 2,
      },
      'real': {},
    },
  )

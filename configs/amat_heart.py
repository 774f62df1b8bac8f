"""AMAT on the left atrium (MSD Task02), 320x256 slices: Ma & Liang 2022, Figures 2-4, Table 2.

Presets: none or `demo` (synthetic hearts at a quarter of the side and of the width), `smoke`
(seconds, for tests), `real` (`--config.data.dir=.../Task02_Heart`, a quarter of the width, batch
32, a GPU) and `paper` (full width, batch 40 by micro-batches of 8, which need 13 GiB in place of
65, 50 x 50 steps, PGD-20; 5 networks, 21 hours at 10 TFLOP/s; Table 2 gives 31, 476 and 480 seconds
per epoch of STD, SAT and AMAT on one V100; clean TVDI of STD is 0.92). Readings and the trainings
of the short presets are as in amat_hippocampus.py.

The published split tests 3 volumes; all folds as one run test 20
(`--config.data.folds=5`, five times the hours).
"""

import importlib

amat = importlib.import_module('_amat')


def get_config(preset: str = ''):
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper', or a reading."""
  return amat.segmentation(
    preset,
    name='heart',
    patch=(320, 256),
    levels=(0, 5, 10, 15),
    sat=(5, 15, 25),
    step=5,
    cap=25,
    batch_size=40,
    micro_batch=8,
    epochs=50,
    pictured=10,
    demo={
      'patch': (80, 64),
      'sat': (5, 25),
      'epoch_steps': 15,
      'batch_size': 16,
      'data': {
        'scale': 0.25,
        'cases': 75,
        'train_cases': 16,
        'test_cases': 10,
        'slices_per_case': 2,
      },
      'real': {'train_cases': 4, 'test_cases': 3},
    },
  )

"""AMAT on the hippocampus (MSD Task04), 56x40 slices: Ma & Liang 2022, Figures 2-4, Table 2.

Presets: none or `demo` (synthetic hippocampi, a quarter of the width), `smoke` (seconds, for
tests), `real` (`--config.data.dir=.../Task04_Hippocampus`, all training cases, a quarter of the
width; 2 hours of CPU time, 37 minutes of them for the longest arm and its evaluation) and `paper`
(full width, batch 366, 100 x 50 steps, PGD-20; 6 networks, 8 hours at 10 TFLOP/s; Table 2 gives 10,
114 and 120 seconds per epoch of STD, SAT and AMAT on one V100; clean TVDI of STD is 0.88). In demo
and real SAT and AMAT go on from STD with PGD-5. Margins grow as in the authors' code; `text` (the
size of `paper`), `demo,text` and `real,text` are the paper's Algorithm 1, `authors` all of the
code.
"""

import importlib

amat = importlib.import_module('_amat')


def get_config(preset: str = ''):
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper', or a reading."""
  return amat.segmentation(
    preset,
    name='hippocampus',
    patch=(56, 40),
    levels=(0, 2, 4, 6, 8, 10),
    sat=(1, 5, 10, 15),
    step=2.5,
    cap=15,
    batch_size=366,
    epochs=100,
    pictured=6,
    demo={
      'patch': (56, 40),
      'sat': (5, 15),
      'epoch_steps': 16,
      'data': {'cases': 110, 'train_cases': 20, 'test_cases': 15, 'slices_per_case': 2},
      'real': {'train_cases': 0, 'test_cases': 0, 'slices_per_case': 3, 'all_test': True},
      'judged': 39,  # a third of the 117 slices of 39 cases, a fifth of 195
      # A margin grows once an epoch at most, if its slice is drawn: these draw each of the 5,472
      # slices 14 times. With 40 cases 600 steps draw each 13 times.
      'real_steps': 2400,
    },
  )

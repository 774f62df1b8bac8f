"""AMAT on 19 landmarks of cephalograms (ISBI 2015): Ma & Liang 2022, Figure 5, Tables 2 and 3.

Arms: STD trained on the Dice of the heat maps (`std`) and on their cross-entropy (`std_bce`), SAT,
AMAT. Presets: none or `demo` (synthetic skulls of 80x64 pixels, an eighth of the width, PGD-5 in
training, SAT and AMAT start from STD), `smoke` (seconds, for tests), `real` (`--config.data.dir=`
with RawImage and AnnotationsByMD, or cepha400: 100x80 pixels, 3/16 of the width, PGD-7, SAT and
AMAT start from STD) and `paper` (200x160 at full width, batch 8, 500 epochs of 19 steps, PGD-20; 7
networks, 21 hours at 10 TFLOP/s; Table 2 gives 12, 50 and 53 seconds per epoch of STD, SAT and AMAT
on one V100; clean MRE 1.59 mm with Dice and 1.55 with cross-entropy, from ImageNet weights:
`--config.model.init=vgg19.safetensors`). Levels are the paper's times the root of the share of
pixels that is left. `authors` and `text`, alone (the size of `paper`) or after another preset as in
`real,text`, are what the authors' code and the paper's text do, see _amat.py.
"""

import importlib

amat = importlib.import_module('_amat_images')

PAPER = {
  'part': 'landmarks',
  'task': 'landmarks',
  'source': 'ceph',
  'model': 'landmark_unet',
  'size': (200, 160),
  'levels': (0.5, 1, 1.5, 2, 2.5, 3),
  'sat': (1, 2, 3, 5),
  'more_arms': {'std_bce': {'defense': {'name': 'standard', 'objective': 'bce'}}},
  'step': 1,
  'cap': 5,
  'floor': False,
  'bounds': (-1.0, 1.0),
  'steps': 9500,
  'batch_size': 8,
  'epoch_steps': 19,
  'optimiser': {'name': 'adam', 'lr': 1e-3, 'weight_decay': 1e-4, 'schedule': 'constant'},
  'pictured': 2,
}
REAL = {
  'epoch_steps': 19,
  'optimiser': amat.QUICK,
  'size': (100, 80),
  'width': 0.1875,
  'sat': (3,),
  'levels': (1, 2, 3),
  'num_steps': 7,
  'eval_steps': 20,
  'train': {'steps': 800, 'batch_size': 8},
  'warm': {'steps': 600},  # margins grow once an epoch at most, from 1 to 5 in steps of 1
}
SMALL = {
  'demo': {
    'epoch_steps': 6,
    'optimiser': amat.QUICK,
    'size': (80, 64),
    'width': 0.125,
    'sat': (1, 5),
    'levels': (1, 2, 3),
    'num_steps': 5,
    'eval_steps': 20,
    'train': {'steps': 500, 'batch_size': 8, 'log_every': 10},
    'warm': {'steps': 80},
  },
  'smoke': {
    'epoch_steps': 1,
    'pictured': 1,
    'size': (40, 32),
    'width': 0.03125,
    'sat': (1,),
    'levels': (1, 3),
    'num_steps': 2,
    'eval_steps': 2,
    'train': {'steps': 2, 'batch_size': 4, 'log_every': 1, 'checkpoint_every': 1},
    'data': {'train_images': 6, 'validation_images': 1, 'test_images': 3},
  },
  'real': REAL,
}


def get_config(preset: str = ''):
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper', or a reading."""
  config = amat.images(preset, paper=PAPER, small=SMALL)
  authors = amat.amat.parse(preset)[1] == 'authors'
  config.reading.legacy_targets = authors  # stamps as in the public code, a pixel off
  config.reading.refine = not authors
  if config.data.source == 'ceph':
    config.data.update({'reader': 'mean', 'test': 'test1', 'drop_duplicates': False})
  return config

"""AMAT on blood cells (BCCD) with YOLOv5s: Ma & Liang 2022, Figures 6 and 7, Table 2.

Presets: none or `demo` (synthetic smears of 96x128 pixels, a quarter of the width, PGD-5 in
training, SAT and AMAT start from STD), `smoke` (seconds, for tests), `real` (`--config.data.dir=`
with BCCD/Annotations and BCCD/JPEGImages: 128x160 pixels, half the width, PGD-7, SAT and AMAT start
from STD) and `paper` (mosaics of 320x320 and letterboxed test images of 256x352 at full width,
batch 32, 300 epochs of 10 steps, PGD-20; 6 networks, 2 hours at 10 TFLOP/s; Table 2 gives 6, 30 and
35 seconds per epoch of STD, SAT and AMAT on one V100; from COCO weights:
`--config.model.init=yolov5s.safetensors`). The published loss is the mean over images times the
batch of 32; here the learning rate is multiplied and the weight decay divided by it. Of the
published rule, gradients summed over two batches and other rates of biases and momentum while it
warms up are left out. The small presets train with Adam, which needs fewer steps from scratch.
Levels are the paper's times the root of the share of pixels that is left. `authors` and `text`,
alone (the size of `paper`) or after another preset as in `real,text`, are what the authors' code
and the paper's text do, see _amat.py.
"""

import importlib

amat = importlib.import_module('_amat_images')

_BATCH = 32
_SGD = {
  'name': 'sgd',
  'lr': 0.01 * _BATCH,
  'momentum': 0.937,
  'nesterov': True,
  'weight_decay': 5e-4 / _BATCH,
  'decay_of': 'kernel$',  # neither biases nor norms
  'schedule': 'cosine',
  'final_fraction': 0.1,
  'warmup_steps': 1000,
}
_QUICK = {**amat.QUICK, 'clip': 10.0}
PAPER = {
  'part': 'objects',
  'task': 'cells',
  'source': 'bccd',
  'model': 'yolov5s',
  'size': (256, 352),
  'levels': (5, 10, 15),
  'sat': (1, 5, 10, 15),
  'step': 2.5,
  'cap': 15,
  'floor': True,
  'bounds': (0.0, 1.0),
  'steps': 3000,
  'batch_size': _BATCH,
  'epoch_steps': 10,
  'optimiser': _SGD,
  'train': {'ema': 0.9999, 'ema_ramp': 2000},
  'pictured': 5,
}
SMALL = {
  'demo': {
    'epoch_steps': 8,
    'optimiser': _QUICK,
    'size': (96, 128),
    'width': 0.25,
    'sat': (5, 15),
    'levels': (5, 10, 15),
    'num_steps': 5,
    'eval_steps': 20,
    'train': {'steps': 600, 'batch_size': 12, 'log_every': 10, 'ema': 0.98, 'ema_ramp': 20},
    'warm': {'steps': 120},
    'data': {'long_side': 128, 'max_boxes': 24},
  },
  'smoke': {
    'epoch_steps': 1,
    'optimiser': _QUICK,
    'size': (64, 64),
    'width': 0.0625,
    'sat': (5,),
    'levels': (5, 15),
    'num_steps': 2,
    'eval_steps': 2,
    'train': {'steps': 2, 'batch_size': 4, 'log_every': 1, 'checkpoint_every': 1, 'ema': 0.9},
    'data': {
      'long_side': 64,
      'max_boxes': 24,
      'train_images': 6,
      'validation_images': 1,
      'test_images': 3,
    },
  },
  'real': {
    'epoch_steps': 19,
    'optimiser': _QUICK,
    'size': (128, 160),
    'width': 0.5,
    'sat': (5,),
    'levels': (5, 10, 15),
    'num_steps': 7,
    'eval_steps': 20,
    'train': {'steps': 1500, 'batch_size': 16, 'ema': 0.99, 'ema_ramp': 100},
    'warm': {'steps': 600},  # margins grow once an epoch at most, from 2.5 to 15 in steps of 2.5
    'data': {'long_side': 160},
  },
}


def get_config(preset: str = ''):
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper', or a reading."""
  config = amat.images(preset, paper=PAPER, small=SMALL)
  long_side = config.data.get('long_side', 320)
  config.data.update({'long_side': long_side, 'max_boxes': config.data.get('max_boxes', 32)})
  config.augment = amat.ml_collections.ConfigDict(
    {
      'name': 'mosaic',  # 'none': letterboxed images as they are
      'side': long_side,
      'scale': 0.5,
      'translate': 0.1,
      'flip': 0.5,
      'hsv': (0.015, 0.7, 0.4),
    }
  )
  config.reading.update(
    {
      'batch_loss': True,  # STD and SAT: means over the positives of the batch, as published
      'loss_size': 320,  # side of the training images for which the objectness weight is set
      # Of mAP; 'yolo' (authors): a detection matches only the label that it overlaps most.
      'matching': 'yolo' if amat.amat.parse(preset)[1] == 'authors' else 'coco',
    }
  )
  sizes = {'paper': 300, 'smoke': 12}
  config.evaluate.max_detections = sizes.get(amat.amat.parse(preset)[0], 60)
  return config

"""Synthesised attacks of Chen et al. 2019: a generator learns to mislead an abdominal segmenter.

Presets: none or `demo` (synthetic abdomens at 64x64, small networks, for 2 cores), `smoke` (for
tests), `real` (`--config.data.dir=... --config.data.layout=amos`, the slices of the paper at half
the width of all networks, a GPU) and `paper` (full width, 256x256, 60/15/75 subjects, six strengths
and one far beyond, 30,000 steps each: 13 networks, 87 hours at 10 TFLOP/s; the U-Net of the paper
has Dice 80.07, 94.74, 94.71 and 94.76 % for pancreas, kidneys, liver and spleen, and 53.59, 60.07,
11.19 and 17.21 % at xi = 2).
"""

import ml_collections

from robustmed import errors

PGD_LEVELS = (0.02, 0.05, 0.1)  # z-scores, Linf
EPS = 0.05


def get_config(preset: str = '') -> ml_collections.ConfigDict:
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper'."""
  errors.lookup(dict.fromkeys(('', 'demo', 'smoke', 'real', 'paper')), preset, kind='preset')
  preset = preset or 'demo'
  config = ml_collections.ConfigDict()
  config.experiment = 'synthesis'
  config.preset = preset
  config.seed = 0
  config.seeds = 1  # trains every arm this many times
  config.data = ml_collections.ConfigDict(
    {
      'source': 'phantom_abdomen',
      'dir': '',  # folder, layout, globs and label map of the abdomen source
      'layout': 'flare21',
      'images': '',
      'labels': '',
      'organs': '',
      'split': '',
      'side': 64,
      'spacing': 6.0,  # millimetres in the plane
      'window': (-250.0, 400.0),  # HU
      'subjects': (40, 8, 20),  # train, validation, test
      'patch': 0,  # side of the segmenters' training patches; 0: whole slices
      'depth': 12,  # slices of a synthetic subject
      'noise': 12.0,  # HU
      'slices': 'foreground',
      'cache_dir': '',
    }
  )
  config.model = ml_collections.ConfigDict(
    {'name': 'unet', 'width': 0.125, 'poolings': 3, 'dtype': 'float32'}
  )
  # Of U-Nets. Cross-entropy alone, the paper's, leaves small organs out in short trainings;
  # 'ce_dice' adds the Dice of the batch.
  loss = 'ce' if preset in ('real', 'paper') else 'ce_dice'
  config.reading = ml_collections.ConfigDict({'loss': loss})
  config.train = ml_collections.ConfigDict(
    {
      'steps': 700,
      'batch_size': 16,
      'optimisers': {'main': {'name': 'adam', 'lr': 3e-3, 'schedule': 'cosine'}},
      'micro_batch': 0,  # examples of a batch that are in memory at a time; 0: all
      'ema': 0.0,
      'log_every': 20,
      'checkpoint_every': 100,
    }
  )
  config.arms = ml_collections.ConfigDict(
    {
      'unet': {'defense': {'name': 'standard'}},
      'nnunet': {
        'defense': {'name': 'standard'},
        'model': {'name': 'nnunet', 'width': 0.25},
        'train': {'steps': 500},
      },
    },
    sort_keys=False,
  )
  config.synthesis = ml_collections.ConfigDict(_synthesis())
  config.evaluate = ml_collections.ConfigDict(
    {
      'batch_size': 32,
      'levels': PGD_LEVELS,
      'budget': '',  # quick, standard, thorough: attacks of an ensemble too, see docs/attacks.md
      'attacks': _attacks(),
      'save_examples': 2,
    }
  )
  config.report = ml_collections.ConfigDict({'pictures': 4, 'picture_eps': EPS})
  if preset == 'smoke':
    _smoke(config)
  if preset in ('real', 'paper'):
    _paper(config)
  if preset == 'real':
    config.model.width = 0.5
    config.arms.nnunet.model.width = 0.5
    config.synthesis.train.steps = 5000
  return config


def _synthesis() -> dict:
  """The fields of config.synthesis: generators, their training, hardening, evaluation."""
  return {
    'target': 'unet',  # the arm that they attack
    'levels': (0.0, 0.5, 2.0),  # xi, nats; 0 is a control
    'second': 'nnunet',  # another segmenter, attacked and tested on images made for the first
    'second_levels': (2.0,),
    'hardened_at': (2.0,),  # generators whose images the hardened target trains on; (): none
    'fresh_levels': (2.0,),  # generators trained against the hardened one
    'network': {
      'widths': (8, 16, 32, 64),
      'latent': 8,
      'spatial': True,
      'd_max': 3.0,  # pixels
      'v_max': 1.0,  # z-scores
      'critic_widths': (16, 32, 64),
      'critic_norm': 'batch',
    },
    'weights': {
      'adversarial': 1.0,
      'strength': 1.0,
      'displacement': 0.1,
      'intensity': 0.01,
      'divergence': 0.0,
      'variation': 0.0,
      'penalty': 0.0,
      'critic_steps': 1,
      'min_pixels': 8.0,
    },
    'train': {
      'steps': 400,
      'batch_size': 8,
      'optimisers': {
        # the demo has few steps and ten times the paper's learning rate
        'generator': {'name': 'rmsprop', 'lr': 1e-3, 'decay': 0.9, 'eps': 1e-10},
        'critic': {
          'name': 'rmsprop', 'lr': 1e-3, 'decay': 0.9, 'eps': 1e-10, 'clip_weights': 0.01,
        },
      },
      'checkpoint_every': 25,  # often enough that one validation is near xi
    },
    'tolerance': 0.05,  # of xi: of all weights that near the least perceptible are kept
    'judged': 32,  # validation slices evaluated every checkpoint_every steps
    'hardening': {
      'share': 0.5,
      'follow': True,  # labels move with D
      'train': {'steps': 300},
    },
    'controls_at': (2.0,),
    'pictured': 2.0,
    'draws': 10,
    'pgd_steps': 10,
  }  # fmt: skip


def _attacks() -> dict:
  pgd = {'name': 'pgd', 'norm': 'linf', 'objective': 'ce'}
  return {
    'pgd': {**pgd, 'num_steps': 20, 'relative_step': 0.2, 'score_last': False},
    'one_step': {
      **pgd, 'num_steps': 1, 'relative_step': 1.0, 'random_start': False, 'score_last': False,
    },
    'noise': {'name': 'noise', 'norm': 'linf', 'objective': 'ce'},
  }  # fmt: skip


def _smoke(config) -> None:
  config.data.update({'side': 16, 'spacing': 24.0, 'subjects': (3, 1, 2), 'depth': 3})
  config.model.update({'width': 0.0625, 'poolings': 2})
  config.arms.nnunet.model.width = 0.125
  config.arms.nnunet.train.steps = 8
  config.train.update({'steps': 8, 'batch_size': 4, 'log_every': 1, 'checkpoint_every': 4})
  options = config.synthesis
  options.levels = (0.5, 2.0)
  options.network.update({'widths': (4, 4), 'latent': 2, 'critic_widths': (4, 4)})
  options.weights.min_pixels = 0.5
  options.train.update({'steps': 4, 'batch_size': 4, 'checkpoint_every': 2})
  options.judged = 3
  options.hardening.train.steps = 2
  options.draws = 2
  options.pgd_steps = 2
  config.evaluate.update({'batch_size': 8, 'levels': (EPS, 0.1), 'save_examples': 1})
  config.evaluate.attacks.pgd.num_steps = 2
  del config.evaluate.attacks['one_step']  # every attack is a program to compile
  config.report.pictures = 2


def _paper(config) -> None:
  config.data.update(
    {'source': 'abdomen', 'side': 256, 'spacing': 1.5, 'subjects': (60, 15, 75), 'patch': 128}
  )
  config.model.update({'width': 1.0, 'poolings': 4})
  config.arms.nnunet.model.width = 1.0
  config.arms.nnunet.train.steps = 20_000
  config.train.update({'steps': 20_000, 'batch_size': 32, 'checkpoint_every': 1000})
  config.train.optimisers.main.update({'lr': 1e-3, 'schedule': 'constant'})
  options = config.synthesis
  options.levels = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 10.0)  # the last to see it collapse
  options.network.update({'widths': (32, 64, 128, 256), 'latent': 32, 'd_max': 10.0})
  options.network.critic_widths = (64, 128, 256, 512)
  options.weights.min_pixels = 50.0
  options.train.update({'steps': 30_000, 'batch_size': 16, 'checkpoint_every': 500})
  for rule in options.train.optimisers.values():
    rule.lr = 1e-4
  options.hardening.train.steps = 10_000
  options.judged = 256
  options.pgd_steps = 40

"""One small network on synthetic disks, trained three ways and attacked: four minutes of CPU time.

Presets: `smoke` (seconds, for tests), none (the demo), `paper` (the network of Chen et al. 2021
whole, at 128x128 on the lumbar_disks source, 10,000 steps an arm: 3 networks, 2 hours at 10
TFLOP/s).
"""

import ml_collections

from robustmed import errors

LEVELS = (0.01, 0.03, 0.05, 0.07, 0.1, 0.2)  # fraction of the image range [0, 1], Linf
BOUNDS = (0.0, 1.0)


def get_config(preset: str = '') -> ml_collections.ConfigDict:
  """The configuration of a preset: '' (demo), 'smoke' or 'paper'."""
  errors.lookup(dict.fromkeys(('', 'demo', 'smoke', 'paper')), preset, kind='preset')
  config = ml_collections.ConfigDict()
  config.experiment = 'quickstart'
  config.preset = preset or 'demo'
  config.seed = 0
  config.seeds = 1  # trains every arm this many times
  config.data = ml_collections.ConfigDict(
    {
      'source': 'phantom_lumbar_disks',
      'dir': '',  # folder of the lumbar_disks source
      'test_exams': '',  # of that folder; '': the last fifth, all: a saved network is tested on all
      'side': 64,
      'cache_dir': '',
      'train_patients': 80,
      'test_patients': 20,
      'contrast': 0.1,  # of the synthetic disks against their vertebrae
      'noise': 0.01,
    }
  )
  # virtual shapes from a shape model with this many components, texture warped along (0: none)
  config.augment = ml_collections.ConfigDict(
    {'components': 10, 'landmark_stride': 4, 'grid_stride': 4}
  )
  config.model = ml_collections.ConfigDict(
    {'name': 'disk_shape', 'width': 0.125, 'dtype': 'float32'}
  )
  # The last layer of the contour starts at the mean of the training contours, with no weight on the
  # image. From random weights the first steps, which only move the contour there, swamp all that
  # tells one image from another, and few steps do not bring it back.
  config.mean_contour = True
  rule = {'name': 'adamax', 'lr': 4e-3, 'schedule': 'cosine', 'warmup_share': 0.25}
  config.train = ml_collections.ConfigDict(
    {
      'steps': 250,
      'batch_size': 64,
      'optimisers': {'main': rule},
      'micro_batch': 0,  # examples of a batch that are in memory at a time; 0: all
      'ema': 0.0,
      'log_every': 20,
      'checkpoint_every': 100,
    }
  )
  config.arms = ml_collections.ConfigDict(
    {
      'std': {
        'defense': {'name': 'standard'},
        'train': {'optimisers': {'main': {**rule, 'lr': 1e-2}}},
      },
      'rand': {
        'defense': {'name': 'noise', 'eps': 0.07, 'mode': 'add', 'bounds': BOUNDS},
        'init_from': 'std',
        'train': {'steps': 40},
      },
      'adv': {
        'defense': {
          'name': 'adversarial',
          'eps': 0.07,
          'clean_weight': 0.5,
          'objectives': {'train_seg': 0.5},
          'ramp_levels': 100,
          'attack': {
            'name': 'pgd',
            'norm': 'linf',
            'num_steps': 3,
            'relative_step': 0.5,
            'bounds': BOUNDS,
            'score_last': False,
          },
        },
        'init_from': 'std',
        'train': {'steps': 60},
      },
    },
    sort_keys=False,
  )
  pgd = {'name': 'pgd', 'norm': 'linf', 'num_steps': 20, 'relative_step': 0.15, 'bounds': BOUNDS}
  fgsm = {'name': 'fgsm', 'bounds': BOUNDS}
  noise = {'name': 'noise', 'norm': 'linf', 'bounds': BOUNDS}
  config.evaluate = ml_collections.ConfigDict(
    {
      'batch_size': 100,
      'levels': LEVELS,
      'budget': '',  # quick, standard, thorough: attacks of an ensemble too, see docs/attacks.md
      'attacks': {
        'pgd_seg': {**pgd, 'objective': 'seg', 'score_last': False},
        'fgsm': {**fgsm, 'objective': 'seg', 'score_last': False},
        'noise': {**noise, 'objective': 'seg'},
        **_stronger(pgd, 20),
      },
      'save_examples': 0,  # worst N adversarial examples per arm, as files of the task's format
    }
  )
  config.report = ml_collections.ConfigDict({'pictures': 4, 'picture_eps': 0.07})
  if preset == 'smoke':
    config.data.update({'train_patients': 4, 'test_patients': 2})
    config.model.update({'name': 'disk_shape_lite', 'width': 0.25})
    config.train.update({'steps': 3, 'batch_size': 8, 'log_every': 1, 'checkpoint_every': 2})
    for arm in ('rand', 'adv'):
      config.arms[arm].train.steps = 2
    config.arms.adv.defense.attack.num_steps = 2
    config.evaluate.update({'batch_size': 8, 'levels': (0.03, 0.07)})
    config.evaluate.attacks.pgd_seg.num_steps = 3
    for name in _stronger(pgd, 3):  # every attack is a program to compile
      del config.evaluate.attacks[name]
    config.report.pictures = 2
  if preset == 'paper':
    config.data.update({'source': 'lumbar_disks', 'side': 128})
    config.augment.update({'landmark_stride': 1, 'grid_stride': 1})
    config.model.width = 1.0
    config.train.update({'steps': 10_000, 'checkpoint_every': 500})
    config.mean_contour = False
    config.train.optimisers.main.update({'lr': 1e-3, 'schedule': 'constant', 'warmup_share': 0.0})
    del config.arms.std.train
    for arm in ('rand', 'adv'):
      config.arms[arm].train.steps = 10_000
    config.arms.adv.defense.objectives = ml_collections.ConfigDict(
      {'train_reg': 0.25, 'train_seg': 0.25}
    )
    attack = config.arms.adv.defense.attack
    del attack.relative_step
    attack.update({'num_steps': 20, 'step_size': 0.01})
    for name in ('pgd_seg', *_stronger(pgd, 100)):
      config.evaluate.attacks[name].num_steps = 100
  return config


def _stronger(pgd: dict, steps: int) -> dict:
  """Two more members of the worst of all attacks, at the level of training."""
  apgd = {'name': 'apgd', 'norm': 'linf', 'num_steps': steps, 'bounds': BOUNDS}
  at = {'objective': 'seg', 'levels': (0.07,)}
  return {'pgd_seg_best': {**pgd, 'select': 'best', **at}, 'apgd_seg': {**apgd, **at}}

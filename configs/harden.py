"""Your own trained network, trained on against attacks, audited before and after, handed back.

  python -m robustmed.main --config configs/harden.py --config.network=model.onnx
      --config.data.dir=FOLDER --workdir runs/harden

Network, FOLDER and what the file does not say: as for configs/audit.py; FOLDER has the cases to
train on, too. `loaded` is the network as it came. `adv` (attacked images), `amat` (a margin per
image) and `noise` go on from it, and so does `std` on clean images: what training on alone does.
eps of an arm is that of the third level where it is 0, in the same units. Running statistics of
batch normalisation and constants stay as stored. results/networks has each trained network in the
format in which it came, and the lines that load it; the report is that of an audit.

Presets: none or `quick` (minutes on 2 cores for a small network in 2D), `standard` (five times the
steps, stronger attacks), `thorough` (for a GPU), `smoke` (seconds, for tests).
"""

import importlib

import ml_collections

audit = importlib.import_module('audit')
STEPS = {'quick': 200, 'standard': 1000, 'thorough': 4000, 'smoke': 3}


def get_config(preset: str = '') -> ml_collections.ConfigDict:
  """The configuration of a preset: '' or 'quick', 'standard', 'thorough', 'smoke'."""
  config = audit.get_config(preset)
  smoke = preset == 'smoke'
  config.experiment = 'harden'
  # eps of all arms, 0: of the third level; freeze: a regular expression on the names of weights
  config.harden = ml_collections.ConfigDict({'eps': 0.0, 'freeze': ''})
  config.data.update(
    {
      'cases': 4 if smoke else 40,  # of the synthetic organs
      'split': 'auto',  # file (folders or a CSV), fraction
      'test_share': 0.4 if smoke else 0.2,  # of the patients, as configs/train.py has it
      'validation_share': 0.0,
      'patch': (),  # of training; (): the network's window, or whole images up to 256 or 80 a side
    }
  )
  config.augment = ml_collections.ConfigDict({'name': 'plain', 'mirror': 0.0})  # or none
  rule = {
    'name': 'adam',
    'lr': 5e-4,
    'schedule': 'cosine',
    'final_fraction': 0.05,
    'warmup_share': 0.1,
    'clip': 12.0,
    'steps_per_epoch': 1 if smoke else 10,
  }
  config.train = ml_collections.ConfigDict(
    {
      'steps': STEPS[preset or 'quick'],
      'batch_size': 4 if smoke else 0,  # 0: 8 images, 2 volumes
      'micro_batch': 0,
      'optimisers': {'main': rule},
      'ema': 0.0,
      'log_every': 1 if smoke else 20,
      'checkpoint_every': 2 if smoke else 50,
    }
  )
  pgd = {'name': 'pgd', 'norm': 'linf', 'num_steps': 2 if smoke else 3, 'relative_step': 0.5}
  if preset == 'thorough':
    pgd.update({'num_steps': 7, 'relative_step': 0.3})
  adversarial = {
    'name': 'adversarial',
    'eps': 0.0,
    'clean_weight': 0.5,
    'objectives': {'loss': 0.5},
    'attack': {**pgd, 'score_last': False},
  }
  adaptive = {
    'name': 'amat',
    'step': 0.0,  # 0: a quarter of eps
    'max_margin': 0.0,  # 0: twice eps
    'terms': ('total',),
    'attack': {**pgd, 'score_last': True},
  }
  config.arms = ml_collections.ConfigDict(
    {
      'std': {'defense': {'name': 'standard'}, 'init_from': 'loaded'},
      'noise': {'defense': {'name': 'noise', 'eps': 0.0}, 'init_from': 'loaded'},
      'adv': {'defense': adversarial, 'init_from': 'loaded'},
      'amat': {'defense': adaptive, 'thresholds_from': 'loaded', 'init_from': 'loaded'},
    },
    sort_keys=False,
  )
  return config

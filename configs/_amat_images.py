"""Shared by the AMAT configurations of landmarks and of objects."""

import importlib

import ml_collections

amat = importlib.import_module('_amat')

# The optimiser of the small presets: it needs few steps from random weights.
QUICK = {
  'name': 'adam',
  'lr': 2e-3,
  'schedule': 'cosine',
  'final_fraction': 0.05,
  'warmup_share': 0.1,
}


def images(preset: str, *, paper: dict, small: dict) -> ml_collections.ConfigDict:
  """The configuration of landmarks or of objects, whose images have bounded values.

  `paper` has the experiment's 'part', 'task', 'source' and 'model', the published 'size' of the
  images, 'levels', margins ('step', 'cap', 'floor'), arms ('sat', 'more_arms' after std) and
  training, and 'pictured', the level of the pictures. As for `_amat.segmentation`, levels are those
  of images of that size and are scaled with it. `small` has, for the presets demo, smoke and real,
  the fields that differ, and besides them 'width', 'num_steps' (of training attacks), 'eval_steps',
  fields of 'train' and 'data', and 'warm': with it SAT and AMAT start from the weights of std, with
  these fields of train.
  """
  preset, reading = amat.parse(preset)
  chosen = paper if preset == 'paper' else {**paper, **small[preset]}
  used = tuple(chosen['size'])
  config = ml_collections.ConfigDict(
    {
      'experiment': 'amat',
      'part': chosen['part'],
      'preset': f'{preset},{reading}' if reading else preset,
    }
  )
  config.seed = 0
  config.seeds = 1  # trains every arm this many times
  source = chosen['source']
  config.data = ml_collections.ConfigDict(
    {
      'source': f'phantom_{source}' if preset in ('demo', 'smoke') else source,
      'task': chosen['task'],
      'dir': '',  # the folder of the real data
      'cache_dir': '',
      'height': used[0],
      'width': used[1],
      **chosen.get('data', {}),
    }
  )
  config.noise = amat.noise(paper['size'], used)
  scale = config.noise.scale
  config.model = ml_collections.ConfigDict(
    {
      'name': chosen['model'],
      'width': chosen.get('width', 1.0),
      'dtype': 'float32',
      'init': 'scratch',  # or a .safetensors or .npz file, see robustmed/models/weights.py
    }
  )
  config.augment = ml_collections.ConfigDict({'name': 'none'})
  config.train = ml_collections.ConfigDict(
    {
      'steps': chosen['steps'],
      'batch_size': chosen['batch_size'],
      'optimisers': {'main': {'steps_per_epoch': chosen['epoch_steps'], **chosen['optimiser']}},
      'micro_batch': 0,  # examples of a batch that are in memory at a time; 0: all
      'ema': 0.0,
      'ema_ramp': 0,  # steps over which the moving average settles
      'log_every': 20,
      'checkpoint_every': 100,
    }
  )
  config.train.update(chosen.get('train', {}))
  config.reading = ml_collections.ConfigDict(
    {
      'criterion': 'loss',  # text and authors: all terms of the loss
      'test': 'final',  # text; authors 'any', see _amat.py
      'when': 'epoch_end',  # authors; text 'immediate'
      'refine': True,  # text; the authors' landmark code does not
      'cap': True,  # authors; the text has none
      'estimator': 'mean',  # of the thresholds, text: mean, huber or max (authors)
      'deviations': 2.0,  # standard deviations added to it, text
      # Batch statistics of training attacks: 'running' averages; 'batch' uses those of the attacked
      # batch, 'update' (the authors' code) also stores them. Both couple the examples of a batch.
      'attack_bn': 'running',
    }
  )
  if reading:
    config.reading.update({**amat.READINGS[reading], 'criterion': 'loss'})
  if reading == 'authors':  # the thresholds of the runs that their evaluation loads
    config.reading.update({'estimator': 'max', 'deviations': 0.0, 'attack_bn': 'update'})
  num_steps, step = chosen.get('num_steps', 20), chosen['step']
  arms = amat.arms(chosen['sat'], step=step, cap=chosen['cap'], scale=scale, num_steps=num_steps)
  arms = {'std': arms.pop('std'), **chosen.get('more_arms', {}), **arms}
  bounds = chosen['bounds']
  for name, arm in arms.items():
    if 'attack' in arm['defense']:
      arm['defense']['attack'].update({'relative_step': 5 / num_steps, 'bounds': bounds})
      if chosen.get('warm'):
        arm.update({'init_from': 'std', 'train': dict(chosen['warm'])})
    if name == 'amat' and chosen['floor'] and reading != 'text':
      arm['defense']['floor'] = amat.scaled(step, scale)
  config.arms = ml_collections.ConfigDict(arms, sort_keys=False)
  at = amat.scaled(chosen['pictured'], scale)
  attacks = {name: {**options, 'bounds': bounds} for name, options in amat.attacks(at).items()}
  if preset == 'smoke':  # every attack is a program to compile
    attacks = {name: attacks[name] for name in ('pgd', 'noise')}
  config.evaluate = ml_collections.ConfigDict(
    {
      'batch_size': 16,
      'levels': tuple(amat.scaled(level, scale) for level in chosen['levels']),
      'budget': '',  # quick, standard, thorough: attacks of an ensemble too, see docs/attacks.md
      'attacks': attacks,
      'save_examples': 3,  # worst N adversarial examples per arm, as PNG files
    }
  )
  _shorter(config, chosen.get('eval_steps', 0))
  config.report = ml_collections.ConfigDict({'pictures': 4, 'picture_eps': at})
  return config


def _shorter(config, steps: int) -> None:
  """Gives the evaluation's attacks fewer steps with the same total length."""
  attacks = config.evaluate.attacks
  if not steps:
    return
  changes = {
    'pgd': {'num_steps': steps, 'relative_step': 5 / steps},
    'transfer': {'num_steps': steps, 'relative_step': 5 / steps},
    'pgd_best': {'num_steps': steps, 'relative_step': 5 / steps},
    'apgd': {'num_steps': steps},
  }
  for name in changes:
    if name in attacks:
      attacks[name].update(changes[name])

"""What the two BraTS configurations have in common: everything but the number of dimensions."""

import ml_collections

from robustmed import errors

PRESETS = ('', 'demo', 'smoke', 'real', 'paper')
BOUNDS = (0.0, 1.0)  # of the images; every level is a fraction of that range
EPS = 0.05  # of the tables and of the training of at_05
ALPHA = 0.005  # of the iterated attacks
# Logits grow to T times their size with the training; what few hundred steps reach is a T of 20.
TEMPERATURES = {'demo': (5, 20), 'paper': (20, 100, 500, 5000)}
RISE = {'demo': 0.7, 'paper': 0.0}  # share of the training in which T climbs from 1
BUDGETS = {'demo': (EPS,), 'paper': (0.01, EPS, 0.1)}


def glioma(preset: str, *, dimension: int, demo: dict, paper: dict) -> ml_collections.ConfigDict:
  """The configuration of networks of volumes (`dimension` 3) or of their axial slices (2).

  `demo` and `paper` hold, under 'data', 'train' and 'model', the fields of that size.
  """
  errors.lookup(dict.fromkeys(PRESETS), preset, kind='preset')
  preset = preset or 'demo'
  small = preset in ('demo', 'smoke')
  sized = demo if small else paper
  kind = 'paper' if preset == 'paper' else 'demo'
  config = ml_collections.ConfigDict()
  config.experiment = 'brats'
  config.dimension = dimension
  config.preset = preset
  config.seed = 0
  config.seeds = 1  # trains every arm this many times
  config.data = ml_collections.ConfigDict(_data(small, sized['data']))
  config.model = ml_collections.ConfigDict(
    {
      'name': 'brats_unet',
      'width': 1.0,
      'dropout': 0.3,
      'leak': 0.01,  # 0.3 in the re-implementation with Keras
      'remat': False,
      'logit_gain': 1.0,
      'dtype': 'float32',
      **sized['model'],
    }
  )
  # Eq. 5 is the Dice alone; short runs with it mark a small class everywhere or nowhere.
  config.loss = ('dice',) if preset == 'paper' else ('dice', 'ce')
  config.augment = ml_collections.ConfigDict(
    {
      'rotation': 0.0 if small else 15.0,  # degrees, axial plane
      'flips': 'last' if small else 'all',  # none, last, all
      'transposes': not small,
      'wrong_labels': '',  # erode, dilate, swap: wrong training labels
      'wrong_share': 0.5,  # of the training examples
      'wrong_radius': 1,
    }
  )
  config.train = ml_collections.ConfigDict(
    {
      'optimisers': {'main': {'name': 'adam', 'lr': 1e-3, 'schedule': 'constant'}},
      'micro_batch': 0,  # examples of a batch that are in memory at a time; 0: all
      'ema': 0.0,
      'log_every': 20,
      'checkpoint_every': 100,
      **sized['train'],
    }
  )
  # Where the text is silent, contradicts itself, or does not work in short runs.
  config.reading = ml_collections.ConfigDict(
    {
      'distillation': 'literal',  # 'logit_gain': logits times T in training at T, so T cancels
      'updates': 'in_turn',  # one update on the disturbed batch, one on the clean; 'together'
      'epochs': 'equal',  # 'paper': in 3D no defense has a quarter of the steps, a fifth of the lr
    }
  )
  config.arms = ml_collections.ConfigDict(_arms(kind), sort_keys=False)
  grid = (0.01, 0.03, 0.05, 0.1) if small else tuple(round(0.01 * k, 2) for k in range(1, 11))
  config.evaluate = ml_collections.ConfigDict(
    {
      'batch_size': demo['judged'] if small else paper['judged'],
      'levels': grid,
      'budget': '',  # quick, standard, thorough: attacks of an ensemble too, see docs/attacks.md
      'attacks': _attacks(kind),
      'corruptions': () if small else ('motion', 'rician', 'bias_field'),
      'save_examples': 0,  # worst N adversarial examples per arm, as NIfTI
      'save_nifti': False,  # clean, adversarial and predicted volumes of every arm
      'nifti_cases': 2,  # of so many test cases, 0: all
      'iterations': 20,  # of the curves against the number of iterations, 0: none
      'iteration_arms': ('std',),
      'alpha': ALPHA,
    }
  )
  config.report = ml_collections.ConfigDict(
    {
      'pictures': 1,  # test cases that are drawn
      'picture_eps': 0.03,
      'other': '',  # the workdir of the other dimension's run, for the claim that compares them
    }
  )
  if preset == 'smoke':
    _smoke(config, dimension)
  return config


def _data(small: bool, fields: dict) -> dict:
  return {
    'source': 'phantom_brats' if small else 'brats',
    'dir': '',  # the folder of the brats source
    'cache_dir': '',
    'side': 128,
    'slice_step': 1,  # of so many axial slices one is kept, in 2D
    'layout': '',  # brats2017, folders, flat, msd, deepmedic; '' finds out
    'pattern': '',  # such as '{case}/{case}_{series}.nii.gz'
    'n4': 'all',  # but_flair, none
    'n4_shrink': 4,
    'n4_iterations': 50,
    'test_share': 0.2,
    'split_seed': 0,
    'train_cases': 48,  # of the phantom
    'test_cases': 16,  # fewer than 16 leave no corrected test significant
    **fields,
  }


def _arms(kind: str) -> dict:
  arms = {'std': {'defense': {'name': 'standard'}}}
  for temperature in TEMPERATURES[kind]:
    distillation = {
      'name': 'distillation',
      'temperature': float(temperature),
      'rise': RISE[kind],
    }
    arms[f'teacher_{temperature}'] = {
      'defense': {**distillation, 'stage': 'teacher'},
      'attacks': (),
    }
    arms[f'distil_{temperature}'] = {
      'defense': {**distillation, 'stage': 'student'},
      'teacher_from': f'teacher_{temperature}',
    }
  for eps in BUDGETS[kind]:
    arms[f'at_{round(100 * eps):02d}'] = {'defense': _adversarial(eps, {'name': 'fgsm'})}
  arms['noise'] = {'defense': {'name': 'noise', 'eps': 0.01, 'clean_weight': 0.5, 'bounds': BOUNDS}}
  if kind == 'paper':  # what the paper names as future work
    pgd = {'name': 'pgd', 'num_steps': 7, 'relative_step': 0.25}
    arms['pgd_05'] = {'defense': _adversarial(EPS, pgd)}
    arms['wrong_labels'] = {
      'defense': {'name': 'standard'},
      'augment': {'wrong_labels': 'dilate'},
    }
  return arms


def _adversarial(eps: float, attack: dict) -> dict:
  return {
    'name': 'adversarial',
    'eps': eps,
    'clean_weight': 0.5,
    'objectives': {'dice': 0.5},
    'attack': {**attack, 'bounds': BOUNDS, 'score_last': False},
  }


def _attacks(kind: str) -> dict:
  """The paper's three; what an attacker does who knows of temperature; two controls."""
  full = kind == 'paper'
  ends, restarts = (EPS, 0.1), 3 if full else 1
  step = {'name': 'fgsm', 'bounds': BOUNDS}
  steps = {'name': 'ifgsm', 'bounds': BOUNDS, 'num_steps': 10, 'levels': (EPS,)}
  pgd = {
    'name': 'pgd',
    'bounds': BOUNDS,
    'num_steps': 40,
    'relative_step': 0.1,
    'restarts': restarts,
    'select': 'best',
    'levels': (EPS,),
  }
  attacks = {
    'fgsm': {**step, 'objective': 'dice'},
    'ifgsm': {**steps, 'objective': 'dice', 'levels': ends},
    'tifgsm': {**steps, 'name': 'tifgsm', 'objective': 'ti'},
    'scaled_fgsm': {**step, 'objective': 'scaled', 'levels': ends},
    'scaled_ifgsm': {**steps, 'objective': 'scaled', 'levels': (EPS,)},
    'pgd_margin': {**pgd, 'objective': 'margin'},
    'pgd_ce': {**pgd, 'objective': 'ce'},
    'transfer': {**steps, 'objective': 'scaled', 'source': 'std'},
    'square': {
      'name': 'square',
      'bounds': BOUNDS,
      'objective': 'dice',
      'num_steps': 1000 if full else 50,
      'levels': (EPS,),
    },
    'noise': {'name': 'noise', 'bounds': BOUNDS, 'objective': 'dice', 'levels': ends},
  }
  if not full:
    attacks['pgd_ce']['num_steps'] = 20
  if full:
    attacks['pgd_scaled'] = {**pgd, 'objective': 'scaled'}
    attacks['scaled_fgsm'].pop('levels')
    attacks['ifgsm'].pop('levels')
  return attacks


def _smoke(config, dimension: int) -> None:
  config.data.update({'side': 16, 'train_cases': 3, 'test_cases': 2})
  config.data.slice_step = 8 if dimension == 2 else 1
  config.model.width = 0.0625
  config.train.update({'steps': 3, 'batch_size': 2, 'log_every': 1, 'checkpoint_every': 2})
  for name in ('distil_20', 'noise'):
    del config.arms[name]
  config.evaluate.update({'batch_size': 4, 'levels': (0.05, 0.1), 'iterations': 2})
  for name in ('scaled_fgsm', 'pgd_ce', 'pgd_margin'):  # each is a program to compile
    del config.evaluate.attacks[name]
  for name in ('ifgsm', 'tifgsm', 'scaled_ifgsm', 'transfer', 'square'):
    config.evaluate.attacks[name].num_steps = 2
  config.evaluate.save_examples = 1

"""Lung nodules (Liu et al. 2020, 'No Surprises'): a classifier of candidates is hardened with
synthetic nodules of searched codes, attacked patches or Poisson noise.

Presets: none or `demo` (synthetic chests, small networks, for 2 cores), `smoke` (for tests), `real`
(`--config.data.dir=...`, LUNA16 with its own list of candidates, all ten variants, pools of half
and less of the paper's, 86 GB of patches, a GPU) and `paper` (the three candidate networks and
DeepLung's, the paper's pools, three seeds: 48 networks, 123 hours at 10 TFLOP/s, 1.04 TB of
patches). The patches are those of training
and of the stress tests; whether they fit on the disk is looked at before. LUNA16 has no nodule
masks: `python -m robustmed.data.chest.lidc_xml` makes them. `--config.data.fold=0` to `9` tests on
another subset of it.
"""

import ml_collections

from robustmed import errors

EPS = 0.15  # of the window of [-1200, 600] HU, and of the code
UNIFORM = (0.3, 0.6, 0.9)
CODES, PATCHES = ('codes',), ('positives', 'noise')
POISSON = ('poisson_positives', 'poisson_negatives')


def get_config(preset: str = '') -> ml_collections.ConfigDict:
  """The configuration of a preset: '' or 'demo', 'smoke', 'real', 'paper'."""
  errors.lookup(dict.fromkeys(('', 'demo', 'smoke', 'real', 'paper')), preset, kind='preset')
  preset = preset or 'demo'
  config = ml_collections.ConfigDict()
  config.experiment = 'nodules'
  config.preset = preset
  config.seed = 0
  config.seeds = 1  # trains every arm this many times
  config.data = ml_collections.ConfigDict(_data())
  config.tiles = ml_collections.ConfigDict(
    {'side': 24, 'spacing': 2.0, 'backgrounds': 4, 'max_nodules': 8}
  )
  config.model = ml_collections.ConfigDict(
    {
      'name': 'nodule_unet',
      'levels': 3,
      'depth': 2,
      'growth': 4,
      'stem': 4,
      'rise': 8,
      'hidden': 16,
      'dtype': 'float32',
      'loss': 'beta',
      'anneal': 0.3,  # share of the training in which the divergence comes in
    }
  )
  config.augment = ml_collections.ConfigDict({'shift': 3.0, 'scale': 0.1})  # mm, share
  config.train = ml_collections.ConfigDict(
    {
      'steps': 200,
      'batch_size': 16,
      'optimisers': {'main': _adam(1e-3)},
      'micro_batch': 0,  # examples of a batch that are in memory at a time; 0: all
      'ema': 0.0,
      'log_every': 20,
      'checkpoint_every': 100,
    }
  )
  config.candidates = ml_collections.ConfigDict(_candidates())
  config.reference = ml_collections.ConfigDict(
    {
      'kind': '',  # '': a row that says it is absent; 'detector': DeepLung's Res18; 'submission'
      'submission': '',  # CSV in the format of LUNA16
      'model': {'stages': ((32, 2), (64, 2), (64, 3)), 'last': 128, 'width': 0.25},
      'train': {'steps': 300},
    }
  )
  config.synthesiser = ml_collections.ConfigDict(_synthesiser())
  config.pools = ml_collections.ConfigDict(_pools())
  # Shares within each class; what a variant has not goes to the real examples.
  config.sampling = ml_collections.ConfigDict(
    {
      'positive': {'real': 0.5, 'synthetic': 0.25, 'attacked': 0.25},
      'negative': {'real': 0.5, 'attacked': 0.5},
    }
  )
  config.arms = ml_collections.ConfigDict(_arms(preset), sort_keys=False)
  config.stress = ml_collections.ConfigDict(
    {
      'codes': 64,  # synthetic nodules of each kind; 0: none
      'noise': 48,
      'uniform': UNIFORM,
      'poisson': (50, 5, 1),
      'white_box': ('positives', 'noise'),  # searched anew on every network
    }
  )
  config.evaluate = ml_collections.ConfigDict(
    {
      'batch_size': 32,
      'levels': (0.05, EPS),
      'budget': '',  # quick, standard, thorough: attacks of an ensemble too, see docs/attacks.md
      'attacks': _attacks(),
      'save_examples': 2,
      'scans': 0,  # test scans, 0: all
      'resamples': 1000,  # draws of scans
    }
  )
  config.report = ml_collections.ConfigDict({'pictures': 8, 'picture_eps': EPS})
  if preset == 'smoke':
    _smoke(config)
  if preset in ('real', 'paper'):
    _full(config)
  if preset == 'paper':
    _paper(config)
  return config


def _adam(rate: float) -> dict:
  return {'name': 'adam', 'lr': rate, 'schedule': 'constant'}


def _data() -> dict:
  return {
    'source': 'phantom_nodules',
    'dir': '',  # the folder of the luna16 source
    'cache_dir': '',
    'candidates': 'blob',  # of the test scans: networks of ours, or 'luna_v2', a list
    'min_diameter': 6.0,  # mm; smaller nodules of the test scans count neither way
    'side': 16,
    'spacing': 1.5,  # mm, as the voxels of the phantom
    'negatives': 5,  # of a scan
    'negatives_from': 'candidates',
    'backgrounds': 5,
    'scans': (36, 8, 16),  # of the phantom: train, validation, test
    'voxel': 1.5,
    'nodules': (2, 5),
    'diameters': (4.0, 16.0),
    'train_subsets': tuple(range(8)),  # of LUNA16
    'validation_subsets': (8,),
    'test_subsets': (9,),
    'fold': -1,  # of LUNA16, in place of the three: 0 to 9 is the subset to test on
  }


def _candidates() -> dict:
  return {
    'model': {'widths': (8, 8, 8)},
    'boxes_model': {'box_features': (8, 16)},
    'sides': (5.0, 10.0, 20.0),  # mm, of the anchors
    'ground_glass': True,  # a copy tuned to ground glass
    'boxes': False,  # a region proposal network
    'train': {'steps': 300, 'batch_size': 4, 'optimisers': {'main': _adam(3e-3)}},
    'fine_tuning': {'steps': 100},
    'settings': {
      'step': 0.5,
      'batch_size': 4,
      'distance': 6.0,  # mm
      'threshold': 0.05,
      'iou': 0.1,
      'limit': 100,
    },
  }


def _synthesiser() -> dict:
  adam = {'name': 'adam', 'b1': 0.5, 'b2': 0.9, 'schedule': 'constant'}
  return {
    'network': {'latent': 8, 'widths': (8, 16, 32), 'critic_widths': (8, 16, 32)},
    # The paper's critic is shown no random codes (`prior`), and then those draw in the border.
    'weights': {
      'divergence': 1e-5,
      'adversarial': 0.1,
      'penalty': 10.0,
      'critic_steps': 1,
      'prior': 0.5,
    },
    # Of the window: lung is about 0.2, ground glass 0.25 to 0.4. At 0.1 the soft edge of a nodule
    # is darker than the lung that it takes the place of.
    'threshold': 0.2,
    'smallest': 6.0,  # mm
    'train': {
      'steps': 400,
      'optimisers': {'generator': {**adam, 'lr': 1e-3}, 'critic': {**adam, 'lr': 3e-4}},
    },
  }


def _pools() -> dict:
  search = {'norm': 'linf', 'eps': EPS, 'step_size': 0.05, 'num_steps': 20}
  return {
    'victim': 'beta_finetune',  # the arm that is attacked
    'code_search': {'name': 'latent', **search},
    'patch_search': {'name': 'pgd', **search, 'bounds': (0.0, 1.0)},
    'poisson': (5, 50),  # of training
    # 0: one for each patch that a pool begins with
    'counts': {
      'random': 150,
      'codes': 150,
      'positives': 150,
      'noise': 150,
      'negatives': 150,
      'poisson_positives': 150,
      'poisson_negatives': 150,
    },
    'shard_size': 64,
    'batch_size': 16,
  }


def _arms(preset: str) -> dict:
  full = preset in ('real', 'paper')
  short = lambda **more: {} if full else {'train': {**more, 'optimisers': {'main': _adam(3e-3)}}}
  plain = {'defense': {'name': 'standard'}}
  tune = {'train': {'optimisers': {'main': _adam(1e-4)}}} if full else {}
  # In a few hundred steps at a constant rate variants would lose what the baseline knows.
  falling = {'train': {'optimisers': {'main': {**_adam(3e-3), 'schedule': 'cosine'}}}}
  variant = lambda *added: {
    **plain,
    **(tune if full else falling),
    'init_from': 'beta_finetune',
    'added': added,
  }
  arms = {
    'segmentation': {**plain, **short(steps=150), 'model': {'loss': 'segmentation'}},
    'ce': {**plain, **short(), 'init_from': 'segmentation', 'model': {'loss': 'ce'}},
    'beta': {**plain, **short(), 'init_from': 'segmentation'},
    'beta_finetune': {**plain, **tune, 'init_from': 'ce'},
    'longer': variant(),  # the steps and the schedule of the variants, on real patches alone
    'syn_random': variant('random'),
    'syn': variant(*CODES),
    'poisson': variant(*POISSON),
    'poisson_syn': variant(*POISSON, *CODES),
    'perturb': variant(*PATCHES),
    'perturb_syn': variant(*PATCHES, *CODES),
  }
  less = {'demo': ('beta', 'poisson_syn', 'perturb_syn')}
  less['smoke'] = (*less['demo'], 'syn_random', 'poisson')
  return {name: arm for name, arm in arms.items() if name not in less.get(preset, ())}


def _attacks() -> dict:
  pgd = {'name': 'pgd', 'norm': 'linf', 'objective': 'loss', 'bounds': (0.0, 1.0)}
  return {
    'pgd': {**pgd, 'num_steps': 7, 'relative_step': 1 / 3, 'score_last': False},
    'one_step': {
      **pgd, 'num_steps': 1, 'relative_step': 1.0, 'random_start': False, 'score_last': False,
    },
    'noise': {'name': 'noise', 'norm': 'linf', 'objective': 'loss', 'bounds': (0.0, 1.0)},
  }  # fmt: skip


def _smoke(config) -> None:
  config.data.update(
    {
      'min_diameter': 0.0,
      'side': 8,
      'spacing': 3.0,
      'negatives': 2,
      'backgrounds': 2,
      'scans': (3, 1, 2),
      'voxel': 3.0,
      'nodules': (1, 2),
      'diameters': (8.0, 14.0),
    }
  )
  config.tiles.update({'side': 16, 'spacing': 3.0, 'backgrounds': 1})
  config.model.update({'levels': 2, 'depth': 1, 'rise': 4, 'hidden': 4})
  config.train.update({'steps': 4, 'batch_size': 4, 'log_every': 1, 'checkpoint_every': 2})
  config.arms.segmentation.train.steps = 2
  options = config.candidates
  options.model.widths = (4, 4)
  options.ground_glass = False
  options.train.update({'steps': 2, 'batch_size': 2})
  options.settings.update({'threshold': 0.0, 'limit': 5})
  config.reference.model.update({'stages': ((4, 1), (4, 1), (4, 1)), 'last': 4, 'width': 0.25})
  config.synthesiser.update({'smallest': 3.0})
  config.synthesiser.network.update({'latent': 3, 'widths': (4, 8), 'critic_widths': (4, 8)})
  # enough of them for random codes to make anything
  config.synthesiser.train.update({'steps': 30, 'checkpoint_every': 30})
  config.synthesiser.train.optimisers.generator.lr = 1e-2
  for search in (config.pools.code_search, config.pools.patch_search):
    search.num_steps = 2
  config.pools.update({'shard_size': 4, 'batch_size': 4})
  for name in config.pools.counts:
    config.pools.counts[name] = 4
  config.stress.update(
    {'codes': 4, 'noise': 4, 'uniform': (0.3,), 'poisson': (5,), 'white_box': ('noise',)}
  )
  config.evaluate.update({'batch_size': 8, 'levels': (EPS,), 'save_examples': 1, 'resamples': 50})
  config.evaluate.attacks.pgd.num_steps = 2
  config.report.pictures = 2


def _full(config) -> None:
  """LUNA16 and the paper's networks."""
  config.data.update(
    {
      'source': 'luna16',
      'candidates': 'luna_v2',
      'side': 64,
      'spacing': 0.625,
      'negatives': 20,
      'backgrounds': 10,
    }
  )
  config.tiles.update({'side': 128, 'spacing': 1.0})
  config.model.update({'levels': 4, 'depth': 3, 'growth': 12, 'stem': 12, 'rise': 24, 'hidden': 32})
  config.train.update({'steps': 20_000, 'batch_size': 32, 'log_every': 100})
  config.train.checkpoint_every = 1000
  options = config.candidates
  options.model.widths = (16, 16, 16, 16, 24)
  options.boxes_model.box_features = (12, 64)
  options.boxes = True
  options.train.update({'steps': 20_000, 'batch_size': 4, 'optimisers': {'main': _adam(1e-3)}})
  options.fine_tuning.steps = 5000
  config.reference.model.update(
    {'stages': ((32, 2), (64, 2), (64, 3), (64, 3)), 'last': 128, 'width': 1.0}
  )
  config.reference.train.steps = 20_000
  synthesiser = config.synthesiser
  synthesiser.network.update(
    {'latent': 128, 'widths': (16, 32, 64, 128), 'critic_widths': (16, 32, 64, 128)}
  )
  synthesiser.weights.critic_steps = 5
  synthesiser.train.steps = 20_000
  for rule in synthesiser.train.optimisers.values():
    rule.lr = 1e-4
  config.pools.update({'shard_size': 1024, 'batch_size': 64})
  config.pools.counts.update(
    {
      'random': 20_000,
      'codes': 20_000,
      'positives': 0,
      'noise': 5000,
      'negatives': 5000,
      'poisson_positives': 0,
      'poisson_negatives': 5000,
    }
  )
  config.stress.update({'codes': 1000, 'noise': 500})
  config.stress.white_box = ('positives', 'noise', 'negatives', 'codes')
  config.evaluate.attacks.pgd.num_steps = 20


def _paper(config) -> None:
  config.data.candidates = 'blob'
  config.reference.kind = 'detector'
  # 710 scans, 10 backgrounds of each, 6 codes in each
  config.pools.counts.update({'random': 42_600, 'codes': 42_600, 'noise': 100_000})
  config.stress.codes = 10_000
  config.seeds = 3

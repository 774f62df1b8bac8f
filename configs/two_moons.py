"""Two moons (Liu et al. 2020, Fig. 7): what searched positives and searched negatives add to a
classifier with few positives, in six panels. Under a minute on 2 cores.

Presets: none or `demo`, and `smoke` (for tests). Everything is drawn twelve times: points,
networks and searches; one network holds the twelve classifiers of a panel.
"""

import ml_collections

from robustmed import errors

BOX = ((-3.0, 4.0), (-3.0, 3.0))  # of uniform points: x, y
INPUT = ((1.0, 1.0, 0.0),)  # an attack moves the point, not the number of its network


def get_config(preset: str = '') -> ml_collections.ConfigDict:
  """The configuration of a preset: '' or 'demo', or 'smoke'."""
  errors.lookup(dict.fromkeys(('', 'demo', 'smoke')), preset, kind='preset')
  config = ml_collections.ConfigDict()
  config.experiment = 'two_moons'
  config.preset = preset or 'demo'
  config.seed = 0
  config.seeds = 1  # trains every arm this many times
  config.data = ml_collections.ConfigDict(
    {
      'replicates': 12,
      'points': 500,
      'noise': 0.15,
      'kept': 20,
      'decay': 4.0,
      'test_points': 60,
      'far_points': 60,
      'far': 1.0,
      'box': BOX,
    }
  )
  config.model = ml_collections.ConfigDict({'name': 'mlp', 'widths': (64, 64)})
  adam = {'name': 'adam', 'lr': 1e-2, 'schedule': 'constant'}
  config.train = ml_collections.ConfigDict(
    {
      'steps': 300,
      'batch_size': 256,  # of all replicates together
      'optimisers': {'main': adam},
      'micro_batch': 0,  # examples of a batch that are in memory at a time; 0: all
      'ema': 0.0,
      'log_every': 50,
      'checkpoint_every': 300,
    }
  )
  config.vae = ml_collections.ConfigDict(
    {
      'widths': (32, 32),
      'latent': 2,
      'divergence': 1e-2,
      'train': {'batch_size': 240, 'steps': 600, 'checkpoint_every': 600},
    }
  )
  # real: 'full' or 'tail'; added: any of codes, searched_codes (positives), uniform,
  # searched_uniform (negatives). The panels add up: c fills the hole, then d and f bound it.
  config.arms = ml_collections.ConfigDict(
    {
      'a_full': {'real': 'full', 'added': ()},
      'b_tail': {'real': 'tail', 'added': ()},
      'c_codes': {'real': 'tail', 'added': ('codes',)},
      'd_uniform': {'real': 'tail', 'added': ('codes', 'uniform')},
      'e_searched_codes': {'real': 'tail', 'added': ('searched_codes',)},
      'f_searched_uniform': {'real': 'tail', 'added': ('codes', 'searched_uniform')},
    },
    sort_keys=False,
  )
  search = {'norm': 'linf', 'num_steps': 20, 'relative_step': 0.1, 'score_last': False}
  config.search = ml_collections.ConfigDict(
    {
      'victim': 'b_tail',  # the arm that the searches attack
      'codes': 200,  # added points per replicate
      'uniform': 20,
      'codes_eps': 0.5,  # units of the code, N(0, 1)
      'uniform_eps': 1.0,  # distance in the plane
      'attacks': {
        'codes': {'name': 'latent', **search},
        'uniform': {
          'name': 'pgd', **search, 'bounds': tuple(zip(*BOX)),
        },
      },
    }
  )  # fmt: skip
  pgd = {'norm': 'linf', 'objective': 'bce', 'region': INPUT}
  config.evaluate = ml_collections.ConfigDict(
    {
      'batch_size': 4096,
      'levels': (0.1, 0.3),  # distance in the plane
      'budget': '',  # quick, standard, thorough: attacks of an ensemble too, see docs/attacks.md
      'attacks': {
        'pgd': {'name': 'pgd', **pgd, 'num_steps': 10, 'relative_step': 0.25},
        'one_step': {
          'name': 'pgd', **pgd, 'num_steps': 1, 'relative_step': 1.0, 'random_start': False,
        },
        'noise': {'name': 'noise', **pgd},
      },
      'save_examples': 0,
    }
  )  # fmt: skip
  config.report = ml_collections.ConfigDict({'pictures': 0, 'picture_eps': 0.1, 'grid': 121})
  if preset == 'smoke':
    config.data.update(
      {'replicates': 2, 'points': 20, 'kept': 5, 'test_points': 6, 'far_points': 6}
    )
    config.model.widths = (8,)
    short = {'batch_size': 8, 'steps': 4, 'checkpoint_every': 2}
    config.vae.update({'widths': (4,), 'train': short})
    config.train.update({'steps': 4, 'batch_size': 8, 'log_every': 1, 'checkpoint_every': 2})
    config.search.update({'codes': 4, 'uniform': 3})
    for name in ('codes', 'uniform'):
      config.search.attacks[name].num_steps = 2
    config.evaluate.attacks.pgd.num_steps = 6
    config.report.grid = 9
  return config

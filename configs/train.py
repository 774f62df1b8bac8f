"""Your own labelled images: a network trained three ways and attacked, without a line of code.

  python -m robustmed.main --config configs/train.py --config.data.dir=FOLDER --workdir runs/organ

FOLDER is in nnU-Net's raw layout, a task of the Medical Segmentation Decathlon, or has images/ and
labels/ or masks/, 2D or 3D, any number of channels and classes; images with boxes, landmarks or one
class as well. The first lines of a run say what was recognised and every choice that was made; each
names the field that changes it. Volumes are trained slice by slice (`--config.data.axes=3`: whole).
Levels are shares of the intensity range.

Presets: none or `demo` (a few minutes on 2 cores; without FOLDER synthetic organs), `smoke`
(seconds, for tests), `real` (full width, four times the steps, images of up to 512 x 512 pixels or
64 x 64 x 64 voxels, stronger attacks: for a GPU).
"""

import ml_collections

from robustmed import errors

LEVELS = (0.01, 0.02, 0.04, 0.08)  # share of the intensity range, Linf
PRESETS = ('', 'demo', 'smoke', 'real')


def get_config(preset: str = '') -> ml_collections.ConfigDict:
  """The configuration of a preset: '' or 'demo', 'smoke', 'real'."""
  errors.lookup(dict.fromkeys(PRESETS), preset, kind='preset')
  config = ml_collections.ConfigDict()
  config.experiment = 'own_data'
  config.preset = preset or 'demo'
  config.seed = 0
  config.seeds = 1  # trains every arm this many times
  config.data = ml_collections.ConfigDict(
    {
      'source': 'auto',  # labelled with a folder, phantom_labelled without one
      'dir': '',
      'cache_dir': '',
      'layout': 'auto',  # nnunet (also the Decathlon), pairs, voc, coco, yolo, landmarks
      'axes': 2,  # of the network's images: 2 takes volumes slice by slice, 3 whole
      'slice_axis': -1,  # of [z, y, x]; -1: across the largest spacing
      'spacing': (),  # () as stored, unless cases differ or most_voxels is exceeded
      'most_voxels': 0,  # of an image, larger ones are resampled; 0: 128 x 128, or 65536 in 3D
      'slices_per_case': 16,  # of a test volume, evenly spaced over the foreground; 0: all
      'intensity': 'auto',  # range, case, ct, zscore: what 1 is, see data/labelled/units.py
      'ct_range': (),  # (low, high) in HU of the intensity ct; (): of the organs' values
      'patch': (),  # of training; (): the whole image, or the median if sizes differ much
      'patients': '',  # a regular expression on the names, or a CSV: case, patient
      'height': 0,  # of images with boxes or landmarks; 0: from the data
      'width': 0,
      'max_boxes': 0,
      'mm_per_pixel': 0.0,  # of images with landmarks
      'split': 'auto',  # file (folders or a CSV), fraction, all (nothing to train on)
      'split_file': '',  # a CSV: case, train | validation | test
      'test_share': 0.2,  # of the patients
      'validation_share': 0.0,
      'seed': 0,  # of the split
      'cases': 36,  # of the synthetic organs, as are the next two
      'volume_seed': 0,
      'scale': 1.0,
    }
  )
  config.model = ml_collections.ConfigDict(
    {'name': 'auto', 'width': 0.25, 'dtype': 'float32'}  # of label maps nnunet, or unet
  )
  # nnunet (2D), plain (mirrors, contrast, noise) or none; auto: nnunet where it can be
  config.augment = ml_collections.ConfigDict({'name': 'auto', 'mirror': 0.0, 'max_angle': 15.0})
  rule = {
    'name': 'adam',
    'lr': 2e-3,
    'schedule': 'cosine',
    'final_fraction': 0.05,
    'warmup_share': 0.1,
    'clip': 12.0,
    'steps_per_epoch': 10,
  }
  config.train = ml_collections.ConfigDict(
    {
      'steps': 400,
      'batch_size': 0,  # 0: 16 images, 2 volumes
      'optimisers': {'main': rule},
      'ema': 0.0,
      'log_every': 20,
      'checkpoint_every': 100,
    }
  )
  attack = {
    'name': 'pgd',
    'norm': 'linf',
    'num_steps': 3,
    'relative_step': 0.5,
    'score_last': False,
  }
  config.arms = ml_collections.ConfigDict(
    {
      'std': {'defense': {'name': 'standard', 'coupled': True}},
      'adv': {
        'defense': {
          'name': 'adversarial',
          'eps': 0.04,
          'clean_weight': 0.5,
          'objectives': {'loss': 0.5},
          'coupled': True,
          'attack': dict(attack),
        },
        'init_from': 'std',
        'train': {'steps': 120},
      },
      'amat': {
        'defense': {
          'name': 'amat',
          'step': 0.01,
          'max_margin': 0.08,
          'terms': ('total',),
          'epoch_steps': 10,
          'attack': {**attack, 'score_last': True},
        },
        'thresholds_from': 'std',
        'init_from': 'std',
        'train': {'steps': 120},
      },
    },
    sort_keys=False,
  )
  pgd = {'name': 'pgd', 'norm': 'linf', 'num_steps': 20, 'relative_step': 0.15}
  config.evaluate = ml_collections.ConfigDict(
    {
      'batch_size': 16,
      'levels': LEVELS,
      'budget': '',  # quick, standard, thorough: attacks of an ensemble too, see docs/attacks.md
      'attacks': {
        'pgd': {**pgd, 'objective': 'loss', 'score_last': False},
        'one_step': {'name': 'fgsm', 'objective': 'loss', 'score_last': False},
        'noise': {'name': 'noise', 'norm': 'linf', 'objective': 'loss'},
      },
      'save_examples': 3,  # worst N images per arm, as NIfTI in patient space
    }
  )
  config.report = ml_collections.ConfigDict({'pictures': 4, 'picture_eps': 0.04})
  if preset == 'smoke':
    config.data.update({'cases': 5, 'scale': 0.4, 'slices_per_case': 3, 'test_share': 0.4})
    config.model.width = 0.125
    config.train.update({'steps': 3, 'batch_size': 4, 'log_every': 1, 'checkpoint_every': 2})
    for arm in ('adv', 'amat'):
      config.arms[arm].train.steps = 2
      config.arms[arm].defense.attack.num_steps = 2
    config.arms.amat.defense.epoch_steps = 1
    config.train.optimisers.main.steps_per_epoch = 1
    config.evaluate.update({'batch_size': 4, 'levels': (0.01, 0.04), 'save_examples': 1})
    config.evaluate.attacks.pgd.num_steps = 2
    config.report.pictures = 2
  if preset == 'real':
    config.data.update({'most_voxels': 262144, 'slices_per_case': 0})
    config.model.width = 1.0
    config.train.update({'steps': 1600, 'checkpoint_every': 200})
    for arm in ('adv', 'amat'):
      config.arms[arm].train.steps = 800
      config.arms[arm].defense.attack.update({'num_steps': 7, 'relative_step': 0.3})
    config.evaluate.attacks.pgd.update({'num_steps': 100, 'relative_step': 0.05})
  return config

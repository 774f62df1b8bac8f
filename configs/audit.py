"""Your own trained network on your own labelled images: attacked, measured, reported.

  python -m robustmed.main --config configs/audit.py --config.network=model.onnx
      --config.data.dir=FOLDER --workdir runs/audit

The network: an ONNX file that segments, 2D or 3D, or gives a class or landmarks (heat maps) of an
image; a results folder of nnU-Net v2 (Dataset.../TRAINER__PLANS__CONFIGURATION) or the folder of a
MONAI bundle. FOLDER: as for configs/train.py. What the file does not say is guessed and printed:
`--config.input.normalise=ct:-100:240:80:40` (all names: robustmed/networks/normalise.py),
`--config.output.classes="('background','liver')"`, or a file network.json beside the network,
{"input": {...}, "output": {...}}. Nothing is trained, every case is a test case. The attacked image
is the stored one. Results: report/report.html, report/audit.json, report/card.md. Without a
network, a demonstration on synthetic volumes.

Presets, how much is attacked: none or `quick` (64 images: for 2 cores and a 2D network), `standard`
(256 images, more steps, an attack without step sizes, one without gradients), `thorough` (all
images, restarts: for a GPU), `smoke` (seconds, for tests).
"""

import ml_collections

from robustmed import errors

PRESETS = ('', 'quick', 'standard', 'thorough', 'smoke')


def get_config(preset: str = '') -> ml_collections.ConfigDict:
  """The configuration of a preset: '' or 'quick', 'standard', 'thorough', 'smoke'."""
  errors.lookup(dict.fromkeys(PRESETS), preset, kind='preset')
  config = ml_collections.ConfigDict()
  config.experiment = 'audit'
  config.preset = preset or 'quick'
  config.seed = 0
  config.seeds = 1
  config.network = ''  # a file or folder
  config.networks = ''  # several, side by side: a.onnx,b.onnx
  config.model = ml_collections.ConfigDict({'name': 'loaded'})
  config.input = ml_collections.ConfigDict(
    {
      'channels': 0,  # 0: of the network
      'spacing': (),  # (): as stored; of [z, y, x] or [y, x]
      # the network's order of axes: zyx, or xyz as nibabel reads; a minus flips: z-yx; in 3D also
      # where they lead to in the patient, as RAS
      'orientation': '',
      'normalise': '',  # none, zscore, minmax, scale:TOP, window:LOW:HIGH, ct:LOW:HIGH:MEAN:STD
      'window': (),  # of sliding windows; (): the network's fixed size, or the whole image
      'overlap': -1.0,  # of windows; -1: 0.5
      'blend': '',  # of windows: gaussian, nnunet, constant
      # axes over whose mirror images outputs are averaged: none, letters as yx, or network for
      # those of the network's own prediction
      'mirror': '',
    }
  )
  config.output = ml_collections.ConfigDict(
    {
      'kind': '',  # segmentation, classification, landmarks (heat maps); '': of the labels
      'classes': (),  # a name for each channel, the names of the folder's labels among them
      'activation': '',  # that the outputs have been through: none, softmax, sigmoid
    }
  )
  config.data = ml_collections.ConfigDict(
    {
      'source': 'auto',  # labelled with a folder, phantom_labelled without one
      'dir': '',
      'cache_dir': '',
      'layout': 'auto',
      'slice_axis': -1,  # of [z, y, x], for networks in 2D; -1: across the largest spacing
      'slices_per_case': 4,  # with foreground, evenly spaced; 0: all
      'most_examples': 64,  # images that are attacked, evenly spaced; 0: all
      'patients': '',  # a regular expression on the names, or a CSV: case, patient
      'height': 0,  # of images with classes or landmarks; 0: of the network, or from the data
      'width': 0,
      'mm_per_pixel': 0.0,  # of images with landmarks
      'split': 'all',  # all cases are test cases; file, fraction: the test cases of these
      'split_file': '',
      'test_share': 0.2,
      'seed': 0,
      'cases': 16,  # of the synthetic organs, as are the next two
      'volume_seed': 0,
      'scale': 1.0,
    }
  )
  # units: range (share of the image's 0.5 to 99.5 % range), type (share of the stored type's), std,
  # hu, raw; auto: hu for CT, type for 8 bits, else range. rounded: scores the image that a file of
  # the stored integer type can hold
  config.threat = ml_collections.ConfigDict({'units': 'auto', 'rounded': False})
  pgd = {'name': 'pgd', 'norm': 'linf', 'num_steps': 10, 'objective': 'loss', 'score_last': False}
  config.evaluate = ml_collections.ConfigDict(
    {
      'batch_size': 8,
      'levels': (),  # (): those of the units, see the first lines of a run
      'budget': '',  # quick, standard, thorough: attacks of an ensemble too, see docs/attacks.md
      'attacks': {
        'pgd': pgd,
        'one_step': {'name': 'fgsm', 'objective': 'loss', 'score_last': False},
        'noise': {'name': 'noise', 'norm': 'linf', 'objective': 'loss'},
      },
      'corruptions': ('rician', 'bias_field', 'motion'),
      # the network smoothed by Gaussian noise, certified and attacked at the same radii in L2:
      # sigma of the noise (units of the levels; 0: not), draws (0: 800), images (0: 8)
      'smoothing': {'sigma': 0.0, 'draws': 0, 'images': 0},
      'halvings': 3,  # of the interval of levels in which a case breaks; 0: levels alone
      'save_examples': 3,  # worst N images of each network, as NIfTI in patient space
    }
  )
  config.report = ml_collections.ConfigDict(
    {
      'pictures': 3,
      'picture_eps': 0.0,
      'broken': 0.5,  # below this share of its clean Dice a case counts as broken
      'tolerance': 0.0,  # of NSD in mm; 0: 2 mm, or 1 pixel where the files have no spacing
    }
  )
  if preset in ('standard', 'thorough'):
    config.data.update({'slices_per_case': 8, 'most_examples': 256})
    config.evaluate.attacks.pgd.num_steps = 40
    config.evaluate.attacks.apgd = ml_collections.ConfigDict(
      {'name': 'apgd', 'norm': 'linf', 'num_steps': 40, 'objective': 'margin'}
    )
    config.evaluate.attacks.square = ml_collections.ConfigDict(
      {'name': 'square', 'norm': 'linf', 'num_steps': 200, 'objective': 'loss'}
    )
    config.evaluate.halvings = 5
  if preset == 'thorough':
    config.input.mirror = 'network'
    config.data.update({'slices_per_case': 0, 'most_examples': 0})
    config.evaluate.batch_size = 32
    config.evaluate.attacks.pgd.update({'num_steps': 100, 'restarts': 3})
    config.evaluate.attacks.apgd.num_steps = 100
    config.evaluate.attacks.square.num_steps = 1000
  if preset == 'smoke':
    config.data.update({'cases': 4, 'scale': 0.4, 'slices_per_case': 2, 'most_examples': 6})
    config.evaluate.update({'batch_size': 4, 'save_examples': 1, 'halvings': 1, 'corruptions': ()})
    config.evaluate.attacks.pgd.num_steps = 2
    config.report.pictures = 1
  return config

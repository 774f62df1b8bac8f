"""Reads the results folder of a network that nnU-Net v2 trained: plans, data set, checkpoints.

Isensee et al., Nature Methods 2021; the files of nnunetv2 2.x. No pickled code is run. What is
damaged, of a custom trainer or beyond this reader is one `UserError` line that names the file.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.files import torch_archive
from robustmed.networks import nnunet_architecture
from robustmed.process import files

CHECKPOINTS = ('checkpoint_final.pth', 'checkpoint_best.pth')
MAX_JSON = 64 * 2**20  # bytes
MOST_CELLS = 2**28  # of a patch
NORMALISATIONS = (
  *('ZScoreNormalization', 'CTNormalization', 'NoNormalization'),
  *('RescaleTo01Normalization', 'RGBTo01Normalization'),
)
RESAMPLERS = {  # of nnunetv2.preprocessing.resampling, with their default arguments
  'resample_data_or_seg_to_shape': {'order': 3, 'order_z': 0, 'force_separate_z': False},
  'resample_torch_fornnunet': {'force_separate_z': None, 'mode': 'linear'},
  'no_resampling_hack': {},
}
# Trainers of nnunetv2 itself whose networks are those of the plans: they differ in their losses,
# augmentation, optimiser and length alone.
_TRAINERS = re.compile(
  r'nnUNetTrainer(?:_?\d+epochs?|Benchmark_5epochs(?:_noDataLoading)?|DA5(?:(?:Seg)?ord0|_10epochs)?'
  r'|NoDA|NoMirroring|_noDummy2DDA|_DASegOrd0|_onlyMirror01|_1500ep|_DA5|_NoMirroring|_warmup'
  r'|CosAnneal|AdanCosAnneal|(?:Vanilla)?Ada[mn](?:[134]en[134])?|DiceLoss|DiceCELoss_noSmooth'
  r'|(?:Dice)?Top[kK]10Loss(?:LS01)?|CELoss|NoDeepSupervision|BN'
  r'|_probabilisticOversampling(?:_0\d\d)?)*'
)


class Normalisation(NamedTuple):
  """How one channel is normalised."""

  name: str  # one of NORMALISATIONS
  masked: bool  # over the non-zero region alone
  properties: Mapping[str, float]  # of the foreground of all training cases


class Resampling(NamedTuple):
  name: str  # one of RESAMPLERS
  options: Mapping[str, Any]


class Labels(NamedTuple):
  """What the channels of the output mean."""

  names: tuple[str, ...]  # one per channel
  values: tuple[int, ...]  # what each channel writes into the label map
  regions: bool  # channels are sigmoids of regions that overlap, written in this order
  ignored: int | None  # the label of voxels that were not annotated; never predicted


class Fold(NamedTuple):
  path: pathlib.Path  # of the checkpoint
  weights: Mapping[str, torch_archive.Tensor]


class Plan(NamedTuple):
  """All that prediction needs; `forward` takes axes [z, y, x] of the file to those of the plan."""

  folder: pathlib.Path
  trainer: str
  configuration: str
  channels: tuple[str, ...]
  labels: Labels
  forward: tuple[int, int, int]  # axes of the plan
  patch: tuple[int, ...]  # two or three sides
  spacing: tuple[float, ...]  # millimetres, as many as sides
  normalisations: tuple[Normalisation, ...]
  resample_image: Resampling
  resample_logits: Resampling
  architecture: nnunet_architecture.Architecture
  mirrored: tuple[int, ...]  # axes of the patch
  reader: str  # of nnunetv2
  ending: str  # of image files
  folds: tuple[Fold, ...]


def read(
  folder: pathlib.Path | str, *, folds: tuple[str | int, ...] = (), checkpoint: str = ''
) -> Plan:
  """Returns the plan of a results folder and the outlines of its checkpoints.

  folds: by default every `fold_N` with a checkpoint, or else `fold_all`. checkpoint: by default the
  final one, or else the best one.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise errors.UserError(f'{folder}: no such folder')
  if re.fullmatch(r'fold_\w+', folder.name) and not (folder / 'plans.json').exists():
    folds, folder = folds or (folder.name.removeprefix('fold_'),), folder.parent
  plans, data = (_json(folder / name) for name in ('plans.json', 'dataset.json'))
  found = [_checkpoint(path) for path in _paths(folder, folds, checkpoint)]
  first = found[0][1]
  for fold, meta in found[1:]:
    if (meta['trainer'], meta['configuration']) != (first['trainer'], first['configuration']):
      raise errors.UserError(f'{fold.path}: is of another trainer or configuration than fold one')
  what = f'{folder / "plans.json"}'
  try:
    return _plan(folder, plans, data, first, tuple(fold for fold, _ in found))
  except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
    missing = f'has no {error}' if isinstance(error, KeyError) else f'is not understood: {error}'
    raise errors.UserError(f'{what} (or dataset.json beside it) {missing}') from error


def is_results(folder: pathlib.Path) -> bool:
  """Returns whether this looks like a results folder of nnU-Net v2, or one fold of it."""
  folder = pathlib.Path(folder)
  places = (folder, folder.parent) if folder.name.startswith('fold_') else (folder,)
  return any((p / 'plans.json').is_file() and (p / 'dataset.json').is_file() for p in places)


def _json(path):
  if not files.present(path):
    raise errors.UserError(
      f'No such file {path}; a results folder of nnU-Net v2 has plans.json, dataset.json and '
      'fold_X/checkpoint_final.pth'
    )
  if path.stat().st_size > MAX_JSON:
    raise errors.UserError(f'{path}: more than {MAX_JSON} bytes')
  found = files.parsed_json(path, said=': no JSON')
  if not isinstance(found, dict):
    raise errors.UserError(f'{path}: must be an object, not a {type(found).__name__}')
  return found


def _paths(folder, folds, checkpoint):
  """Returns the checkpoints of the folds, all of one name."""
  names = (checkpoint,) if checkpoint else CHECKPOINTS
  for name in names:
    there = sorted(path for path in folder.glob(f'fold_*/{name}') if path.is_file())
    if folds:
      paths = [folder / f'fold_{fold}' / name for fold in folds]
      if all(path.is_file() for path in paths):
        return paths
    else:
      numbered = [path for path in there if re.fullmatch(r'fold_\d+', path.parent.name)]
      paths = numbered or [path for path in there if path.parent.name == 'fold_all']
      if paths:
        return paths
  which = f' of the folds {", ".join(map(str, folds))}' if folds else ''
  raise errors.UserError(f'{folder}: has no {" or ".join(f"fold_X/{n}" for n in names)}{which}')


def _checkpoint(path):
  """Returns a fold, and the trainer, configuration and mirrored axes in its checkpoint."""
  keys = (*('network_weights', 'init_args', 'trainer_name', 'inference_allowed_mirroring_axes'),)
  content = torch_archive.outline(path, keys)
  weights, arguments = content.get('network_weights'), content.get('init_args')
  trainer = content.get('trainer_name')
  if (
    not isinstance(weights, dict)
    or not all(isinstance(value, torch_archive.Tensor) for value in weights.values())
    or not isinstance(arguments, dict)
    or not isinstance(arguments.get('configuration'), str)
    or not isinstance(trainer, str)
  ):
    raise errors.UserError(
      f'{path}: is no checkpoint of nnU-Net v2 (it needs network_weights, trainer_name and '
      'init_args with the configuration)'
    )
  if not _TRAINERS.fullmatch(trainer):
    raise errors.UserError(
      f'{path}: the custom trainer {trainer!r} may build any network; export it: '
      'torch.onnx.export(...)'
    )
  mirrored = content.get('inference_allowed_mirroring_axes') or ()
  meta = {
    'trainer': trainer,
    'configuration': arguments['configuration'],
    'mirrored': mirrored if isinstance(mirrored, list | tuple) else (mirrored,),
  }
  return Fold(path, canonical(weights)), meta


def canonical(weights: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a state dict with one name per tensor, without the prefixes of wrappers."""
  named = {re.sub(r'^(?:module\.|_orig_mod\.)+', '', str(k)): v for k, v in weights.items()}
  return {
    name: value
    for name, value in named.items()
    if '.all_modules.' not in name and not name.startswith('decoder.encoder.')
  }


def _plan(folder, plans, data, meta, folds):
  name = meta['configuration']
  configuration = inherited(plans['configurations'], name, folder / 'plans.json')
  if configuration.get('previous_stage'):
    raise errors.UserError(
      f'{folder}: the configuration {name!r} is a cascade on {configuration["previous_stage"]!r}, '
      'whose predictions it reads as channels; give the folder of 3d_fullres or 3d_lowres'
    )
  _expected(folder, 'preprocessor', configuration.get('preprocessor_name'), 'DefaultPreprocessor')
  _expected(folder, 'label manager', plans.get('label_manager'), 'LabelManager')
  patch = tuple(_whole(side) for side in configuration['patch_size'])
  if len(patch) not in (2, 3) or min(patch) < 1 or np.prod(patch, dtype=float) > MOST_CELLS:
    raise ValueError(f'patch_size {list(patch)}')
  spacing = tuple(float(value) for value in configuration['spacing'])
  if len(spacing) != len(patch) or not all(1e-6 < value < 1e6 for value in spacing):
    raise ValueError(f'spacing {list(spacing)}')
  forward = tuple(_whole(axis) for axis in plans['transpose_forward'])
  if sorted(forward) != [0, 1, 2]:
    raise ValueError(f'transpose_forward {list(forward)}')
  mirrored = tuple(sorted({_whole(axis) for axis in meta['mirrored']}))
  if any(axis not in range(len(patch)) for axis in mirrored):
    raise ValueError(f'inference_allowed_mirroring_axes {list(mirrored)}')
  channels = data.get('channel_names') or data['modality']
  channels = tuple(str(value) for value in _values(channels))
  return Plan(
    folder=folder,
    trainer=meta['trainer'],
    configuration=name,
    channels=channels,
    labels=labels_of(data),
    forward=forward,
    patch=patch,
    spacing=spacing,
    normalisations=_normalisations(folder, plans, configuration, len(channels)),
    resample_image=_resampling(folder, configuration, 'data', order=3),
    resample_logits=_resampling(folder, configuration, 'probabilities', order=1),
    architecture=nnunet_architecture.of(
      configuration, folder / 'plans.json', batch_norm=meta['trainer'].endswith('BN')
    ),
    mirrored=mirrored,
    reader=str(plans.get('image_reader_writer', 'SimpleITKIO')),
    ending=str(data.get('file_ending', '.nii.gz')),
    folds=folds,
  )


def inherited(configurations: Mapping, name: str, path: pathlib.Path) -> dict[str, Any]:
  """Returns a configuration with what it inherits."""
  chain = []
  while name is not None:
    if name in chain or name not in configurations:
      what = 'inherits from itself' if name in chain else 'is not in the plans'
      raise errors.UserError(f'{path}: the configuration {name!r} {what}')
    chain.append(name)
    name = configurations[name].get('inherits_from')
  found = {}
  for name in reversed(chain):
    found.update(configurations[name])
  return found


def labels_of(data: Mapping[str, Any]) -> Labels:
  """Returns what the output channels mean, by the file dataset.json."""
  labels = dict(data['labels'])
  ignored = labels.pop('ignore', None)
  groups = {k: v if isinstance(v, list) else [v] for k, v in labels.items()}
  groups = {str(k): tuple(_whole(value) for value in v) for k, v in groups.items()}
  if any(len(values) > 1 for values in groups.values()):
    groups = {k: v for k, v in groups.items() if set(v) != {0}}
    order = tuple(_whole(value) for value in data['regions_class_order'])
    if len(order) != len(groups):
      raise ValueError(f'regions_class_order {list(order)} of {len(groups)} regions')
    return Labels(tuple(groups), order, True, ignored)
  named = sorted((values[0], name) for name, values in groups.items())
  values = tuple(value for value, _ in named)
  if values != tuple(range(len(values))):
    raise ValueError(f'labels {list(values)} are not 0, 1, 2, ...')
  return Labels(tuple(name for _, name in named), values, False, ignored)


def _normalisations(folder, plans, configuration, channels):
  names, masked = configuration['normalization_schemes'], configuration['use_mask_for_norm']
  properties = plans.get('foreground_intensity_properties_per_channel')
  if properties is None:
    properties = plans.get('foreground_intensity_properties_by_modality', {})
  if not len(names) == len(masked) == channels:
    raise ValueError(f'normalization_schemes {names} for {channels} channels')
  found = []
  for number, (name, mask) in enumerate(zip(names, masked)):
    if name not in NORMALISATIONS:
      raise errors.UserError(f'{folder}: unknown normalisation {name!r}')
    numbers = properties.get(str(number), {}) if name == 'CTNormalization' else {}
    if name == 'CTNormalization':
      keys = ('mean', 'std', 'percentile_00_5', 'percentile_99_5')
      numbers = {key: float(numbers[key]) for key in keys}
      if not all(np.isfinite(value) for value in numbers.values()):
        raise ValueError(f'intensity properties of channel {number}')
    found.append(Normalisation(name, bool(mask), numbers))
  return tuple(found)


def _resampling(folder, configuration, what, *, order):
  name = configuration.get(f'resampling_fn_{what}', 'resample_data_or_seg_to_shape')
  if name not in RESAMPLERS:
    raise errors.UserError(f'{folder}: unknown resampling {name!r}')
  given = configuration.get(f'resampling_fn_{what}_kwargs')
  given = {'order': order, 'order_z': 0, 'force_separate_z': None} if given is None else given
  if given.get('is_seg'):
    raise ValueError(f'resampling_fn_{what}_kwargs: is_seg')
  return Resampling(name, {**RESAMPLERS[name], **given})


def _expected(folder, what, found, wanted):
  if found not in (None, wanted):
    raise errors.UserError(f"{folder}: the {what} {found!r} is not nnU-Net's own {wanted!r}")


def _values(table):
  return table.values() if isinstance(table, dict) else table


def _whole(value) -> int:
  if isinstance(value, bool) or int(value) != value:
    raise ValueError(f'{value!r} is no whole number')
  return int(value)

"""Results folders of nnU-Net v2 with random weights, written without PyTorch."""

import json

import jax
import numpy as np

from robustmed.networks import nnunet_architecture, nnunet_network
from support import torch_files

NAME = 'nnUNetTrainer__nnUNetPlans__'


def arguments(rank, *, residual=False):
  blocks = 'n_blocks_per_stage' if residual else 'n_conv_per_stage'
  return {
    'n_stages': 2,
    'features_per_stage': [4, 6],
    'conv_op': f'torch.nn.modules.conv.Conv{rank}d',
    'kernel_sizes': [[3] * rank] * 2,
    'strides': [[1] * rank, [2] * rank],
    blocks: [1, 1],
    'n_conv_per_stage_decoder': [1],
    'conv_bias': True,
    'norm_op': f'torch.nn.modules.instancenorm.InstanceNorm{rank}d',
    'norm_op_kwargs': {'eps': 1e-5, 'affine': True},
    'dropout_op': None,
    'dropout_op_kwargs': None,
    'nonlin': 'torch.nn.LeakyReLU',
    'nonlin_kwargs': {'inplace': True},
  }


def configuration(rank, *, residual=False, channels=1):
  kind = 'ResidualEncoderUNet' if residual else 'PlainConvUNet'
  return {
    'preprocessor_name': 'DefaultPreprocessor',
    'patch_size': [8, 12] if rank == 2 else [4, 8, 12],
    'spacing': [2.0, 1.0] if rank == 2 else [3.0, 2.0, 1.0],
    'normalization_schemes': ['ZScoreNormalization'] * channels,
    'use_mask_for_norm': [False] * channels,
    'resampling_fn_data': 'resample_data_or_seg_to_shape',
    'resampling_fn_data_kwargs': {'is_seg': False, 'order': 3, 'order_z': 0},
    'resampling_fn_probabilities': 'resample_data_or_seg_to_shape',
    'resampling_fn_probabilities_kwargs': {'is_seg': False, 'order': 1, 'order_z': 0},
    'architecture': {
      'network_class_name': f'dynamic_network_architectures.architectures.unet.{kind}',
      'arch_kwargs': arguments(rank, residual=residual),
      '_kw_requires_import': ['conv_op', 'norm_op', 'dropout_op', 'nonlin'],
    },
  }


def plans(rank, **options):
  name = '2d' if rank == 2 else '3d_fullres'
  return {
    'image_reader_writer': 'SimpleITKIO',
    'label_manager': 'LabelManager',
    'transpose_forward': [0, 1, 2],
    'transpose_backward': [0, 1, 2],
    'configurations': {name: configuration(rank, **options)},
    'foreground_intensity_properties_per_channel': {
      '0': {'mean': 40.0, 'std': 20.0, 'percentile_00_5': -10.0, 'percentile_99_5': 90.0}
    },
  }


def dataset(channels=1):
  return {
    'channel_names': {str(c): f'scan {c}' for c in range(channels)},
    'labels': {'background': 0, 'organ': 1, 'lesion': 2},
    'file_ending': '.nii.gz',
  }


def weights(found, *, classes, channels, seed=0):
  """A random state dict of the network of a configuration."""
  network = nnunet_network.UNet(nnunet_architecture.of(found, 'plans'), classes)
  rng = np.random.default_rng(seed)
  shapes = nnunet_network.shapes(network, channels=channels)
  draw = lambda leaf: rng.normal(0.3, 0.5, leaf.shape).astype(np.float32)
  return nnunet_network.state(jax.tree.map(draw, shapes))


def mapping(items):
  body = b''.join(torch_files.text(key) + value for key, value in items.items())
  return torch_files.name('collections', 'OrderedDict') + b')R(' + body + b'u'


def scalar(value):
  """A numpy float64 as pickled by numpy."""
  raw = torch_files.text(np.float64(value).tobytes().decode('latin1'))
  encoded = torch_files.name('_codecs', 'encode') + raw + torch_files.text('latin1') + b'\x86R'
  dtype = torch_files.name('numpy', 'dtype') + torch_files.text('f8') + b'\x89\x88\x87R'
  order = b'(' + torch_files.number(3) + torch_files.text('<') + b'NNN'
  order += torch_files.number(-1) * 2 + torch_files.number(0) + b'tb'
  return torch_files.name('numpy._core.multiarray', 'scalar') + dtype + order + encoded + b'\x86R'


def checkpoint(path, arrays, *, name, trainer='nnUNetTrainer', mirrored=(0, 1), more=None):
  """What nnunetv2 saves: weights with their repeated names, and what training left beside them."""
  tensors = {key: torch_files.tensor(str(i), a) for i, (key, a) in enumerate(arrays.items())}
  for key in [key for key in tensors if key.startswith('encoder.')]:
    tensors[f'decoder.{key}'] = tensors[key]
    tensors[key.replace('.conv.', '.all_modules.0.')] = tensors[key]
  tensors = {f'_orig_mod.{key}': value for key, value in tensors.items()}
  device = torch_files.name('torch', 'device') + torch_files.text('cuda') + b'\x85R'
  items = {
    'network_weights': mapping(tensors) + b'}b',
    'logging': mapping({'ema_fg_dice': b'](' + scalar(0.5) + b'e'}),
    '_best_ema': scalar(0.75),
    'current_epoch': torch_files.number(2),
    'init_args': mapping({'configuration': torch_files.text(name), 'device': device}),
    'trainer_name': torch_files.text(trainer),
    'inference_allowed_mirroring_axes': torch_files.numbers(mirrored) if mirrored else b'N',
    **(more or {}),
  }
  storages = {str(i): array for i, array in enumerate(arrays.values())}
  return torch_files.write(path, torch_files.program(items), storages)


def write(folder, *, rank=2, folds=1, residual=False, channels=1, change=None, **options):
  """A results folder; change(plans, dataset) edits both, not the weights."""
  name = '2d' if rank == 2 else '3d_fullres'
  described, data = plans(rank, residual=residual, channels=channels), dataset(channels)
  found = described['configurations'][name]
  states = [weights(found, classes=3, channels=channels, seed=fold) for fold in range(folds)]
  if change is not None:
    change(described, data)
  folder = folder / f'{NAME}{name}'
  folder.mkdir(parents=True)
  (folder / 'plans.json').write_text(json.dumps(described))
  (folder / 'dataset.json').write_text(json.dumps(data))
  for fold, arrays in enumerate(states):
    path = folder / f'fold_{fold}' / 'checkpoint_final.pth'
    checkpoint(path, arrays, **{'name': name, **options})
  return folder

"""Reads which U-Net the plans of nnU-Net v2 describe, by the arguments of its public classes.

The classes are PlainConvUNet and ResidualEncoderUNet of `dynamic_network_architectures`. Plans from
before version 2.4 have other keys, which mean the same.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from robustmed import errors

MOST_STAGES, MOST_BLOCKS, MOST_FEATURES, MOST_TAPS = 12, 64, 8192, 32
KINDS = {'PlainConvUNet': 'plain', 'ResidualEncoderUNet': 'residual'}


class Architecture(NamedTuple):
  """A U-Net; lists have one entry per stage, from the full resolution down."""

  kind: str  # 'plain' or 'residual'
  rank: int  # spatial axes
  features: tuple[int, ...]
  kernels: tuple[tuple[int, ...], ...]
  strides: tuple[tuple[int, ...], ...]
  blocks: tuple[int, ...]  # convolutions, or residual blocks
  decoder: tuple[int, ...]  # convolutions, from the lowest resolution up
  bias: bool  # of convolutions
  norm: str  # 'instance', 'batch' or ''
  eps: float
  affine: bool
  leak: float | None  # 0 is ReLU, None no activation
  activation_first: bool  # before the norm
  bottleneck: tuple[int, ...] = ()  # inner features of bottleneck blocks; () for basic blocks
  stem: int = 0  # features of the stem of a residual encoder


def of(configuration: Mapping[str, Any], path: Any, *, batch_norm: bool = False) -> Architecture:
  """Returns the network of one configuration; what it does not know is a `UserError` of `path`.

  batch_norm: in place of the plan's norm, as the trainers nnUNetTrainerBN have it.
  """
  found = configuration.get('architecture')
  name, kwargs = _old(configuration) if found is None else _new(found)
  kind = KINDS.get(name.rsplit('.', 1)[-1])
  if kind is None:
    raise errors.UserError(
      f'{path}: the network {name!r} is none of {", ".join(KINDS)}; export it: '
      'torch.onnx.export(...)'
    )
  kwargs = dict(kwargs)
  take = kwargs.pop
  rank = int(re.fullmatch(r'torch\.nn\.modules\.conv\.Conv([23])d', take('conv_op'))[1])
  stages = _whole(take('n_stages'), 2, MOST_STAGES)
  per_stage = lambda value, top: _each(value, stages, lambda v: _whole(v, 1, top))
  features = per_stage(take('features_per_stage'), MOST_FEATURES)
  blocks = take('n_conv_per_stage' if kind == 'plain' else 'n_blocks_per_stage')
  norm, eps, affine = _norm(take('norm_op', None), take('norm_op_kwargs', None), rank)
  if batch_norm:
    norm, eps, affine = 'batch', 1e-5, True
  dropout = take('dropout_op', None), take('dropout_op_kwargs', None)
  del dropout  # is off in prediction
  take('deep_supervision', None)
  made = Architecture(
    kind=kind,
    rank=rank,
    features=features,
    kernels=_each(take('kernel_sizes'), stages, lambda v: _sides(v, rank, MOST_TAPS)),
    strides=_each(take('strides'), stages, lambda v: _sides(v, rank, MOST_TAPS)),
    blocks=per_stage(blocks, MOST_BLOCKS),
    decoder=_each(
      take('n_conv_per_stage_decoder'), stages - 1, lambda v: _whole(v, 1, MOST_BLOCKS)
    ),
    bias=bool(take('conv_bias', False)),
    norm=norm,
    eps=eps,
    affine=affine,
    leak=_leak(take('nonlin', None), take('nonlin_kwargs', None)),
    activation_first=bool(take('nonlin_first', False)),
  )
  if kind == 'residual':
    made = made._replace(
      bottleneck=_bottleneck(take('block', None), take('bottleneck_channels', None), stages),
      stem=_whole(take('stem_channels', None) or features[0], 1, MOST_FEATURES),
    )
  if kwargs:
    raise errors.UserError(f'{path}: unknown argument {sorted(kwargs)[0]!r} of the network {name}')
  return made


def _new(found):
  return found['network_class_name'], found['arch_kwargs']


def _old(configuration):
  """Returns class and arguments of plans without the key 'architecture'."""
  kind = configuration['UNet_class_name']
  stages = len(configuration['n_conv_per_stage_encoder'])
  base, top = configuration['UNet_base_num_features'], configuration['unet_max_num_features']
  rank = len(configuration['patch_size'])
  blocks = 'n_conv_per_stage' if kind == 'PlainConvUNet' else 'n_blocks_per_stage'
  return kind, {
    'n_stages': stages,
    'features_per_stage': [min(base * 2 ** min(s, MOST_STAGES), top) for s in range(stages)],
    'conv_op': f'torch.nn.modules.conv.Conv{rank}d',
    'kernel_sizes': configuration['conv_kernel_sizes'],
    'strides': configuration['pool_op_kernel_sizes'],
    blocks: configuration['n_conv_per_stage_encoder'],
    'n_conv_per_stage_decoder': configuration['n_conv_per_stage_decoder'],
    'conv_bias': True,
    'norm_op': f'torch.nn.modules.instancenorm.InstanceNorm{rank}d',
    'norm_op_kwargs': {'eps': 1e-5, 'affine': True},
    'nonlin': 'torch.nn.LeakyReLU',
  }


def _norm(name, options, rank):
  """Returns kind, epsilon and whether there are affine parameters."""
  if name is None:
    return '', 0.0, False
  options = dict(options or {})
  match = re.fullmatch(r'torch\.nn\.(?:modules\.\w+\.)?(Instance|Batch)Norm([23])d', name)
  if match is None or int(match[2]) != rank:
    raise ValueError(f'norm_op {name!r}')
  kind = match[1].lower()
  eps, affine = float(options.pop('eps', 1e-5)), bool(options.pop('affine', kind == 'batch'))
  options.pop('momentum', None)
  if options.pop('track_running_stats', kind == 'batch') != (kind == 'batch') or options:
    raise ValueError(f'norm_op_kwargs {sorted(options)}')
  return kind, eps, affine


def _leak(name, options):
  if name is None:
    return None
  kind = re.fullmatch(r'torch\.nn\.(?:modules\.activation\.)?(LeakyReLU|ReLU)', name)
  if kind is None:
    raise ValueError(f'nonlin {name!r}')
  return float((options or {}).get('negative_slope', 0.01)) if kind[1] == 'LeakyReLU' else 0.0


def _bottleneck(block, channels, stages):
  kind = 'BasicBlockD' if block is None else str(block).rsplit('.', 1)[-1]
  if kind == 'BasicBlockD':
    return ()
  if kind != 'BottleneckD':
    raise ValueError(f'block {block!r}')
  return _each(channels, stages, lambda v: _whole(v, 1, MOST_FEATURES))


def _each(value, count, convert):
  """Returns one converted entry per stage of a list, or of one value for all."""
  items = list(value) if isinstance(value, list | tuple) else [value] * count
  if len(items) != count:
    raise ValueError(f'{value} has not {count} entries')
  return tuple(convert(item) for item in items)


def _sides(value, rank, top):
  return _each(value, rank, lambda v: _whole(v, 1, top))


def _whole(value, low, top) -> int:
  if isinstance(value, bool) or int(value) != value or not low <= value <= top:
    raise ValueError(f'{value!r} is no whole number from {low} to {top}')
  return int(value)

"""MONAI's SegResNet and DenseNets as functions of their state dicts, in evaluation mode."""

import jax.numpy as jnp

from robustmed import errors
from robustmed.networks.monai import layers
from robustmed.ops import pool, resize


def segresnet(
  spatial_dims=3,
  init_filters=8,
  in_channels=1,
  out_channels=2,
  dropout_prob=None,
  act='RELU',
  norm=('GROUP', {'num_groups': 8}),
  norm_name='',
  num_groups=8,
  use_conv_final=True,
  blocks_down=(1, 2, 2, 4),
  blocks_up=(1, 1, 1),
  upsample_mode='nontrainable',
):
  """Returns (scope, x) -> logits: pre-activated residual blocks, sums as skips."""
  del spatial_dims, in_channels, dropout_prob
  norm = ('group', {'num_groups': num_groups}) if norm_name else norm
  act, norm = layers.named(act, what='act'), layers.named(norm, what='norm')
  if upsample_mode not in ('nontrainable', 'deconv'):
    raise errors.UserError(f'SegResNet: upsample_mode {upsample_mode!r} is not understood')
  if len(blocks_up) >= len(blocks_down):
    raise errors.UserError('SegResNet: blocks_up must be fewer than blocks_down')

  def block(scope, x):
    y, count = x, x.shape[-1]
    for k in (1, 2):
      y = scope.norm_act(y, norm, act, (f'norm{k}', 'act'))
      y = (scope / f'conv{k}' / 'conv').conv(y, count, bias=False)
    return x + y

  def up(scope, x):
    count = x.shape[-1] // 2
    x = (scope / 0 / 'conv').conv(x, count, 1, bias=False)
    if upsample_mode == 'deconv':
      return (scope / 1 / 'deconv').conv_transpose(x, count, 2, strides=2)
    return resize.linear(x, tuple(2 * n for n in x.shape[1:-1]))

  def apply(scope, x):
    x = (scope / 'convInit' / 'conv').conv(x, init_filters, bias=False)
    skips = []
    for i, blocks in enumerate(blocks_down):
      level = scope / 'down_layers' / i
      if i:
        x = (level / 0 / 'conv').conv(x, init_filters * 2**i, strides=2, bias=False)
      for k in range(blocks):
        x = block(level / (k + 1), x)
      skips.append(x)
    for i, blocks in enumerate(blocks_up):
      x = up(scope / 'up_samples' / i, x) + skips[-2 - i]
      for k in range(blocks):
        x = block(scope / 'up_layers' / i / k, x)
    if use_conv_final:
      final = scope / 'conv_final'
      x = final.norm_act(x, norm, act, ('0', '1'))
      x = (final / 2 / 'conv').conv(x, out_channels, 1)
    return x

  return apply


def densenet(
  spatial_dims,
  in_channels,
  out_channels,
  init_features=64,
  growth_rate=32,
  block_config=(6, 12, 24, 16),
  bn_size=4,
  act='relu',
  norm='batch',
  dropout_prob=0.0,
  pretrained=False,
  progress=True,
):
  """Returns (scope, x) -> logits [b, out_channels] of a whole image."""
  del spatial_dims, in_channels, dropout_prob, pretrained, progress
  act, norm = layers.named(act, what='act'), layers.named(norm, what='norm')

  def layer(scope, x):
    y = scope.norm_act(x, norm, act, ('norm1', 'relu1'))
    y = (scope / 'conv1').conv(y, bn_size * growth_rate, 1, bias=False)
    y = scope.norm_act(y, norm, act, ('norm2', 'relu2'))
    return jnp.concatenate([x, (scope / 'conv2').conv(y, growth_rate, bias=False)], -1)

  def apply(scope, x):
    features, rank = scope / 'features', x.ndim - 2
    x = (features / 'conv0').conv(x, init_features, 7, strides=2, bias=False)
    x = features.norm_act(x, norm, act, ('norm0', 'relu0'))
    x = pool.maximum_windows(
      x, (3,) * rank, strides=(2,) * rank, padding=((1, 1),) * rank, dilation=(1,) * rank
    )
    for i, count in enumerate(block_config, start=1):
      for k in range(count):
        x = layer(features / f'denseblock{i}' / f'denselayer{k + 1}' / 'layers', x)
      if i < len(block_config):
        between = features / f'transition{i}'
        x = between.norm_act(x, norm, act, ('norm', 'relu'))
        x = (between / 'conv').conv(x, x.shape[-1] // 2, 1, bias=False)
        even = tuple(slice(0, n - n % 2) for n in x.shape[1:-1])
        x = pool.average(x[(slice(None), *even)], 2)
    x = (features / 'norm5').norm(x, norm)
    x = (scope / 'class_layers' / 'relu').act(x, act)
    x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
    return (scope / 'class_layers' / 'out').dense(x, out_channels)

  return apply

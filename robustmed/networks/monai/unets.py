"""MONAI's UNet, BasicUNet and DynUNet as functions of their state dicts, in evaluation mode."""

import jax.numpy as jnp

from robustmed import errors
from robustmed.networks.monai import layers
from robustmed.ops import pool, resize

_PRELU, _INSTANCE = 'PRELU', 'INSTANCE'
_LEAKY = ('leakyrelu', {'negative_slope': 0.01})


def unet(
  spatial_dims,
  in_channels,
  out_channels,
  channels,
  strides,
  kernel_size=3,
  up_kernel_size=3,
  num_res_units=0,
  act=_PRELU,
  norm=_INSTANCE,
  dropout=0.0,
  bias=True,
  adn_ordering='NDA',
):
  """Returns (scope, x) -> logits: strided (residual) convolutions, transposed ones, skips."""
  del spatial_dims, in_channels, dropout
  if not 2 <= len(channels) <= len(strides) + 1:
    raise errors.UserError(f'UNet: {len(channels)} channels need as many strides less one')
  act, norm = layers.named(act, what='act'), layers.named(norm, what='norm')
  common = {'act': act, 'norm': norm, 'ordering': adn_ordering, 'bias': bias}

  def unit(scope, x, features, *, strides, subunits, last=False):
    """MONAI's ResidualUnit."""
    residual, y = x, x
    for k in range(subunits):
      y = layers.convolution(
        scope / 'conv' / f'unit{k}',
        y,
        features,
        kernel=kernel_size,
        strides=strides if k == 0 else 1,
        alone=last and k == subunits - 1,
        **common,
      )
    strided = layers.product(strides) != 1
    if strided or x.shape[-1] != features:
      kernel = kernel_size if strided else 1
      residual = (scope / 'residual').conv(x, features, kernel, strides=strides, bias=bias)
    return y + residual

  def down(scope, x, features, step):
    if num_res_units > 0:
      return unit(scope, x, features, strides=step, subunits=num_res_units)
    return layers.convolution(scope, x, features, kernel=kernel_size, strides=step, **common)

  def up(scope, x, features, step, top):
    plain = num_res_units == 0
    x = layers.convolution(
      scope if plain else scope / 0,
      x,
      features,
      kernel=up_kernel_size,
      strides=step,
      transposed=True,
      alone=top and plain,
      **common,
    )
    return x if plain else unit(scope / 1, x, features, strides=1, subunits=1, last=top)

  def level(scope, x, depth):
    features, step = channels[depth], strides[depth]
    x = down(scope / 0, x, features, step)
    below = scope / 1 / 'submodule'
    if depth + 2 < len(channels):
      low = level(below, x, depth + 1)
    else:
      low = down(below, x, channels[depth + 1], 1)
    out = channels[depth - 1] if depth else out_channels
    return up(scope / 2, jnp.concatenate([x, low], -1), out, step, depth == 0)

  return lambda scope, x: level(scope / 'model', x, 0)


def basic_unet(
  spatial_dims=3,
  in_channels=1,
  out_channels=2,
  features=(32, 32, 64, 128, 256, 32),
  act=('LeakyReLU', {'negative_slope': 0.1}),
  norm=('instance', {'affine': True}),
  bias=True,
  dropout=0.0,
  upsample='deconv',
):
  """Returns (scope, x) -> logits: two convolutions a level, max pooling, five levels."""
  del spatial_dims, in_channels, dropout
  features = (features,) * 6 if isinstance(features, int) else tuple(features)
  if len(features) != 6 or upsample not in ('deconv', 'nontrainable'):
    raise errors.UserError(f'BasicUNet: features {features}, upsample {upsample!r} not understood')
  common = {
    'act': layers.named(act, what='act'),
    'norm': layers.named(norm, what='norm'),
    'bias': bias,
  }

  def two(scope, x, count):
    for k in (0, 1):
      x = layers.convolution(scope / f'conv_{k}', x, count, **common)
    return x

  def up(scope, x, skip, count, inner):
    if upsample == 'deconv':
      x = (scope / 'upsample' / 'deconv').conv_transpose(x, inner, 2, strides=2)
    else:
      if inner != x.shape[-1]:
        x = (scope / 'upsample' / 'preconv').conv(x, inner, 1)
      x = resize.linear(x, tuple(2 * n for n in x.shape[1:-1]), align_corners=True)
    # Of odd sides, pooling dropped the last element.
    missing = [(0, a - b) for a, b in zip(skip.shape[1:-1], x.shape[1:-1])]
    x = jnp.pad(x, ((0, 0), *missing, (0, 0)), mode='edge')
    return two(scope / 'convs', jnp.concatenate([skip, x], -1), count)

  def apply(scope, x):
    skips = [two(scope / 'conv_0', x, features[0])]
    for k in range(1, 5):
      x = skips[-1]
      even = tuple(slice(0, n - n % 2) for n in x.shape[1:-1])
      x = pool.maximum(x[(slice(None), *even)], 2)
      skips.append(two(scope / f'down_{k}' / 'convs', x, features[k]))
    x = skips.pop()
    for k in range(4, 0, -1):
      inner = x.shape[-1] if k == 1 else x.shape[-1] // 2
      count = features[5] if k == 1 else features[k - 1]
      x = up(scope / f'upcat_{k}', x, skips.pop(), count, inner)
    return (scope / 'final_conv').conv(x, out_channels, 1)

  return apply


def dyn_block(scope, x, features, *, kernel, strides, norm, act, residual):
  """Returns MONAI's UnetBasicBlock or UnetResBlock, of two convolutions without bias."""
  half = lambda k, s: (k - s + 1) // 2
  rank = x.ndim - 2
  taps = (kernel,) * rank if isinstance(kernel, int) else tuple(kernel)
  steps = (strides,) * rank if isinstance(strides, int) else tuple(strides)
  options = {'strides': steps, 'bias': False}
  padding = tuple(map(half, taps, steps))
  y = (scope / 'conv1' / 'conv').conv(x, features, taps, padding=padding, **options)
  y = scope.norm_act(y, norm, act, ('norm1', 'lrelu'))
  padding = tuple(half(k, 1) for k in taps)
  y = (scope / 'conv2' / 'conv').conv(y, features, taps, padding=padding, bias=False)
  if not residual:
    return scope.norm_act(y, norm, act, ('norm2', 'lrelu'))
  y = (scope / 'norm2').norm(y, norm)
  if x.shape[-1] != features or set(steps) != {1}:
    padding = tuple(half(1, s) for s in steps)
    x = (scope / 'conv3' / 'conv').conv(x, features, 1, padding=padding, **options)
    x = (scope / 'norm3').norm(x, norm)
  return (scope / 'lrelu').act(y + x, act)


def dynunet(
  spatial_dims,
  in_channels,
  out_channels,
  kernel_size,
  strides,
  upsample_kernel_size,
  filters=None,
  dropout=None,
  norm_name=('INSTANCE', {'affine': True}),
  act_name=_LEAKY,
  deep_supervision=False,
  deep_supr_num=1,
  res_block=False,
  trans_bias=False,
):
  """Returns (scope, x) -> logits of nnU-Net's architecture; lower heads are left out."""
  del in_channels, dropout, deep_supervision, deep_supr_num
  count = len(strides)
  if filters is None:
    filters = [min(2 ** (5 + i), 320 if spatial_dims == 3 else 512) for i in range(count)]
  if not 3 <= count == len(kernel_size) == len(upsample_kernel_size) + 1 <= len(filters):
    raise errors.UserError('DynUNet: kernel_size, strides, upsample_kernel_size do not fit')
  common = {
    'norm': layers.named(norm_name, what='norm'),
    'act': layers.named(act_name, what='act'),
  }

  def apply(scope, x):
    names = ['input_block', *(f'downsamples.{k}' for k in range(count - 2)), 'bottleneck']
    skips = []
    for k, name in enumerate(names):
      x = dyn_block(
        scope / name,
        x,
        filters[k],
        kernel=kernel_size[k],
        strides=strides[k],
        residual=res_block,
        **common,
      )
      skips.append(x)
    x = skips.pop()
    for k in reversed(range(count - 1)):
      inner, rise = scope / 'upsamples' / (count - 2 - k), upsample_kernel_size[k]
      x = (inner / 'transp_conv' / 'conv').conv_transpose(
        x, filters[k], rise, strides=rise, bias=trans_bias
      )
      x = dyn_block(
        inner / 'conv_block',
        jnp.concatenate([x, skips.pop()], -1),
        filters[k],
        kernel=kernel_size[k + 1],
        strides=1,
        residual=False,
        **common,
      )
    return (scope / 'output_block' / 'conv' / 'conv').conv(x, out_channels, 1)

  return apply

"""MONAI's UNETR and SwinUNETR as functions of their state dicts, in evaluation mode.

Hatamizadeh et al., WACV 2022 and BrainLes 2021; windows of Liu et al., ICCV 2021.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.networks.monai import layers, unets

_LEAKY = layers.Named('leakyrelu', {'negative_slope': 0.01})
MOST_TOKENS = 4096  # of a window; attention is between all of them
_MASKED = -100.0  # added to the attention between parts that only a shift made neighbours


def _sides(value, rank):
  return (value,) * rank if isinstance(value, int) else tuple(value)


def _block(scope, x, features, *, norm, residual):
  return unets.dyn_block(
    scope, x, features, kernel=3, strides=1, norm=norm, act=_LEAKY, residual=residual
  )


def _up(scope, x, skip, features, *, norm, residual):
  """Returns MONAI's UnetrUpBlock: doubled, joined with the skip, two convolutions."""
  x = (scope / 'transp_conv' / 'conv').conv_transpose(x, features, 2, strides=2, bias=False)
  x = jnp.concatenate([x, skip], -1)
  return _block(scope / 'conv_block', x, features, norm=norm, residual=residual)


def _attended(query, key, value, bias=None):
  """Returns softmax(query key^T / sqrt(d) + bias) value, all [..., heads, tokens, d]."""
  weights = jnp.einsum('...hxd,...hyd->...hxy', query, key) / math.sqrt(query.shape[-1])
  weights = weights if bias is None else weights + bias
  return jnp.einsum('...hxy,...hyd->...hxd', jax.nn.softmax(weights, axis=-1), value)


def _split(x, heads):
  """Returns queries, keys and values [b, heads, tokens, d] of x [b, tokens, 3 heads d]."""
  parts = x.reshape(*x.shape[:2], 3, heads, -1)
  return [parts[:, :, n].transpose(0, 2, 1, 3) for n in range(3)]


def _joined(x):
  return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def unetr(
  in_channels,
  out_channels,
  img_size,
  feature_size=16,
  hidden_size=768,
  mlp_dim=3072,
  num_heads=12,
  proj_type='conv',
  norm_name='instance',
  conv_block=True,
  res_block=True,
  dropout_rate=0.0,
  spatial_dims=3,
  qkv_bias=False,
  save_attn=False,
):
  """Returns (scope, x) -> logits of images of the size `img_size`."""
  del in_channels, dropout_rate, save_attn
  norm = layers.named(norm_name, what='norm')
  image = _sides(img_size, spatial_dims)
  if proj_type != 'conv':
    raise errors.UserError(f'UNETR: proj_type {proj_type!r} is not understood')

  def transformer(scope, x):
    patch = (16,) * spatial_dims
    inner = scope / 'patch_embedding'
    x = (inner / 'patch_embeddings').conv(
      x, hidden_size, patch, strides=patch, padding=(0,) * spatial_dims
    )
    grid = x.shape[1:-1]
    x = x.reshape(len(x), -1, hidden_size)
    x = x + inner.take('position_embeddings', (1, x.shape[1], hidden_size))
    kept = []
    for k in range(12):
      block = scope / 'blocks' / k
      y = (block / 'norm1').layer_norm(x)
      parts = _split((block / 'attn' / 'qkv').dense(y, 3 * hidden_size, bias=qkv_bias), num_heads)
      x = x + (block / 'attn' / 'out_proj').dense(_joined(_attended(*parts)), hidden_size)
      y = (block / 'mlp' / 'linear1').dense((block / 'norm2').layer_norm(x), mlp_dim)
      x = x + (block / 'mlp' / 'linear2').dense(jax.nn.gelu(y, approximate=False), hidden_size)
      kept.append(x)
    kept.append((scope / 'norm').layer_norm(x))
    return [one.reshape(len(x), *grid, hidden_size) for one in kept]

  def risen(scope, x, features, times):
    """MONAI's UnetrPrUpBlock."""
    x = (scope / 'transp_conv_init' / 'conv').conv_transpose(x, features, 2, strides=2, bias=False)
    for k in range(times):
      block = scope / 'blocks' / k
      first = block / 0 if conv_block else block
      x = (first / 'conv').conv_transpose(x, features, 2, strides=2, bias=False)
      if conv_block:
        x = _block(block / 1, x, features, norm=norm, residual=res_block)
    return x

  def apply(scope, x):
    if x.shape[1:-1] != image:
      raise errors.UserError(f'UNETR of {image} does not take images of {x.shape[1:-1]}')
    hidden = transformer(scope / 'vit', x)
    skips = [_block(scope / 'encoder1' / 'layer', x, feature_size, norm=norm, residual=res_block)]
    for k, (level, times) in enumerate(((3, 2), (6, 1), (9, 0)), start=2):
      skips.append(risen(scope / f'encoder{k}', hidden[level], feature_size * 2 ** (k - 1), times))
    y = hidden[-1]
    for k in (5, 4, 3, 2):
      features = feature_size * 2 ** (k - 2)
      y = _up(scope / f'decoder{k}', y, skips.pop(), features, norm=norm, residual=res_block)
    return (scope / 'out' / 'conv' / 'conv').conv(y, out_channels, 1)

  return apply


def swin_unetr(
  in_channels,
  out_channels,
  patch_size=2,
  depths=(2, 2, 2, 2),
  num_heads=(3, 6, 12, 24),
  window_size=7,
  qkv_bias=True,
  mlp_ratio=4.0,
  feature_size=24,
  norm_name='instance',
  drop_rate=0.0,
  attn_drop_rate=0.0,
  dropout_path_rate=0.0,
  normalize=True,
  patch_norm=False,
  use_checkpoint=False,
  spatial_dims=3,
  downsample='merging',
  use_v2=False,
  img_size=None,
  use_flash_attention=False,
):
  """Returns (scope, x) -> logits; sides are multiples of patch_size^5."""
  del in_channels, drop_rate, attn_drop_rate, dropout_path_rate, use_checkpoint, img_size
  del use_flash_attention
  norm, plain = layers.named(norm_name, what='norm'), layers.Named('instance', {})
  if len(depths) != 4 or len(num_heads) != 4 or patch_norm:
    raise errors.UserError('SwinUNETR: only four stages without patch_norm are understood')
  if downsample not in ('merging', 'mergingv2'):
    raise errors.UserError(f'SwinUNETR: downsample {downsample!r} is not understood')
  window = _sides(window_size, spatial_dims)
  if not 0 < math.prod(window) <= MOST_TOKENS:
    raise errors.UserError(f'SwinUNETR: windows of {window} are not understood')
  order = _merged_order(spatial_dims, downsample)

  def stage(scope, x, k):
    heads, width = num_heads[k], x.shape[-1]
    if use_v2:
      x = _block(scope / f'layers{k + 1}c' / 0 / 'layer', x, width, norm=plain, residual=True)
    scope = scope / f'layers{k + 1}' / 0
    for n in range(depths[k]):
      block = scope / 'blocks' / n
      shift = tuple(side // 2 for side in window) if n % 2 else (0,) * spatial_dims
      y = (block / 'norm1').layer_norm(x)
      x = x + _windowed(block / 'attn', y, window, shift, heads=heads, bias=qkv_bias)
      y = (block / 'mlp' / 'linear1').dense((block / 'norm2').layer_norm(x), int(width * mlp_ratio))
      x = x + (block / 'mlp' / 'linear2').dense(jax.nn.gelu(y, approximate=False), width)
    x = jnp.pad(x, ((0, 0), *((0, n % 2) for n in x.shape[1:-1]), (0, 0)))
    parts = [x[(slice(None), *(slice(n, None, 2) for n in first))] for first in order]
    x = (scope / 'downsample' / 'norm').layer_norm(jnp.concatenate(parts, -1))
    return (scope / 'downsample' / 'reduction').dense(x, 2 * width, bias=False)

  def shown(x):
    if not normalize:
      return x
    mean = jnp.mean(x, axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5)

  def apply(scope, x):
    whole = patch_size**5
    if any(side % whole for side in x.shape[1:-1]):
      raise errors.UserError(f'SwinUNETR takes sides in multiples of {whole}')
    block = functools.partial(_block, norm=norm, residual=True)
    up = functools.partial(_up, norm=norm, residual=True)
    patch = (patch_size,) * spatial_dims
    inner = scope / 'swinViT'
    y = (inner / 'patch_embed' / 'proj').conv(
      x, feature_size, patch, strides=patch, padding=(0,) * spatial_dims
    )
    hidden = [y]
    for k in range(4):
      hidden.append(stage(inner, hidden[-1], k))
    hidden = [shown(one) for one in hidden]
    skips = [block(scope / 'encoder1' / 'layer', x, feature_size)]
    for k in range(3):
      skips.append(block(scope / f'encoder{k + 2}' / 'layer', hidden[k], feature_size * 2**k))
    skips.append(hidden[3])
    y = block(scope / 'encoder10' / 'layer', hidden[4], 16 * feature_size)
    for k in (5, 4, 3, 2, 1):
      y = up(scope / f'decoder{k}', y, skips.pop(), feature_size * 2 ** max(k - 2, 0))
    return (scope / 'out' / 'conv' / 'conv').conv(y, out_channels, 1)

  return apply


def _merged_order(rank, how):
  """Returns the first cells of the parts that are merged, in MONAI's order."""
  corners = list(itertools.product((0, 1), repeat=rank))
  if rank == 2:
    return [corner[::-1] for corner in corners]
  if how == 'mergingv2':
    return corners
  return sorted(corners, key=lambda corner: (sum(corner), [-n for n in corner]))


def _windowed(scope, x, window, shift, *, heads, bias):
  """Returns the attention within (shifted) windows of x [b, *spatial, c]."""
  sides, width, rank = x.shape[1:-1], x.shape[-1], len(window)
  used = tuple(min(w, n) for w, n in zip(window, sides))
  shift = tuple(0 if n <= w else s for n, w, s in zip(sides, window, shift))
  after = [(0, -n % w) for n, w in zip(sides, used)]
  y = jnp.pad(x, ((0, 0), *after, (0, 0)))
  axes = tuple(range(1, rank + 1))
  y = jnp.roll(y, tuple(-s for s in shift), axes) if any(shift) else y
  padded, tokens = y.shape[1:-1], math.prod(used)
  counts = [n // w for n, w in zip(padded, used)]
  windows = _partition(y, used)
  parts = _split((scope / 'qkv').dense(windows, 3 * width, bias=bias), heads)
  places = _relative(window)[:tokens, :tokens]
  table = scope.take('relative_position_bias_table', (math.prod(2 * w - 1 for w in window), heads))
  added = table[places.reshape(-1)].reshape(1, tokens, tokens, heads).transpose(0, 3, 1, 2)
  if any(shift):
    mask = _mask(padded, used, shift)[:, None]
    added = jnp.tile(added + mask.astype(x.dtype), (len(x), 1, 1, 1))
  windows = (scope / 'proj').dense(_joined(_attended(*parts, added)), width)
  y = windows.reshape(len(x), *counts, *used, width)
  back = [axis for n in range(rank) for axis in (1 + n, 1 + rank + n)]
  y = y.transpose(0, *back, 2 * rank + 1).reshape(len(x), *padded, width)
  y = jnp.roll(y, shift, axes) if any(shift) else y
  return y[(slice(None), *(slice(0, n) for n in sides))]


def _partition(x, window):
  """Returns windows [b * windows, tokens, c] of x [b, *spatial, c], numpy or JAX."""
  rank = len(window)
  pairs = [part for n, w in zip(x.shape[1:-1], window) for part in (n // w, w)]
  x = x.reshape(len(x), *pairs, x.shape[-1])
  order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1]
  return x.transpose(order).reshape(-1, math.prod(window), x.shape[-1])


@functools.lru_cache(maxsize=8)
def _relative(window):
  """Returns the row of the table of relative positions for every pair of tokens of a window."""
  places = np.stack(np.meshgrid(*map(np.arange, window), indexing='ij')).reshape(len(window), -1)
  apart = places[:, :, None] - places[:, None, :]
  row = np.zeros(apart.shape[1:], int)
  for axis, side in enumerate(window):
    row = row * (2 * side - 1) + apart[axis] + side - 1
  return row


@functools.lru_cache(maxsize=32)
def _mask(sides, window, shift):
  """Returns what is added between the tokens of each shifted window, [windows, tokens, tokens]."""
  number = np.zeros((1, *sides, 1), int)
  for axis, (n, w, s) in enumerate(zip(sides, window, shift)):
    part = np.zeros(n, int)
    if s:
      part[n - w :], part[n - s :] = 1, 2
    shape = [1] * number.ndim
    shape[axis + 1] = n
    number = number * 3 + part.reshape(shape)
  flat = _partition(number, window)[..., 0]
  return np.where(flat[:, :, None] != flat[:, None, :], _MASKED, 0.0)

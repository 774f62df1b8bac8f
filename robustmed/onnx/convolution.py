"""Convolutions and transposed convolutions, channels last, in the fast forms of `ops.conv`."""

import itertools

import jax.numpy as jnp

from robustmed import errors
from robustmed.onnx import layout
from robustmed.onnx import node as nodes
from robustmed.ops import conv as convs


def window(node, rank):
  """Returns (strides, dilations), one entry per spatial axis."""
  return tuple(node.get('strides') or (1,) * rank), tuple(node.get('dilations') or (1,) * rank)


def pads(node, size, taps, strides, dilations):
  """Returns (low, high) pairs per spatial axis: the node's `pads`, or what `auto_pad` says."""
  rank = len(size)
  auto = node.get('auto_pad', 'NOTSET')
  if auto in ('SAME_UPPER', 'SAME_LOWER'):
    found = []
    for n, k, s, d in zip(size, taps, strides, dilations, strict=True):
      total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
      small, large = total // 2, total - total // 2
      found.append((small, large) if auto == 'SAME_UPPER' else (large, small))
    return tuple(found)
  given = tuple(node.get('pads') or ()) if auto == 'NOTSET' else ()
  given = given or (0,) * (2 * rank)
  if len(given) != 2 * rank:
    raise errors.UserError(f'{node}: {len(given)} pads for {rank} spatial axes')
  return tuple(zip(given[:rank], given[rank:], strict=True))


def _kernel(weights):
  """Returns weights [a, b, *taps] as [*taps, b, a].

  Transposed in two halves that are concatenated: XLA hoists a concatenation of loop-invariant
  arrays out of a loop, but not a transpose alone.
  """
  order = (*range(2, weights.ndim), 1, 0)
  if weights.shape[0] < 2:
    return weights.transpose(order)
  halves = jnp.split(weights, [weights.shape[0] // 2])
  return jnp.concatenate([half.transpose(order) for half in halves], axis=-1)


def _with_bias(y, bias):
  return layout.Last(y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,)))


def conv(node, x, weights, bias=None):
  """Returns the convolution of x [n, c, *spatial] with weights [features, c / group, *taps]."""
  x, weights = layout.last(x), layout.plain(weights)
  taps = weights.shape[2:]
  _check_rank(node, x, weights)
  strides, dilations = window(node, len(taps))
  y = convs.conv(
    jnp.asarray(x),
    _kernel(jnp.asarray(weights)),
    strides=strides,
    padding=pads(node, x.shape[1:-1], taps, strides, dilations),
    dilation=dilations,
    groups=node.get('group', 1),
  )
  return _with_bias(y, bias)


def conv_transpose(node, x, weights, bias=None):
  """Returns the transposed convolution of x with weights [c, features / group, *taps]."""
  x, weights = layout.last(x), layout.plain(weights)
  taps = weights.shape[2:]
  _check_rank(node, x, weights)
  strides, dilations = window(node, len(taps))
  extra = tuple(node.get('output_padding') or (0,) * len(taps))
  padding = _transposed_pads(node, x.shape[1:-1], taps, strides, dilations, extra)
  # Beyond the last window there are zeros only.
  surplus = [max(0, e - max(s, d) + 1) for e, s, d in zip(extra, strides, dilations, strict=True)]
  y = convs.conv_transpose(
    jnp.asarray(x),
    _kernel(jnp.asarray(weights)),
    strides=strides,
    padding=padding,
    output_padding=tuple(e - more for e, more in zip(extra, surplus, strict=True)),
    dilation=dilations,
    groups=node.get('group', 1),
  )
  if any(surplus):
    y = jnp.pad(y, ((0, 0), *((0, more) for more in surplus), (0, 0)))
  return _with_bias(y, bias)


def _transposed_pads(node, size, taps, strides, dilations, extra):
  auto = node.get('auto_pad', 'NOTSET')
  wanted = node.get('output_shape')
  if wanted is None and auto not in ('SAME_UPPER', 'SAME_LOWER'):
    return pads(node, size, taps, strides, dilations)
  rows = list(itertools.zip_longest(size, taps, strides, dilations, extra))
  if wanted is None:
    wanted = [n * s for n, _, s, _, _ in rows]
  found = []
  for (n, k, s, d, e), target in zip(rows, tuple(wanted)[-len(taps) :], strict=True):
    total = s * (n - 1) + e + d * (k - 1) + 1 - target
    small, large = total // 2, total - total // 2
    found.append((small, large) if auto == 'SAME_UPPER' else (large, small))
  return tuple(found)


def _check_rank(node, x, weights):
  if x.ndim != weights.ndim or not 1 <= x.ndim - 2 <= 3:
    raise errors.UserError(
      f'{node}: weights of {weights.ndim} axes for an input of {x.ndim}; one to three spatial axes '
      'are supported'
    )


def depth_to_space(node, x):
  """Moves blocks of channels into space; the mode says which channels make a block."""
  x, block = layout.last(x), node.get('blocksize')
  n, h, w, c = x.shape
  features = c // block**2
  if node.get('mode', 'DCR') == 'DCR':
    y = x.reshape(n, h, w, block, block, features).transpose(0, 1, 3, 2, 4, 5)
  else:
    y = x.reshape(n, h, w, features, block, block).transpose(0, 1, 4, 2, 5, 3)
  return layout.Last(y.reshape(n, h * block, w * block, features))


def space_to_depth(node, x):
  """Moves blocks of space into channels; the inverse of `depth_to_space`."""
  x, block = layout.last(x), node.get('blocksize')
  n, h, w, c = x.shape
  y = x.reshape(n, h // block, block, w // block, block, c)
  order = (0, 1, 3, 2, 4, 5) if node.get('mode', 'DCR') == 'DCR' else (0, 1, 3, 5, 2, 4)
  return layout.Last(y.transpose(order).reshape(n, h // block, w // block, -1))


def matmul(node, a, b):
  """Returns the matrix product over the last two axes, broadcast over the others."""
  if a.ndim > 2 and b.ndim > 2:
    a, b = nodes.same_rank(a, b)
  return nodes.module(a, b).matmul(a, b)


def gemm(node, a, b, c=None):
  """Returns alpha A B + beta C, each matrix transposed where an attribute says so."""
  a = a.T if node.get('transA', 0) else a
  b = b.T if node.get('transB', 0) else b
  y = nodes.module(a, b).matmul(a, b)
  alpha, beta = node.get('alpha', 1.0), node.get('beta', 1.0)
  if alpha != 1:
    y = nodes.cast(alpha * y, a.dtype)
  if c is None:
    return y
  y, c = nodes.same_rank(y, c if beta == 1 else nodes.cast(beta * c, a.dtype))
  return y + c


def einsum(node, *values):
  """Returns the sum of products that the equation says."""
  return nodes.module(*values).einsum(node.get('equation'), *values)

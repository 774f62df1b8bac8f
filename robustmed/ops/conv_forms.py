"""Forms of a convolution that XLA's CPU backend runs fast, inside loops as well as outside.

Three linear maps of one window geometry, all channels last, kernels [*taps, in / groups, out]:
`forward` (x, k -> y), `transpose` (y, k -> x, the adjoint by x) and `kernel_gradient` (x, y -> k,
the adjoint by k). Each chooses matrix products, a native stride-1 2D convolution or lax itself; all
choices agree to rounding. Their derivative rules are in conv_rules.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from robustmed.ops import conv_turned, conv_window

MANY_TAPS = 64  # above which windows side by side are cut out by a reshape
FEW_POSITIONS = 512  # batch x output positions up to which one matrix product is fastest


def native(window, x, k, *, lhs_dilation=None, padding=None, strides=None):
  """Returns lax.conv_general_dilated over this window."""
  rank = len(window.size)
  return lax.conv_general_dilated(
    x,
    k,
    strides or window.strides,
    padding or window.padding,
    lhs_dilation=lhs_dilation or (1,) * rank,
    rhs_dilation=window.dilation,
    dimension_numbers=conv_window.spec(rank),
    feature_group_count=window.groups,
    precision=window.precision,
  )


def _rearrange(k, function):
  """Returns function(k), which moves axis -1 to axis -2, computed on two halves and concatenated.

  XLA hoists a concatenation of loop-invariant arrays out of a loop, but neither a reverse nor a
  transpose alone: without this an attack would rearrange all its kernels in every step.
  """
  if k.shape[-1] < 2:
    return function(k)
  halves = jnp.split(k, [k.shape[-1] // 2], axis=-1)
  return jnp.concatenate([function(half) for half in halves], axis=-2)


def _swap(k):
  return lax.rev(k, tuple(range(k.ndim - 2))).swapaxes(-1, -2)


def swap(k, groups=1):
  """Returns the kernel of the adjoint: flipped over space, in and out axes swapped (per group)."""
  if groups == 1:
    return _rearrange(k, _swap)
  *taps, inner, outer = k.shape
  k = lax.rev(k, tuple(range(k.ndim - 2))).reshape(*taps, inner, groups, outer // groups)
  return k.swapaxes(-1, -3).reshape(*taps, outer // groups, groups * inner)


def _adjoint_padding(window):
  """Returns the padding with which the swapped kernel maps the dilated output to the input grid."""
  rows = []
  for n, k, s, (lo, _), d, m in zip(*window[:5], window.out, strict=True):
    front = d * (k - 1) - lo
    rows.append((front, n + d * (k - 1) - front - ((m - 1) * s + 1)))
  return tuple(rows)


def native_transpose(window, y, k):
  """Returns the adjoint by x as one lax convolution."""
  ones = (1,) * len(window.size)
  padding = _adjoint_padding(window)
  k = swap(k, window.groups)
  return native(window, y, k, lhs_dilation=window.strides, padding=padding, strides=ones)


def native_kernel_gradient(window, x, y):
  """Returns the adjoint by k as lax derives it."""
  shape = (*window.taps, x.shape[-1] // window.groups, y.shape[-1])
  kernel = jax.ShapeDtypeStruct(shape, x.dtype)
  return jax.linear_transpose(lambda k: native(window, x, k), kernel)(y)[0]


def _pad(x, padding):
  return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))


def _crop_or_pad(x, padding):
  """Applies the negative part of the padding now; returns the rest for the convolution."""
  if any(value < 0 for pair in padding for value in pair):
    x = _pad(x, tuple((min(lo, 0), min(hi, 0)) for lo, hi in padding))
  return x, tuple((max(lo, 0), max(hi, 0)) for lo, hi in padding)


def _patch_pieces(window, x):
  """Yields a slice [b, *out, c] of x for every tap, in row-major order of the taps."""
  x = _pad(x, window.padding)
  for tap in itertools.product(*map(range, window.taps)):
    start = [t * d for t, d in zip(tap, window.dilation, strict=True)]
    stop = [a + (m - 1) * s + 1 for a, m, s in zip(start, window.out, window.strides, strict=True)]
    yield lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *window.strides, 1))


def _is_patchwork(window):
  """Returns whether large windows lie side by side, as in the patch embedding of a transformer."""
  rank = len(window.taps)
  side_by_side = window.taps == window.strides and window.dilation == (1,) * rank
  return side_by_side and math.prod(window.taps) > MANY_TAPS and not any(map(any, window.padding))


def _interleaved(rank):
  """Returns the order of [b, *out, *taps, c] as [b, out, tap, out, tap, ..., c]."""
  pairs = zip(range(1, rank + 1), range(rank + 1, 2 * rank + 1))
  return (0, *itertools.chain(*pairs), 2 * rank + 1)


def _cut(window, x):
  """Returns `patches` of a patchwork."""
  rank, split = len(window.taps), list(itertools.chain(*zip(window.out, window.taps)))
  whole = [m * t for m, t in zip(window.out, window.taps)]
  x = lax.slice(x, (0,) * x.ndim, (x.shape[0], *whole, x.shape[-1]))
  x = x.reshape(x.shape[0], *split, x.shape[-1])
  x = x.transpose([_interleaved(rank).index(axis) for axis in range(x.ndim)])
  return x.reshape(-1, math.prod(window.taps) * x.shape[-1])


def _transpose_patchwork(window, y, k):
  """Returns the adjoint by x of a patchwork: one matrix product and a transpose."""
  rank, inputs = len(window.taps), k.shape[-2]
  flat = k.reshape(-1, k.shape[-1])
  x = lax.dot_general(
    y.reshape(-1, y.shape[-1]), flat, (((1,), (1,)), ((), ())), precision=window.precision
  )
  x = x.reshape(y.shape[0], *window.out, *window.taps, inputs).transpose(_interleaved(rank))
  whole = [m * t for m, t in zip(window.out, window.taps)]
  x = x.reshape(y.shape[0], *whole, inputs)
  return _pad(x, tuple((0, n - m) for n, m in zip(window.size, whole)))


def patches(window, x):
  """Returns im2col: [b * positions, taps * c]."""
  if _is_patchwork(window):
    return _cut(window, x)
  pieces = list(_patch_pieces(window, x))
  stacked = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)
  return stacked.reshape(-1, stacked.shape[-1])


def _is_few(window, batch):
  small = all(n <= k for n, k in zip(window.size, window.taps, strict=True))
  return small or batch * math.prod(window.out) <= FEW_POSITIONS


def _is_pointwise(window):
  return all(k == 1 for k in window.taps) and not any(map(any, window.padding))


def _crop_taps(k, ranges):
  return k[tuple(slice(*r) for r in ranges)]


def forward(window, x, k):
  """Returns y = x * k, [b, *out, features]."""
  if window.groups > 1:
    return native(window, x, k)
  full, (window, ranges) = window, conv_window.trim(window)
  k = _crop_taps(k, ranges)
  batch, features = x.shape[0], k.shape[-1]
  if _is_pointwise(window) or _is_patchwork(window) or _is_few(full, batch):
    columns = patches(window, x)
    y = lax.dot(columns, k.reshape(-1, features), precision=window.precision)
    # Without the barrier XLA fuses the patches' slices and transposes into one slow loop.
    return lax.optimization_barrier(y).reshape(batch, *window.out, features)
  if len(window.size) == 3:
    return _forward_3d(window, x, k)
  x, padding = _crop_or_pad(x, window.padding)
  return native(window, x, k, padding=padding)


def _depth_slice(window, x, tap):
  """Returns the depth planes that one tap reads, [b * planes, h, w, c]; x is padded over depth."""
  start, m, s = tap * window.dilation[0], window.out[0], window.strides[0]
  x = lax.slice_in_dim(x, start, start + (m - 1) * s + 1, s, axis=1)
  return x.reshape(-1, *x.shape[2:])


def _pad_depth(window, x):
  return _pad(x, (window.padding[0], (0, 0), (0, 0)))


def _forward_3d(window, x, k):
  batch, plane = x.shape[0], window.without_first()
  x = _pad_depth(window, x)
  y = sum(forward(plane, _depth_slice(window, x, t), k[t]) for t in range(window.taps[0]))
  return y.reshape(batch, *window.out, -1)


def _dilate(x, window, axes, fronts):
  """Returns x dilated by `strides` and zero-padded to the input grid, from `fronts` on."""
  config = [(0, 0, 0)] * x.ndim
  for axis, front in zip(axes, fronts, strict=True):
    n, s, m = window.size[axis], window.strides[axis], window.out[axis]
    config[axis + 1] = (front, n - front - (m - 1) * s - 1, s - 1)
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def transpose(window, y, k):
  """Returns the adjoint of `forward` by x: [b, *size, inputs]."""
  if window.groups > 1:
    return native_transpose(window, y, k)
  full, (window, ranges) = window, conv_window.trim(window)
  k = _crop_taps(k, ranges)
  rank = len(window.size)
  if _is_patchwork(window):
    return _transpose_patchwork(window, y, k)
  if _is_few(full, y.shape[0]) and y.size < y.shape[-1] ** 2:
    return conv_turned.transpose(window, y, k)
  if _is_pointwise(window):
    flat = conv_window.Window(window.out, window.taps, (1,) * rank, window.padding, (1,) * rank)
    x = forward(flat._replace(precision=window.precision), y, swap(k))
    return _dilate(x, window, range(rank), [0] * rank)
  if rank == 3 and not _is_few(full, y.shape[0]):
    return _transpose_3d(window, y, k)
  if all(s == 1 for s in window.strides):
    adjoint = conv_window.Window(
      window.out,
      window.taps,
      window.strides,
      _adjoint_padding(window),
      window.dilation,
      precision=window.precision,
    )
    return forward(adjoint, y, swap(k))
  if any(d > 1 for d in window.dilation):
    return native_transpose(window, y, k)
  return _transpose_phases(window, y, k)


def _transpose_3d(window, y, k):
  batch, plane = y.shape[0], window.without_first()
  d, m = window.dilation[0], window.out[0]
  flat = y.reshape(-1, *y.shape[2:])
  total = None
  for t in range(window.taps[0]):
    piece = transpose(plane, flat, k[t])
    piece = piece.reshape(batch, m, *piece.shape[1:])
    piece = _dilate(piece, window, [0], [t * d - window.padding[0][0]])
    total = piece if total is None else total + piece
  return total


def _phase_plan(n, k, s, lo):
  """Returns (zero taps before the kernel, sub-kernel taps, first block, blocks) of one axis."""
  extra = -lo % s
  if -(-(k + extra) // s) > -(-k // s):
    extra = 0
  shifted = lo + extra
  first = shifted // s
  return extra, -(-(k + extra) // s), first, (shifted + n - 1) // s - first + 1


def _transpose_phases(window, y, k):
  """Returns a strided adjoint: a stride-1 convolution to strides x inputs channels, interleaved."""
  rank, inputs = len(window.size), k.shape[-2]
  los = [lo for lo, _ in window.padding]
  plans = [_phase_plan(*row) for row in zip(window.size, window.taps, window.strides, los)]
  pads = [
    (extra, sub * s - kk - extra)
    for (extra, sub, _, _), kk, s in zip(plans, window.taps, window.strides)
  ]
  subs = tuple(sub for _, sub, _, _ in plans)
  blocks, phases = tuple(range(0, 2 * rank, 2)), tuple(range(1, 2 * rank, 2))

  def cut_into_phases(k):
    k = jnp.pad(k, (*pads, (0, 0), (0, 0)))
    k = k.reshape(*itertools.chain(*zip(subs, window.strides)), *k.shape[-2:])
    k = lax.rev(k, blocks).transpose(*blocks, 2 * rank + 1, *phases, 2 * rank)
    return k.reshape(*subs, k.shape[rank], -1)

  k = _rearrange(k, cut_into_phases)
  padding = []
  for (_, sub, first, count), m in zip(plans, window.out):
    padding.append((sub - 1 - first, count + sub - 1 - m - (sub - 1 - first)))
  ones = (1,) * rank
  inner = conv_window.Window(
    window.out, subs, ones, tuple(padding), ones, precision=window.precision
  )
  z = forward(inner, y, k)
  counts = tuple(count for _, _, _, count in plans)
  z = z.reshape(-1, *counts, *window.strides, inputs)
  order = itertools.chain(*zip(range(1, rank + 1), range(rank + 1, 2 * rank + 1)))
  z = z.transpose(0, *order, 2 * rank + 1)
  z = z.reshape(-1, *(c * s for c, s in zip(counts, window.strides)), inputs)
  starts = [
    lo + extra - first * s for lo, (extra, _, first, _), s in zip(los, plans, window.strides)
  ]
  return lax.slice(
    z,
    (0, *starts, 0),
    (z.shape[0], *(a + n for a, n in zip(starts, window.size)), inputs),
  )


def kernel_gradient(window, x, y):
  """Returns the adjoint of `forward` by k: [*taps, inputs, features]."""
  if window.groups > 1:
    return native_kernel_gradient(window, x, y)
  full, (window, ranges) = window, conv_window.trim(window)
  if _is_pointwise(window) or _is_patchwork(window) or _is_few(full, x.shape[0]):
    columns, flat = patches(window, x), y.reshape(-1, y.shape[-1])
    contract = (((0,), (0,)), ((), ()))
    k = lax.dot_general(columns, flat, contract, precision=window.precision)
    k = k.reshape(*window.taps, x.shape[-1], y.shape[-1])
  elif len(window.size) == 3:
    plane, padded = window.without_first(), _pad_depth(window, x)
    flat, taps = y.reshape(-1, *y.shape[2:]), range(window.taps[0])
    k = jnp.stack([kernel_gradient(plane, _depth_slice(window, padded, t), flat) for t in taps])
  else:
    x, padding = _crop_or_pad(x, window.padding)
    window = window._replace(size=x.shape[1:-1], padding=padding)
    k = conv_turned.kernel_gradient(window, x, y)
  outside = tuple((a, full_k - b) for (a, b), full_k in zip(ranges, full.taps, strict=True))
  return jnp.pad(k, (*outside, (0, 0), (0, 0))) if any(map(any, outside)) else k

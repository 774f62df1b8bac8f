"""Convolution and transposed convolution over 1, 2 or 3 axes, fast on the CPU inside loops.

On the CPU the forms of conv_forms are used with the rules of conv_rules; elsewhere, and for cases
without a fast form, lax.conv_general_dilated. `platforms.current()` decides, unless `impl` or an
enclosing `using` does. `lax.platform_dependent` is not used: it would trace and differentiate both
branches of every layer, which doubles tracing time.
"""

import contextlib
import math

import jax
import jax.numpy as jnp
from jax import lax

from robustmed import errors, platforms
from robustmed.ops import conv_folded, conv_forms, conv_rules, conv_window

IMPLS = {'fast': True, 'native': False}
_forced = jax.make_user_context()  # a part of the key of jit's caches


def using(impl: str) -> contextlib.AbstractContextManager:
  """Sets the `impl` of every convolution traced in the block that is given none."""
  errors.lookup(IMPLS, impl, kind='convolution impl')
  return _forced(impl)


def _is_fast(impl):
  impl = impl or _forced.value
  if impl is None:
    return platforms.current() == 'cpu'
  return errors.lookup(IMPLS, impl, kind='convolution impl')


def _per_axis(value, rank, name):
  value = (value,) * rank if isinstance(value, int) else tuple(value)
  if len(value) != rank:
    raise errors.UserError(f'{name} has {len(value)} entries for {rank} spatial axes')
  return value


def _pairs(padding, rank):
  padding = _per_axis(padding, rank, 'padding')
  return tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)


def conv(x, kernel, *, strides=1, padding=0, dilation=1, groups=1, precision=None, impl=None):
  """Correlates x [b, *spatial, inputs] with kernel [*taps, inputs / groups, features].

  Padding is an int, one int per axis, (low, high) pairs, 'SAME' or 'VALID'. Differentiable to any
  order in reverse mode; agrees with lax.conv_general_dilated to rounding.
  """
  rank = kernel.ndim - 2
  strides = _per_axis(strides, rank, 'strides')
  if not isinstance(padding, str):
    padding = _pairs(padding, rank)
  return conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=_per_axis(dilation, rank, 'dilation'),
    dimension_numbers=conv_window.spec(rank),
    feature_group_count=groups,
    precision=precision,
    impl=impl,
  )


def conv_transpose(
  x,
  kernel,
  *,
  strides=1,
  padding=0,
  output_padding=0,
  dilation=1,
  groups=1,
  precision=None,
  impl=None,
):
  """Transposed convolution with torch's meaning of padding and output_padding.

  It is the adjoint, with respect to the input, of the convolution from the output grid to that of
  x, whose kernel it takes: x [b, *spatial, inputs], kernel [*taps, features / groups, inputs] ->
  [b, *out, features], out = (n - 1) s - 2 p + d (k - 1) + output_padding + 1. Padding may also be
  (low, high) pairs, in whose place 2 p is their sum.
  """
  rank = kernel.ndim - 2
  strides = _per_axis(strides, rank, 'strides')
  padding = _pairs(padding, rank)
  extra = _per_axis(output_padding, rank, 'output_padding')
  dilation = _per_axis(dilation, rank, 'dilation')
  taps = kernel.shape[:-2]
  size = tuple(
    (n - 1) * s - sum(p) + d * (k - 1) + e + 1
    for n, s, p, d, k, e in zip(x.shape[1:-1], strides, padding, dilation, taps, extra, strict=True)
  )
  window = conv_window.Window(size, taps, strides, padding, dilation, groups, precision)
  if window.out != x.shape[1:-1]:
    raise errors.UserError(
      f'output_padding {extra} must be smaller than strides {strides} or dilation {dilation}'
    )
  rule = conv_rules.transpose if _is_fast(impl) else conv_forms.native_transpose
  return rule(window, x, kernel)


def conv_twice(x, kernel, *, strides=1, padding=0, impl=None):
  """`conv` for losses with gradients of gradients, such as a gradient penalty.

  Uses conv_folded where `conv` would use the fast forms: second derivatives of their rules take
  minutes to compile.
  """
  if _is_fast(impl):
    return conv_folded.conv(x, kernel, strides=strides, padding=padding)
  return conv(x, kernel, strides=strides, padding=padding, impl='native')


def conv_general_dilated(
  lhs,
  rhs,
  window_strides,
  padding,
  lhs_dilation=None,
  rhs_dilation=None,
  dimension_numbers=None,
  feature_group_count=1,
  batch_group_count=1,
  precision=None,
  preferred_element_type=None,
  *,
  impl=None,
):
  """Drop-in replacement of lax.conv_general_dilated, e.g. `nn.Conv(conv_general_dilated=...)`."""
  rank = lhs.ndim - 2
  ones = (1,) * rank
  numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  strides = tuple(window_strides)
  lhs_dilation, rhs_dilation = tuple(lhs_dilation or ones), tuple(rhs_dilation or ones)
  plain = (
    _is_fast(impl)
    and 1 <= rank <= 3
    and batch_group_count == 1
    and (lhs_dilation == ones or (strides == ones and not isinstance(padding, str)))
    and lhs.dtype == rhs.dtype
    and jnp.issubdtype(lhs.dtype, jnp.floating)
    and preferred_element_type in (None, lhs.dtype)
  )
  window = None
  if plain:
    x = lhs.transpose(numbers.lhs_spec[:1] + numbers.lhs_spec[2:] + numbers.lhs_spec[1:2])
    k = rhs.transpose(numbers.rhs_spec[2:] + numbers.rhs_spec[1::-1])
    window = _window(
      x, k, strides, padding, lhs_dilation, rhs_dilation, feature_group_count, precision
    )
  if window is None:
    return lax.conv_general_dilated(
      lhs,
      rhs,
      strides,
      padding,
      lhs_dilation,
      rhs_dilation,
      dimension_numbers,
      feature_group_count,
      batch_group_count,
      precision,
      preferred_element_type,
    )
  if lhs_dilation == ones:
    y = conv_rules.forward(window, x, k)
  else:
    y = conv_rules.transpose(window, x, conv_forms.swap(k, feature_group_count))
  back = numbers.out_spec[:1] + numbers.out_spec[2:] + numbers.out_spec[1:2]
  return y.transpose([back.index(axis) for axis in range(rank + 2)])


def _window(x, k, strides, padding, lhs_dilation, rhs_dilation, groups, precision):
  """Returns the geometry of a fast form, or None where the grid or a channel axis is empty."""
  size, taps = x.shape[1:-1], k.shape[:-2]
  if isinstance(padding, str):
    reach = [(t - 1) * d + 1 for t, d in zip(taps, rhs_dilation, strict=True)]
    padding = lax.padtype_to_pads(size, reach, strides, padding)
  padding = tuple((int(lo), int(hi)) for lo, hi in padding)
  if any(d > 1 for d in lhs_dilation):
    # Stride 1 over a dilated input is the adjoint of a strided convolution of the output grid.
    rows = list(zip(size, taps, lhs_dilation, padding, rhs_dilation, strict=True))
    out = tuple((n - 1) * s + 1 + lo + hi - d * (t - 1) for n, t, s, (lo, hi), d in rows)
    fronts = [d * (t - 1) - lo for _, t, _, (lo, _), d in rows]
    padding = tuple(
      (front, (n - 1) * s + d * (t - 1) + 1 - m - front)
      for (n, t, s, _, d), m, front in zip(rows, out, fronts, strict=True)
    )
    size, strides = out, lhs_dilation
  window = conv_window.Window(size, taps, strides, padding, rhs_dilation, groups, precision)
  empty = 0 in (*x.shape, *k.shape) or math.prod(window.out) == 0 or min(size) <= 0
  return None if empty else window

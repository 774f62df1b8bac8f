"""Casts, and quantisation with scales per array, per channel or per block."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx

from robustmed import errors
from robustmed.onnx import layout
from robustmed.onnx import node as nodes

EIGHT_BITS = {
  np.dtype(kind)
  for kind in (
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
  )
}
# (bits, signed) of the integers below a byte.
NARROW = {
  np.dtype(ml_dtypes.int2): (2, True),
  np.dtype(ml_dtypes.uint2): (2, False),
  np.dtype(ml_dtypes.int4): (4, True),
  np.dtype(ml_dtypes.uint4): (4, False),
}
# XLA's conversions to these depend on its flags.
UNSIGNED_ZERO = {np.dtype(ml_dtypes.float8_e4m3fnuz), np.dtype(ml_dtypes.float8_e5m2fnuz)}
POWERS = np.dtype(ml_dtypes.float8_e8m0fnu)


def dtype_of(number, node):
  """Returns the numpy type of a type's number in the file format."""
  try:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
  except KeyError as error:
    raise errors.UserError(f'{node}: type number {number} is not known') from error


def cast(node, x):
  """Returns x in the type `to`."""
  return _cast(node, x, dtype_of(node.get('to'), node))


def cast_like(node, x, like):
  """Returns x in the type of another array."""
  return _cast(node, x, np.dtype(like.dtype))


def bit_cast(node, x):
  """Returns the bytes of x read as another type of the same width."""
  return x.view(dtype_of(node.get('to'), node))


def _cast(node, x, dtype):
  if isinstance(x, layout.Last):
    return layout.Last(converted(x.array, dtype, node))
  return converted(layout.plain(x), dtype, node)


def converted(x, dtype, node):
  """Returns an array in a type; 8-bit floats are clipped to their range unless `saturate` is 0."""
  if dtype in UNSIGNED_ZERO and not isinstance(x, jax.core.Tracer):
    x = np.asarray(x)
  xp = nodes.module(x)
  if dtype.kind == 'O' or x.dtype.kind in 'OUS':
    return _text(x, dtype, node)
  if dtype.kind == 'b':
    return x != 0
  if dtype == POWERS:
    return _powers_of_two(xp, x, node)
  if dtype in EIGHT_BITS and nodes.is_float(x) and node.get('saturate', 1):
    limits = ml_dtypes.finfo(dtype)
    x = nodes.cast(x, np.float64 if x.dtype == np.float64 else np.float32)
    x = xp.clip(x, float(limits.min), float(limits.max))
  if dtype in NARROW and xp is jnp:
    # XLA clips; as for wider integers, numpy keeps the lowest bits.
    bits, signed = NARROW[dtype]
    low = 2 ** (bits - 1) if signed else 0
    x = (nodes.cast(x, np.int32) + low) % 2**bits - low
  return nodes.cast(x, dtype)


def _text(x, dtype, node):
  if not isinstance(x, np.ndarray):
    raise errors.UserError(f'{node}: text can be made of constants only')
  return x.astype(str).astype(object) if dtype.kind == 'O' else x.astype(str).astype(dtype)


def _powers_of_two(xp, x, node):
  """Returns x rounded to a power of two, up, down or to the nearest, as its exponent alone."""
  wide = nodes.cast(x, np.float32)
  fraction, exponent = xp.frexp(xp.abs(wide))  # fraction in [0.5, 1)
  rounding = node.get('round_mode', 'up')
  if rounding == 'up':
    exponent = xp.where(fraction > 0.5, exponent, exponent - 1)
  elif rounding == 'down':
    exponent = exponent - 1
  else:
    exponent = xp.where(fraction >= 0.75, exponent, exponent - 1)
  code = xp.where(wide == 0, 0, xp.clip(exponent + 127, 0, 254))
  code = xp.where(xp.isfinite(wide), code, 255)
  return nodes.cast(code, np.uint8).view(POWERS)


def _along(value, x, node):
  """Returns scales or zero points shaped to broadcast against x."""
  if value.ndim == 0 or (value.ndim == 1 and value.size == 1):
    return value.reshape(())
  axis = nodes.axis_of(node.get('axis', 1), x.ndim, node)
  block = node.get('block_size', 0)
  if block:
    repeated = nodes.module(value).repeat(value, block, axis)
    return repeated[tuple(slice(n) for n in x.shape)]
  return value.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def quantize(node, x, scale, zero=None):
  """Returns x / scale + zero point, rounded half to even and clipped to the type's range."""
  dtype = np.dtype(np.uint8) if zero is None else np.dtype(zero.dtype)
  if zero is None and node.get('output_dtype', 0):
    dtype = dtype_of(node.get('output_dtype'), node)
  xp = nodes.module(x, scale)
  if node.get('precision', 0):
    wide = dtype_of(node.get('precision'), node)
    x, scale = nodes.cast(x, wide), nodes.cast(scale, wide)
  y = x / _along(scale, x, node)
  if jnp.issubdtype(dtype, jnp.floating):
    return converted(y, dtype, node)
  limits = jnp.iinfo(dtype)
  y = xp.rint(y)
  if zero is not None:
    y = y + nodes.cast(_along(zero, x, node), y.dtype)
  return nodes.cast(xp.clip(y, int(limits.min), int(limits.max)), dtype)


def dequantize(node, x, scale, zero=None):
  """Returns (x - zero point) * scale in the type of the scale, or `output_dtype`."""
  y = nodes.cast(x, np.float32)
  if zero is not None:
    y = y - nodes.cast(_along(zero, x, node), np.float32)
  dtype = scale.dtype
  if node.get('output_dtype', 0):
    dtype = dtype_of(node.get('output_dtype'), node)
  return nodes.cast(y * nodes.cast(_along(scale, x, node), np.float32), dtype)

"""Arithmetic, comparisons, logic and activations: `function(node, *arrays)` of aligned arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustmed import errors
from robustmed.onnx import layout
from robustmed.onnx import node as nodes

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def unary(name):
  """Returns the operator that applies a function of this name in numpy and jax.numpy."""
  return lambda node, x: getattr(nodes.module(x), name)(x)


def binary(name):
  """Returns the operator of two arrays of this name, with the broadcasting of old versions."""

  def operator(node, a, b):
    a, b = _old_broadcast(node, a, b)
    return getattr(nodes.module(a, b), name)(a, b)

  return operator


def variadic(name):
  """Returns the operator that folds any number of arrays with a function of this name."""
  return lambda node, *values: functools.reduce(getattr(nodes.module(*values), name), values)


def is_old(node):
  """Returns whether a node broadcasts by the rules before version 7, which know channels by place.

  Its arrays come as the graph sees them, neither aligned nor with their channels last.
  """
  return node.opset < 7 and (node.get('axis') is not None or node.op_type == 'PRelu')


def _old_broadcast(node, a, b):
  """Puts b at `axis` of a, where a version before 7 says so."""
  if not is_old(node):
    return a, b
  axis = nodes.axis_of(node.get('axis'), a.ndim, node)
  return a, b.reshape((1,) * axis + b.shape + (1,) * (a.ndim - axis - b.ndim))


def divide(node, a, b):
  """Returns a / b; integers are rounded towards zero."""
  a, b = _old_broadcast(node, a, b)
  if nodes.is_float(a):
    return a / b
  if nodes.module(a, b) is jnp:
    a, b = jnp.broadcast_arrays(jnp.asarray(a), jnp.asarray(b))
    return lax.div(a, b)
  quotient = a // b
  return np.where((a % b != 0) & ((a < 0) != (b < 0)), quotient + 1, quotient).astype(a.dtype)


def modulo(node, a, b):
  """Returns the remainder with the sign of b, or with that of a where `fmod` is 1."""
  xp = nodes.module(a, b)
  return (xp.fmod if node.get('fmod', 0) else xp.mod)(a, b)


def power(node, a, b):
  """Returns a^b in the type of a."""
  a, b = _old_broadcast(node, a, b)
  xp = nodes.module(a, b)
  if xp is np or a.dtype == b.dtype:
    return nodes.cast(xp.power(a, b), a.dtype)
  if b.size == 1 and isinstance(b, np.ndarray) and float(b.item()).is_integer():
    return lax.integer_pow(a, int(b.item()))
  wide = jnp.promote_types(a.dtype, b.dtype)
  return nodes.cast(xp.power(nodes.cast(a, wide), nodes.cast(b, wide)), a.dtype)


def mean(node, *values):
  """Returns the mean of any number of arrays."""
  return functools.reduce(lambda a, b: a + b, values) / np.asarray(len(values), values[0].dtype)


def where(node, condition, x, y):
  """Returns x where the condition holds, else y."""
  return nodes.module(condition, x, y).where(condition, x, y)


def clip(node, x, low=None, high=None):
  """Returns x between two numbers, each of which may be absent."""
  xp = nodes.module(x, low, high)
  low = node.get('min') if low is None else low
  high = node.get('max') if high is None else high
  if low is not None:
    x = xp.maximum(x, xp.asarray(low, x.dtype))
  return x if high is None else xp.minimum(x, xp.asarray(high, x.dtype))


def relu(node, x):
  """Returns max(x, 0), with the gradient 0 at 0."""
  xp = nodes.module(x)
  return xp.where(x > 0, x, xp.zeros((), x.dtype))


def leaky_relu(node, x):
  """Returns x, or alpha x below 0."""
  return nodes.module(x).where(x >= 0, x, _number(node.get('alpha', 0.01), x) * x)


def prelu(node, x, slope):
  """Returns x, or slope x below 0."""
  if is_old(node):
    slope = slope.reshape(1, -1, *(1,) * (x.ndim - 2))
  return nodes.module(x, slope).where(x >= 0, x, slope * x)


def _number(value, x):
  return np.asarray(value, x.dtype)


def elu(node, x):
  """Returns x, or alpha (e^x - 1) below 0."""
  xp = nodes.module(x)
  return xp.where(x >= 0, x, _number(node.get('alpha', 1.0), x) * xp.expm1(xp.minimum(x, 0)))


def celu(node, x):
  """Returns max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
  xp, alpha = nodes.module(x), _number(node.get('alpha', 1.0), x)
  return xp.where(x >= 0, x, alpha * xp.expm1(xp.minimum(x, 0) / alpha))


def selu(node, x):
  """Returns gamma x, or gamma alpha (e^x - 1) below 0."""
  xp = nodes.module(x)
  alpha, gamma = node.get('alpha', SELU_ALPHA), node.get('gamma', SELU_GAMMA)
  below = _number(alpha, x) * xp.expm1(xp.minimum(x, 0))
  return _number(gamma, x) * xp.where(x > 0, x, below)


def thresholded_relu(node, x):
  """Returns x above alpha, else 0."""
  xp = nodes.module(x)
  return xp.where(x > _number(node.get('alpha', 1.0), x), x, xp.zeros((), x.dtype))


def hard_sigmoid(node, x):
  """Returns alpha x + beta between 0 and 1."""
  alpha, beta = _number(node.get('alpha', 0.2), x), _number(node.get('beta', 0.5), x)
  return nodes.module(x).clip(alpha * x + beta, 0, 1)


def hard_swish(node, x):
  """Returns x times x / 6 + 1 / 2 between 0 and 1."""
  return x * nodes.module(x).clip(x / _number(6, x) + _number(0.5, x), 0, 1)


def sigmoid(node, x):
  """Returns 1 / (1 + e^-x)."""
  if nodes.module(x) is jnp:
    return jax.nn.sigmoid(x)
  return _number(0.5, x) * (np.tanh(_number(0.5, x) * x) + _number(1, x))


def softplus(node, x):
  """Returns log(1 + e^x)."""
  xp = nodes.module(x)
  return xp.logaddexp(x, xp.zeros_like(x))


def softsign(node, x):
  """Returns x / (1 + |x|)."""
  return x / (1 + nodes.module(x).abs(x))


def mish(node, x):
  """Returns x tanh(softplus(x))."""
  return x * nodes.module(x).tanh(softplus(node, x))


def swish(node, x):
  """Returns x sigmoid(alpha x)."""
  return x * sigmoid(node, _number(node.get('alpha', 1.0), x) * x)


def gelu(node, x):
  """Returns x times the Gaussian distribution function, or its tanh approximation."""
  return jax.nn.gelu(x, approximate=node.get('approximate', 'none') == 'tanh')


def erf(node, x):
  """Returns the error function."""
  return lax.erf(x)


def shrink(node, x):
  """Returns x shifted by bias towards 0, and 0 within lambd of it."""
  xp, lambd, bias = nodes.module(x), node.get('lambd', 0.5), node.get('bias', 0.0)
  above = xp.where(x > lambd, x - _number(bias, x), xp.zeros((), x.dtype))
  return xp.where(x < -lambd, x + _number(bias, x), above)


def reciprocal(node, x):
  """Returns 1 / x."""
  return _number(1, x) / x


def round_half_even(node, x):
  """Returns x rounded to the nearest integer, halves to the even one."""
  return nodes.module(x).rint(x) if isinstance(x, np.ndarray) else jnp.round(x)


def is_inf(node, x):
  """Returns where x is infinite, of either sign unless the attributes turn one off."""
  xp = nodes.module(x)
  found = xp.isinf(x)
  if not node.get('detect_negative', 1):
    found &= x > 0
  return found if node.get('detect_positive', 1) else found & (x < 0)


def identity(node, x):
  """Returns x."""
  return x


def dropout(node, x, ratio=None, training=None):
  """Returns (x, a mask of ones): the network is run in inference mode."""
  if training is not None and bool(nodes.concrete(training, f'{node}: training_mode')):
    share = 0.5 if ratio is None else float(nodes.concrete(ratio, f'{node}: ratio'))
    if share > 0:
      raise errors.UserError(
        f'{node} drops values at random; export the network in evaluation mode'
      )
  if len(node.outputs) < 2:
    return x
  x = layout.plain(x)
  return x, nodes.module(x).ones(x.shape, bool)

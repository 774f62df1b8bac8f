"""Layers of MONAI's networks as functions of a state dict with PyTorch's names.

Arrays keep PyTorch's order ([out, in, *taps]; of transposed convolutions [in, out, *taps]), images
have channels last. A layer knows the shape of each tensor that it takes, so that a file that does
not fit is one line.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustmed import errors
from robustmed.ops import batch_norm, conv, norms

Array = jax.Array
Sides = int | Sequence[int]


class Named(NamedTuple):
  """A layer by its name in lower case, and its arguments."""

  name: str
  options: Mapping[str, Any]


ACTIVATIONS = {
  'relu': lambda x: jnp.maximum(x, 0),
  'relu6': lambda x: jnp.clip(x, 0, 6),
  'leakyrelu': lambda x, negative_slope=0.01: jnp.where(x >= 0, x, negative_slope * x),
  'elu': lambda x, alpha=1.0: jax.nn.elu(x, alpha),
  'selu': jax.nn.selu,
  'gelu': lambda x, approximate='none': jax.nn.gelu(x, approximate=approximate == 'tanh'),
  'sigmoid': jax.nn.sigmoid,
  'tanh': jnp.tanh,
  'swish': lambda x, alpha=1.0: x * jax.nn.sigmoid(alpha * x),
  'memswish': jax.nn.silu,
  'mish': jax.nn.mish,
}
NORMS = ('instance', 'batch', 'syncbatch', 'group')


def named(given, *, what: str) -> Named | None:
  """Returns 'relu' or ('relu', {...}) as it was meant, None for none."""
  if given in (None, '', ()):
    return None
  name, options = (given, {}) if isinstance(given, str) else (given[0], given[-1])
  options = options if isinstance(options, Mapping) else {}
  known = {'norm': dict.fromkeys(NORMS), 'act': {**ACTIVATIONS, 'prelu': None}}[what]
  if not isinstance(name, str) or name.lower() not in known:
    raise errors.UserError(
      f'{what} {name!r} is not understood (known: {", ".join(known)}); export the network: '
      'torch.onnx.export(...)'
    )
  options = {key: value for key, value in options.items() if key != 'inplace'}
  return Named(name.lower(), options)


class Scope:
  """The tensors of a module, by their names inside of it."""

  def __init__(self, tensors: Mapping[str, Array], prefix: str = ''):
    self._tensors, self._prefix = tensors, prefix

  def __truediv__(self, name: object) -> 'Scope':
    return type(self)(self._tensors, f'{self._prefix}{name}.')

  def take(self, name: str, shape: Sequence[int]) -> Array:
    """Returns a tensor of a known shape."""
    full = self._prefix + name
    if full not in self._tensors:
      raise errors.UserError(f'there is no tensor {full!r}, which the network needs')
    value = self._tensors[full]
    if tuple(value.shape) != tuple(shape):
      raise errors.UserError(
        f'the tensor {full!r} has the shape {list(value.shape)}, the network needs {list(shape)}'
      )
    return value

  def conv(self, x: Array, features: int, kernel: Sides = 3, *, bias: bool = True, **options):
    """Returns the convolution; strides, padding (by default (kernel - 1) // 2), groups."""
    taps = _sides(kernel, x.ndim - 2)
    groups = options.pop('groups', 1)
    weight = self.take('weight', (features, x.shape[-1] // groups, *taps))
    padding = options.pop('padding', None)
    padding = tuple((k - 1) // 2 for k in taps) if padding is None else padding
    y = conv.conv(x, _ours(weight), padding=padding, groups=groups, **options)
    return y + _along(self.take('bias', (features,)), y) if bias else y

  def conv_transpose(self, x, features, kernel, *, strides, padding=0, output_padding=0, bias=True):
    """Returns the transposed convolution, with PyTorch's padding."""
    weight = self.take('weight', (x.shape[-1], features, *_sides(kernel, x.ndim - 2)))
    y = conv.conv_transpose(
      x, _ours(weight), strides=strides, padding=padding, output_padding=output_padding
    )
    return y + _along(self.take('bias', (features,)), y) if bias else y

  def dense(self, x: Array, features: int, *, bias: bool = True) -> Array:
    y = x @ self.take('weight', (features, x.shape[-1])).T
    return y + _along(self.take('bias', (features,)), y) if bias else y

  def layer_norm(self, x: Array, *, eps: float = 1e-5) -> Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    shape = x.shape[-1:]
    scaled = (x - mean) * jax.lax.rsqrt(variance + eps)
    return scaled * _along(self.take('weight', shape), x) + _along(self.take('bias', shape), x)

  def norm(self, x: Array, how: Named | None, *, leak: float | None = None) -> Array:
    """Returns the norm of a name, then, with `leak`, LeakyReLU."""
    if how is None:
      return _leaky(x, leak)
    options, channels = dict(how.options), x.shape[-1]
    eps = float(options.pop('eps', 1e-5))
    affine = bool(options.pop('affine', how.name != 'instance'))
    options.pop('momentum', None)
    groups = options.pop('num_groups', None) if how.name == 'group' else channels
    options.pop('num_channels' if how.name == 'group' else 'num_features', None)
    if options.pop('track_running_stats', 'batch' in how.name) is not ('batch' in how.name):
      raise errors.UserError(f'norm {how.name!r} with other running statistics is not understood')
    if options or groups is None:
      raise errors.UserError(f'norm {how.name!r}: arguments {dict(how.options)} not understood')
    ones = jnp.ones(channels, x.dtype)
    scale = self.take('weight', (channels,)) if affine else ones
    bias = self.take('bias', (channels,)) if affine else 0 * ones
    if 'batch' in how.name:
      mean, variance = (self.take(f'running_{name}', (channels,)) for name in ('mean', 'var'))
      y = batch_norm.normalise(x, scale, bias, mean=mean, variance=variance, eps=eps)
      return _leaky(y, leak)
    return norms.group_norm(x, scale, bias, groups=groups, eps=eps, leak=leak)

  def act(self, x: Array, how: Named | None) -> Array:
    """Returns the activation of a name; PReLU has a weight."""
    if how is None:
      return x
    if how.name == 'prelu':
      slope = self.take('weight', (int(how.options.get('num_parameters', 1)),))
      return jnp.where(x >= 0, x, _along(slope, x) * x)
    return _activation(how)(x)

  def norm_act(self, x: Array, norm: Named | None, act: Named | None, names: tuple[str, str]):
    """Returns the activation of the norm, in one pass where it is ReLU or LeakyReLU."""
    leak = leak_of(act)
    y = (self / names[0]).norm(x, norm, leak=leak)
    return y if leak is not None else (self / names[1]).act(y, act)


def leak_of(act: Named | None) -> float | None:
  """Returns the slope below 0 of ReLU and LeakyReLU, None for others."""
  if act is None or act.name not in ('relu', 'leakyrelu'):
    return None
  return float(act.options.get('negative_slope', 0.01)) if act.name == 'leakyrelu' else 0.0


def _activation(how: Named) -> Callable[[Array], Array]:
  try:
    function = functools.partial(ACTIVATIONS[how.name], **how.options)
    jax.eval_shape(function, jax.ShapeDtypeStruct((1,), jnp.float32))
  except TypeError as error:
    raise errors.UserError(
      f'act {how.name!r}: arguments {dict(how.options)} not understood'
    ) from error
  return function


def _along(value: Array, x: Array) -> Array:
  """Returns values of channels with the axes of x."""
  return value.reshape((1,) * (x.ndim - 1) + (-1,))


def _leaky(x, leak):
  return x if leak is None else jnp.where(x >= 0, x, leak * x)


def _ours(weight: Array) -> Array:
  return weight.transpose(*range(2, weight.ndim), 1, 0)


def _sides(value: Sides, rank: int) -> tuple[int, ...]:
  sides = (int(value),) * rank if isinstance(value, int) else tuple(int(v) for v in value)
  if len(sides) != rank:
    raise errors.UserError(f'{value} has not {rank} entries')
  return sides


def product(value: Sides) -> int:
  """Returns the product of a number per axis, or of one alone."""
  return value if isinstance(value, int) else math.prod(value)


def convolution(
  scope: Scope,
  x: Array,
  features: int,
  *,
  norm: Named | None,
  act: Named | None,
  kernel: Sides = 3,
  strides: Sides = 1,
  ordering: str = 'NDA',
  bias: bool = True,
  transposed: bool = False,
  alone: bool = False,
) -> Array:
  """Returns MONAI's Convolution: conv, then norm, dropout (off) and activation in an order.

  Even kernels are refused, as its padding is `kernel // 2` on both sides. alone: conv only.
  """
  sides = _sides(kernel, x.ndim - 2)
  if any(side % 2 == 0 for side in sides):
    raise errors.UserError(f'kernels of even size are not understood: {kernel}')
  padding = tuple((side - 1) // 2 for side in sides)
  inner = scope / 'conv'
  if transposed:
    extra = tuple(step - 1 for step in _sides(strides, x.ndim - 2))
    x = inner.conv_transpose(
      x, features, sides, strides=strides, padding=padding, output_padding=extra, bias=bias
    )
  else:
    x = inner.conv(x, features, sides, strides=strides, padding=padding, bias=bias)
  if alone:
    return x
  order = ordering.upper().replace('D', '')
  if sorted(order) not in ([], ['A'], ['N'], ['A', 'N']):
    raise errors.UserError(f'adn_ordering {ordering!r} is not understood')
  if order == 'NA':
    return (scope / 'adn').norm_act(x, norm, act, ('N', 'A'))
  for letter in order:
    layer = scope / 'adn' / letter
    x = layer.norm(x, norm) if letter == 'N' else layer.act(x, act)
  return x

"""The networks of nnU-Net v2 in Flax, with the parameters under PyTorch's names.

PlainConvUNet and ResidualEncoderUNet of `dynamic_network_architectures`: Isensee et al., Nature
Methods 2021, and 'nnU-Net Revisited', MICCAI 2024 (residual blocks as in ResNet-D, He et al. 2019).
The parameter 'encoder.stages.0.0.convs.0.conv' / 'kernel' is the tensor of that name and '.weight'.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from robustmed import errors
from robustmed.data.files import torch_archive
from robustmed.models import layers
from robustmed.networks import nnunet_architecture
from robustmed.ops import norms, pool

PyTree = Any
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
_UNUSED = '.num_batches_tracked'


class UNet(nn.Module):
  """Maps image [b, *spatial, c] to logits {'head0': [b, *spatial, classes], 'head1': ..., ...}.

  Head i is at the i-th resolution; prediction takes head 0 alone. Dropout of the plans is left out.
  """

  architecture: nnunet_architecture.Architecture
  classes: int

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    net = self.architecture
    whole = [math.prod(axis) for axis in zip(*net.strides, strict=True)]
    sides = image.shape[1:-1]
    if len(sides) != net.rank or any(n % m for n, m in zip(sides, whole)):
      raise errors.UserError(
        f'the network reads images [b, {", ".join(f"{m}n" for m in whole)}, c], got {image.shape}'
      )
    x, skips = image, []
    if net.kind == 'residual':
      x = self._conv(x, 'encoder.stem.convs.0', net.stem, net.kernels[0], train=train)
    for stage in range(len(net.features)):
      encode = self._plain_stage if net.kind == 'plain' else self._residual_stage
      x = encode(x, stage, train)
      skips.append(x)
    heads, low = {}, skips.pop()
    for step, count in enumerate(net.decoder):
      stage = len(net.features) - 2 - step
      rise = net.strides[stage + 1]
      x = layers.ConvTranspose(
        net.features[stage],
        rise,
        strides=rise,
        padding=0,
        output_padding=0,
        use_bias=net.bias,
        name=f'decoder.transpconvs.{step}',
      )(low)
      x = jnp.concatenate([x, skips.pop()], axis=-1)
      for k in range(count):
        name = f'decoder.stages.{step}.convs.{k}'
        x = self._conv(x, name, net.features[stage], net.kernels[stage], train=train)
      head = layers.Conv(
        self.classes, (1,) * net.rank, use_bias=True, name=f'decoder.seg_layers.{step}'
      )
      heads[f'head{stage}'] = head(x)
      low = x
    return dict(sorted(heads.items()))

  def _plain_stage(self, x, stage, train):
    net = self.architecture
    for k in range(net.blocks[stage]):
      name = f'encoder.stages.{stage}.0.convs.{k}'
      stride = net.strides[stage] if k == 0 else (1,) * net.rank
      x = self._conv(x, name, net.features[stage], net.kernels[stage], stride=stride, train=train)
    return x

  def _residual_stage(self, x, stage, train):
    net = self.architecture
    ones, features, kernel = (1,) * net.rank, net.features[stage], net.kernels[stage]
    for k in range(net.blocks[stage]):
      name = f'encoder.stages.{stage}.blocks.{k}'
      stride = net.strides[stage] if k == 0 else ones
      if net.bottleneck:
        inner = net.bottleneck[stage]
        y = self._conv(x, f'{name}.conv1', inner, ones, train=train)
        y = self._conv(y, f'{name}.conv2', inner, kernel, stride=stride, train=train)
        last = f'{name}.conv3', features, ones
      else:
        y = self._conv(x, f'{name}.conv1', features, kernel, stride=stride, train=train)
        last = f'{name}.conv2', features, kernel
      y = self._conv(y, *last, active=False, train=train)
      strided = stride != ones
      skip = pool.average(x, stride) if strided else x
      if x.shape[-1] != features:
        where = f'{name}.skip.{int(strided)}'
        skip = self._conv(skip, where, features, ones, active=False, bias=False, train=train)
      x = _activate(y + skip, net.leak)
    return x

  def _conv(self, x, name, features, kernel, *, train, stride=1, active=True, bias=None):
    """Convolution, norm and, if `active`, the activation."""
    net = self.architecture
    x = layers.Conv(
      features,
      kernel,
      strides=stride,
      padding=tuple((k - 1) // 2 for k in kernel),
      use_bias=net.bias if bias is None else bias,
      name=f'{name}.conv',
    )(x)
    leak = net.leak if active else None
    if net.activation_first and net.norm:
      return self._norm(_activate(x, leak), name, leak=None, train=train)
    return self._norm(x, name, leak=leak, train=train)

  def _norm(self, x, name, *, leak, train):
    net = self.architecture
    if not net.norm:
      return _activate(x, leak)
    name = f'{name}.norm'
    if net.norm == 'batch':
      norm = layers.BatchNorm(eps=net.eps, leak=leak, affine=net.affine, name=name)
      return norm(x, train=train)
    if net.affine:
      return layers.Norm(eps=net.eps, leak=leak, name=name)(x)
    ones = jnp.ones(x.shape[-1:], x.dtype)
    return norms.instance_norm(x, ones, 0 * ones, eps=net.eps, leak=leak)


def _activate(x, leak):
  return x if leak is None else jnp.where(x >= 0, x, leak * x)


def shapes(network: UNet, *, channels: int) -> PyTree:
  """Returns the shapes of the variables of a network; nothing is computed."""
  net = network.architecture
  sides = [math.prod(axis) for axis in zip(*net.strides, strict=True)]
  image = jax.ShapeDtypeStruct((1, *sides, channels), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), image)


def name_of(path: tuple) -> str:
  """Returns PyTorch's name of the variable at a path of `jax.tree_util`."""
  *_, module, leaf = (key.key for key in path)
  return f'{module}.{_LEAVES.get(leaf, leaf)}'


def from_torch(value: np.ndarray) -> np.ndarray:
  """Returns a tensor of PyTorch in the order of ours: kernels are [*taps, in, out]."""
  return value if value.ndim < 2 else value.transpose(*range(2, value.ndim), 1, 0)


def to_torch(value: np.ndarray) -> np.ndarray:
  """Returns the inverse of `from_torch`."""
  value = np.asarray(value)
  return value if value.ndim < 2 else value.transpose(-1, -2, *range(value.ndim - 2))


def load(
  wanted: PyTree, tensors: Mapping[str, torch_archive.Tensor], *, path: pathlib.Path
) -> PyTree:
  """Returns variables of the shapes `wanted` with the tensors of a checkpoint.

  Shapes are compared before anything is read. What is missing, has another shape or no place, is
  not finite or no floating number is a `UserError`.
  """
  left = {name for name in tensors if not name.endswith(_UNUSED)}
  chosen = {}
  for where, leaf in jax.tree_util.tree_leaves_with_path(wanted):
    name = name_of(where)
    if name not in tensors:
      raise errors.UserError(f'{path}: has no tensor {name!r}, which the plans ask for')
    shape = leaf.shape if leaf.ndim < 2 else (*leaf.shape[:-3:-1], *leaf.shape[:-2])
    if tensors[name].shape != shape or tensors[name].dtype not in ('f2', 'f4', 'f8'):
      raise errors.UserError(
        f'{path}: tensor {name!r} is {tensors[name].dtype} {list(tensors[name].shape)}, the plans '
        f'ask for floating numbers {list(shape)}'
      )
    chosen[name] = tensors[name]
    left.discard(name)
  if left:
    raise errors.UserError(
      f'{path}: tensor {sorted(left)[0]!r} ({len(left)} such) has no place in the network of the '
      'plans'
    )
  found = torch_archive.arrays(path, chosen)

  def place(where, leaf):
    value = found[name_of(where)]
    if not np.isfinite(value).all():
      raise errors.UserError(f'{path}: tensor {name_of(where)!r} has NaN or infinite values')
    return np.ascontiguousarray(from_torch(value), leaf.dtype)

  return jax.tree_util.tree_map_with_path(place, wanted)


def state(variables: PyTree) -> dict[str, np.ndarray]:
  """Returns variables as PyTorch's state dict of the same network, without its repeated names."""
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  return {name_of(where): np.ascontiguousarray(to_torch(leaf)) for where, leaf in leaves}

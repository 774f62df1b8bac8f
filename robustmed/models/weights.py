"""Pretrained weights from a .safetensors or .npz file, put into a network by stated names.

Nothing is unpickled: a PyTorch file is first turned into one of these where it is trusted, with
`safetensors.torch.save_file(model.state_dict(), FILE)` of torch's own environment, or
`numpy.savez(FILE, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})`.

The names are PyTorch's. Of our path `part_0/m_1/conv/kernel` the name is `part.0.m.1.conv.weight`:
`_<number>` becomes `.<number>`, 'kernel' and 'scale' become 'weight', 'mean' and 'var' become
'running_mean' and 'running_var'; kernels turn from [out, in, h, w] to [h, w, in, out].
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from robustmed import errors

PyTree = Any
_TYPES = {
  'F64': '<f8',
  'F32': '<f4',
  'F16': '<f2',
  'I64': '<i8',
  'I32': '<i4',
  'I16': '<i2',
  'I8': 'i1',
  'U8': 'u1',
  'BOOL': '?',
}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
_MAX_HEADER = 100 * 2**20


class Names(NamedTuple):
  """What a file for a network holds, as regular expressions on PyTorch's names."""

  wanted: str  # of the network's tensors: those that the file must have
  unused: str  # of the file's tensors: those that the network has no place for
  fresh: str = '$^'  # wanted ones that stay as drawn where their shape is another


NAMES = {
  # torchvision's vgg19: the decoder is drawn
  'landmark_unet': Names(wanted=r'^features\.', unused=r'^classifier\.'),
  # the head of another number of classes is drawn
  'yolov5s': Names(
    wanted=r'^model\.',
    unused=r'num_batches_tracked$|^model\.24\.anchor',
    fresh=r'^model\.24\.m\.',
  ),
}


def load(path: str, variables: PyTree, *, model: str) -> PyTree:
  """The drawn `variables` of the network `model` with what the file at `path` has in their place.

  A tensor that is missing, has no place or another shape is a `UserError` that names it.
  """
  names = errors.lookup(NAMES, model, kind='model with known names of pretrained weights')
  path = pathlib.Path(path).expanduser()
  found = read(path)
  left = set(found)

  def place(where, leaf):
    keys = [key.key for key in where][1:]  # without 'params' or 'batch_stats'
    name = name_of(keys)
    if not re.search(names.wanted, name):
      return leaf
    if name not in found:
      raise errors.UserError(
        f'{path}: has no tensor {name!r}, which {model} needs; see robustmed/models/weights.py'
      )
    left.discard(name)
    value = found[name]
    if keys[-1] == 'kernel' and value.ndim == 4:
      value = value.transpose(2, 3, 1, 0)
    if value.shape != leaf.shape:
      if re.search(names.fresh, name):
        return leaf
      shown = list(found[name].shape)
      raise errors.UserError(
        f'{path}: tensor {name!r} of shape {shown} does not fit {list(leaf.shape)} of {model}; '
        'set model.width and the like to the network it is of'
      )
    if not np.isfinite(value).all():
      raise errors.UserError(f'{path}: tensor {name!r} has NaN or infinite values')
    return np.asarray(value, leaf.dtype)

  placed = jax.tree_util.tree_map_with_path(place, variables)
  extra = sorted(name for name in left if not re.search(names.unused, name))
  if extra:
    raise errors.UserError(
      f'{path}: tensor {extra[0]!r} ({len(extra)} such) has no place in {model}; '
      'see robustmed/models/weights.py'
    )
  return placed


def graft(trained: PyTree, onto: PyTree) -> PyTree:
  """The drawn variables `onto` with all of `trained` in their place, for a network with more parts.

  What the larger network does not have, or has in another shape, is a `UserError`.
  """
  drawn = dict(jax.tree_util.tree_leaves_with_path(onto))
  left = dict(jax.tree_util.tree_leaves_with_path(trained))
  for path, leaf in left.items():
    if path not in drawn or drawn[path].shape != leaf.shape:
      raise errors.UserError(
        f'the trained network has {jax.tree_util.keystr(path)} of shape {list(leaf.shape)}, which '
        'has no place in the new one; set model to the network it is of'
      )
  return jax.tree_util.tree_map_with_path(lambda path, leaf: left.get(path, leaf), onto)


def name_of(keys: list[str]) -> str:
  """PyTorch's name of the parameter or running statistic at a path of ours."""
  *parts, leaf = keys
  return '.'.join([re.sub(r'_(?=\d|m_)', '.', part) for part in parts] + [_LEAVES.get(leaf, leaf)])


def check(path: pathlib.Path) -> None:
  """A `UserError` where there is no file of pretrained weights."""
  if path.suffix.lower() not in _READERS:
    raise errors.UserError(
      f'{path}: pretrained weights are a {" or ".join(_READERS)} file; how to turn a PyTorch file '
      'into one is said in robustmed/models/weights.py'
    )
  if not path.is_file():
    raise errors.UserError(f'{path}: there is no such file of pretrained weights')


def read(path: pathlib.Path) -> Mapping[str, np.ndarray]:
  """All tensors of a .safetensors or .npz file; one that cannot be read is a `UserError`."""
  check(path)
  reader = _READERS[path.suffix.lower()]
  try:
    return reader(path)
  except errors.UserError:
    raise
  except Exception as error:
    raise errors.UserError(
      f'{path}: cannot be read as {path.suffix} ({type(error).__name__}: {error}); copy it again'
    ) from error


def _npz(path):
  with np.load(path, allow_pickle=False) as stored:
    return {name: stored[name] for name in stored.files}


def _safetensors(path):
  """8 bytes of length, a JSON header of that length, then the tensors' bytes."""
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  if len(data) < 8 or not 2 <= length <= min(len(data) - 8, _MAX_HEADER):
    raise ValueError('its header is longer than the file')
  header = json.loads(data[8 : 8 + length])
  body, found = memoryview(data)[8 + length :], {}
  for name, told in header.items():
    if name == '__metadata__':
      continue
    kind = told['dtype']
    shape = tuple(int(n) for n in told['shape'])
    first, last = told['data_offsets']
    if kind != 'BF16' and kind not in _TYPES:
      raise errors.UserError(f'{path}: tensor {name!r} is of type {kind}; save it as F32')
    dtype = np.dtype('<u2' if kind == 'BF16' else _TYPES[kind])
    if not 0 <= first <= last <= len(body) or last - first != math.prod(shape) * dtype.itemsize:
      raise errors.UserError(f'{path}: tensor {name!r} does not fill its {last - first} bytes')
    array = np.frombuffer(body[first:last], dtype)
    if kind == 'BF16':
      array = (array.astype('<u4') << 16).view('<f4')
    found[name] = array.reshape(shape)
  return found


_READERS = {'.safetensors': _safetensors, '.npz': _npz}

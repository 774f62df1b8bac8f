"""Weights of a .safetensors or .npz file, loaded into a network by PyTorch's names, or written.

Nothing is unpickled: a PyTorch file that is trusted is first converted to one of these, with
`safetensors.torch.save_file(model.state_dict(), FILE)` of torch's own environment, or
`numpy.savez(FILE, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})`.

The parameter `part_0/m_1/conv/kernel` has the name `part.0.m.1.conv.weight` in the file:
`_<number>` becomes `.<number>`, 'kernel' and 'scale' become 'weight', 'mean' and 'var' become
'running_mean' and 'running_var'; kernels are transposed from [out, in, h, w] to [h, w, in, out].
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
from robustmed.process import files

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
  """Which tensors are loaded for a network, as regular expressions on PyTorch's names."""

  wanted: str  # tensors of the network that the file must have
  unused: str  # tensors of the file that are ignored
  fresh: str = '$^'  # wanted tensors that stay as initialised where the shapes differ


NAMES = {
  # torchvision's vgg19; the decoder stays as initialised
  'landmark_unet': Names(wanted=r'^features\.', unused=r'^classifier\.'),
  # the head stays as initialised where the number of classes differs
  'yolov5s': Names(
    wanted=r'^model\.',
    unused=r'num_batches_tracked$|^model\.24\.anchor',
    fresh=r'^model\.24\.m\.',
  ),
}


def load(path: str, variables: PyTree, *, model: str) -> PyTree:
  """Returns `variables` of the network `model` with the tensors of the file at `path` put in.

  A tensor that is missing, is not in the network or has another shape is a `UserError`.
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
        'set model.width and the other model fields to those of the network that was saved'
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
  """Returns the initial variables `onto` with all variables `trained` of a part of that network.

  A trained variable that `onto` does not have, or has in another shape, is a `UserError`.
  """
  drawn = dict(jax.tree_util.tree_leaves_with_path(onto))
  left = dict(jax.tree_util.tree_leaves_with_path(trained))
  for path, leaf in left.items():
    if path not in drawn or drawn[path].shape != leaf.shape:
      raise errors.UserError(
        f'the trained network has {jax.tree_util.keystr(path)} of shape {list(leaf.shape)}, which '
        'has no place in the new one; set model to the network that was trained'
      )
  return jax.tree_util.tree_map_with_path(lambda path, leaf: left.get(path, leaf), onto)


def name_of(keys: list[str]) -> str:
  """Returns PyTorch's name of the parameter or running statistic at the path `keys`."""
  *parts, leaf = keys
  return '.'.join([re.sub(r'_(?=\d|m_)', '.', part) for part in parts] + [_LEAVES.get(leaf, leaf)])


def check(path: pathlib.Path) -> None:
  """Raises `UserError` unless `path` is a file of a known format of pretrained weights."""
  if path.suffix.lower() not in _READERS:
    raise errors.UserError(
      f'{path}: pretrained weights are a {" or ".join(_READERS)} file; robustmed/models/weights.py '
      'says how to convert a PyTorch file'
    )
  if not path.is_file():
    raise errors.UserError(f'{path}: there is no such file of pretrained weights')


def read(path: pathlib.Path) -> Mapping[str, np.ndarray]:
  """Returns all tensors of a .safetensors or .npz file; a damaged file is a `UserError`."""
  check(path)
  reader = _READERS[path.suffix.lower()]
  try:
    return reader(path)
  except errors.UserError:
    raise
  except Exception as error:
    reason = f'{type(error).__name__}: {str(error)[:200]}'
    raise errors.UserError(
      f'{path}: cannot be read as {path.suffix} ({reason}); copy it again'
    ) from error


def _npz(path):
  with path.open('rb') as file:
    return files.archived_arrays(file)


def _safetensors(path):
  """Reads 8 bytes of length, a JSON header of that length, then the tensors' bytes."""
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  if len(data) < 8 or not 2 <= length <= min(len(data) - 8, _MAX_HEADER):
    raise ValueError('its header is longer than the file')
  header = json.loads(data[8 : 8 + length])
  body, found = memoryview(data)[8 + length :], {}
  for name, entry in header.items():
    if name == '__metadata__':
      continue
    kind = entry['dtype']
    shape = tuple(int(n) for n in entry['shape'])
    first, last = entry['data_offsets']
    if kind != 'BF16' and kind not in _TYPES:
      raise errors.UserError(f'{path}: tensor {name!r} is of type {kind}; save it as F32')
    dtype = np.dtype('<u2' if kind == 'BF16' else _TYPES[kind])
    if not 0 <= first <= last <= len(body) or last - first != math.prod(shape) * dtype.itemsize:
      raise errors.UserError(
        f'{path}: tensor {name!r} does not match its {last - first} bytes in the file'
      )
    array = np.frombuffer(body[first:last], dtype)
    if kind == 'BF16':
      array = (array.astype('<u4') << 16).view('<f4')
    found[name] = array.reshape(shape)
  return found


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a .safetensors file, whole or not at all; `read` and the library safetensors read it."""
  names = {np.dtype(kind): name for name, kind in _TYPES.items()}
  header, parts, end = {}, [], 0
  for name, value in tensors.items():
    array = np.asarray(value)
    if array.dtype not in names:
      raise errors.UserError(f'{path}: tensor {name!r} is {array.dtype}, which has no place there')
    start, end = end, end + array.nbytes
    header[name] = {
      'dtype': names[array.dtype],
      'shape': list(array.shape),
      'data_offsets': [start, end],
    }
    parts.append(array.astype(array.dtype.newbyteorder('<')).tobytes())
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # the data are aligned
  with files.replacing(path) as temporary, temporary.open('wb') as file:
    file.writelines([len(text).to_bytes(8, 'little'), text, *parts])


_READERS = {'.safetensors': _safetensors, '.npz': _npz}

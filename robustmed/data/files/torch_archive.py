"""Reads arrays from `.pt` files of `torch.save` without PyTorch and without unpickling.

Such a file is a zip of raw storages and of `data.pkl`, a pickle program that assembles them. The
program is not run: its opcodes are interpreted one at a time, and only those that build
dictionaries, lists, tuples, numbers, strings, tensors, numpy arrays and scalars are supported. A
global beside `_NAMES` is a `UserError`.

`read` returns arrays of a flat dictionary. For nested ones `outline` returns everything but the
numbers of the tensors, and `arrays` those that are wanted, after their shapes were checked.
"""

import collections
import math
import pathlib
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.process import files

MAX_PROGRAM = 256 * 2**20  # bytes of data.pkl
MAX_NODES = 2_000_000  # values in an outline; lists that share lists can have any number
_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
_STORAGES = {
  'DoubleStorage': 'f8',
  'FloatStorage': 'f4',
  'HalfStorage': 'f2',
  'LongStorage': 'i8',
  'IntStorage': 'i4',
  'ShortStorage': 'i2',
  'CharStorage': 'i1',
  'ByteStorage': 'u1',
  'BoolStorage': 'b1',
}
_NUMPY = ('numpy.core.multiarray', 'numpy._core.multiarray')
_NAMES = {
  ('torch._utils', '_rebuild_tensor_v2'),
  ('torch._utils', '_rebuild_parameter'),
  ('collections', 'OrderedDict'),
  ('_codecs', 'encode'),
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
  ('torch', 'device'),
  *((module, name) for module in _NUMPY for name in ('_reconstruct', 'scalar')),
  *(('torch', name) for name in _STORAGES),
}


class Tensor(NamedTuple):
  """Where a tensor lies in the archive; sizes and steps count elements."""

  key: str
  dtype: str
  numel: int  # of the storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Storage(NamedTuple):
  key: str
  dtype: str
  numel: int


class _Refused(Exception):
  """Says why a file is not read."""


class _Array:
  """A numpy array or dtype that is still being built; `value` is None until its state is known."""

  def __init__(self, value=None):
    self.value = value


def read(path: pathlib.Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
  """Returns those of the dictionary's arrays that `keys` name and the file has."""

  def chosen(archive, folder, content):
    order = _byte_order(archive, folder)
    return {
      key: _materialise(content[key], archive, folder, order) for key in keys if key in content
    }

  return _opened(path, chosen)


def outline(path: pathlib.Path, keys: Iterable[str] | None) -> dict[str, Any]:
  """Returns the values of those `keys` that the dictionary in the file has, tensors as `Tensor`.

  None: of all its keys.
  """

  def chosen(archive, folder, content):
    del archive, folder
    count = [0]
    wanted = content if keys is None else keys
    return {key: _plain(content[key], count) for key in wanted if key in content}

  return _opened(path, chosen)


def arrays(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
  """Returns the numbers of tensors of an outline; together they cannot exceed the file's size."""
  path = pathlib.Path(path)

  def chosen(archive, folder, content):
    del content
    storages = {t.key: t.numel * np.dtype(t.dtype).itemsize for t in tensors.values()}
    if sum(storages.values()) > path.stat().st_size:  # torch.save does not compress
      raise _Refused('declares tensors that are larger than the file')
    order = _byte_order(archive, folder)
    return {name: _materialise(t, archive, folder, order) for name, t in tensors.items()}

  return _opened(path, chosen)


def _opened(path, function):
  """Returns function(archive, folder, content) of a file; every failure is one line."""
  path = pathlib.Path(path)
  try:
    return _with_archive(path, function)
  except errors.UserError:
    raise
  except _Refused as error:
    raise errors.UserError(f'{path}: {error}') from error
  except OSError as error:
    raise errors.UserError(f'{path}: cannot be read ({error.strerror or error})') from error
  except Exception as error:  # for a damaged archive readers raise exceptions of any kind
    raise errors.UserError(
      f'{path}: damaged tensor archive ({type(error).__name__}: {str(error)[:200]}); copy it again'
    ) from error


def _with_archive(path, function):
  with files.regular(path, missing_ok=True).open('rb') as file:
    start = file.read(len(_LEGACY))
    if start == _LEGACY:
      raise _Refused(
        'is in the format of PyTorch before 1.6; load it there and torch.save it again with a '
        'newer one'
      )
    if not zipfile.is_zipfile(file):
      what = 'truncated, copy it again' if start.startswith(b'PK') else 'a file of another kind'
      raise _Refused(f'is not a tensor archive of torch.save ({what})')
    with zipfile.ZipFile(file) as archive:
      programs = [name for name in archive.namelist() if name.endswith('/data.pkl')]
      if len(programs) != 1:
        raise _Refused('is not a tensor archive of torch.save (a zip without data.pkl)')
      folder = programs[0].removesuffix('data.pkl')
      content = interpret(_member(archive, programs[0], limit=MAX_PROGRAM))
      if not isinstance(content, dict):
        raise _Refused(f'holds a {type(content).__name__.lower()}, not a dictionary of tensors')
      return function(archive, folder, content)


def _byte_order(archive, folder):
  if f'{folder}byteorder' not in archive.namelist():
    return '<'
  return {b'little': '<', b'big': '>'}[_member(archive, f'{folder}byteorder', limit=16)]


def _plain(value, count):
  """Returns a value with its containers copied; `count` holds the number of values so far."""
  count[0] += 1
  if count[0] > MAX_NODES:
    raise _Refused(f'data.pkl holds more than {MAX_NODES} values')
  if isinstance(value, _Array):
    return value.value
  if isinstance(value, dict):
    return {key: _plain(item, count) for key, item in value.items()}
  if isinstance(value, list) or type(value) is tuple:
    return type(value)(_plain(item, count) for item in value)
  return value


def _member(archive, name, *, limit):
  size = archive.getinfo(name).file_size
  if size > limit:
    raise _Refused(f'{name} has {size} bytes, more than the {limit} it should')
  return archive.read(name)  # checks the CRC


def _materialise(value, archive, folder, order):
  if isinstance(value, _Array):
    value = value.value
  if not isinstance(value, Tensor):
    return np.asarray(value)
  dtype = np.dtype(order + value.dtype)
  span = 1 + sum((n - 1) * step for n, step in zip(value.shape, value.strides))
  sizes = (value.numel, value.offset, *value.shape, *value.strides)
  reach = 0 if 0 in value.shape else value.offset + span
  if min(sizes) < 0 or reach > value.numel or math.prod(value.shape) > value.numel:
    raise _Refused(f'tensor {value.key} reaches outside its storage')
  raw = _member(archive, f'{folder}data/{value.key}', limit=value.numel * dtype.itemsize)
  flat = np.frombuffer(raw, dtype, count=value.numel)[value.offset :]
  strides = tuple(step * dtype.itemsize for step in value.strides)
  view = np.lib.stride_tricks.as_strided(flat, value.shape, strides, writeable=False)
  return view.astype(dtype.newbyteorder('='))


def interpret(program: bytes) -> Any:
  """Returns what a program of `torch.save` builds, tensors as `Tensor`; never runs anything."""
  stack: list[Any] = []
  marks: list[int] = []
  memo: dict[int, Any] = {}

  def since_mark():
    start = marks.pop()
    items = stack[start:]
    del stack[start:]
    return items

  for code, arg, _ in pickletools.genops(program):
    name = code.name
    if name in ('PROTO', 'FRAME'):
      continue
    if name == 'STOP':
      return stack.pop()
    if name in _CONSTANTS:
      stack.append(_CONSTANTS[name]())
    elif name in _LITERALS:
      stack.append(arg)
    elif name == 'MARK':
      marks.append(len(stack))
    elif name in ('BINPUT', 'LONG_BINPUT'):
      memo[arg] = stack[-1]
    elif name == 'MEMOIZE':
      memo[len(memo)] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(memo[arg])
    elif name == 'GLOBAL':
      stack.append(_named(*arg.split(' ', 1)))
    elif name == 'STACK_GLOBAL':
      attribute, module = stack.pop(), stack.pop()
      stack.append(_named(module, attribute))
    elif name == 'TUPLE':
      stack.append(tuple(since_mark()))
    elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
      count = int(name[-1])
      items = tuple(stack[-count:])
      del stack[-count:]
      stack.append(items)
    elif name == 'BINPERSID':
      stack.append(_storage(stack.pop()))
    elif name == 'REDUCE':
      arguments = stack.pop()
      stack.append(_call(stack.pop(), arguments))
    elif name == 'BUILD':
      state = stack.pop()
      _build(stack[-1], state)
    elif name in ('SETITEM', 'SETITEMS'):
      items = [stack.pop(-2), stack.pop()] if name == 'SETITEM' else since_mark()
      stack[-1].update(zip(items[::2], items[1::2]))
    elif name in ('APPEND', 'APPENDS'):
      items = [stack.pop()] if name == 'APPEND' else since_mark()
      stack[-1].extend(items)
    else:
      raise _Refused(f'data.pkl has the opcode {name}, which no tensor needs; the file is not read')
  raise _Refused('data.pkl has no end')


_CONSTANTS = {
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'NONE': lambda: None,
}
_LITERALS = {
  *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINFLOAT', 'LONG1'),
  *('BININT', 'BININT1', 'BININT2', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
}


class _Name(NamedTuple):
  module: str
  attribute: str


def _named(module, attribute):
  if (module, attribute) not in _NAMES:
    raise _Refused(
      f'data.pkl imports {module}.{attribute}, which no tensor needs; the file is not read'
    )
  return _Name(module, attribute)


def _storage(identity):
  kind, storage, key, _, numel = identity
  if kind != 'storage' or storage.module != 'torch' or not re.fullmatch(r'\d+', key):
    raise _Refused('data.pkl has a storage of an unknown kind')
  return _Storage(key, _STORAGES[storage.attribute], int(numel))


def _call(function, arguments):
  attribute = function.attribute
  if attribute == '_rebuild_tensor_v2':
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
      raise _Refused('data.pkl has a tensor without a storage')
    return Tensor(*storage, int(offset), tuple(shape), tuple(strides))
  if attribute == '_rebuild_parameter':
    return arguments[0]
  if attribute == 'OrderedDict' and arguments == ():
    return collections.OrderedDict()
  if attribute == 'encode' and arguments[1] == 'latin1':
    return arguments[0].encode('latin1')
  if attribute == '_reconstruct':
    return _Array()
  if attribute == 'device':
    return ':'.join(str(part) for part in arguments)
  if attribute == 'scalar':
    dtype, raw = arguments
    if len(raw) != dtype.value.itemsize:
      raise _Refused('data.pkl has a numpy scalar of the wrong size')
    return np.frombuffer(raw, dtype.value)[0].item()
  if attribute == 'dtype' and re.fullmatch(r'b1|[iu][1248]|f[248]', arguments[0]):
    return _Array(np.dtype(arguments[0]))
  raise _Refused(
    f'data.pkl calls {function.module}.{attribute} with unknown arguments; the file is not read'
  )


def _build(target, state):
  """Sets the state of a dtype (version, byte order, ...) or of an array (version, shape, ...)."""
  if isinstance(target, collections.OrderedDict):  # the versions of the modules of a state dict
    return
  if isinstance(target.value, np.dtype):
    if state[1] in ('<', '>'):
      target.value = target.value.newbyteorder(state[1])
    return
  _, shape, dtype, fortran, raw = state
  array = np.frombuffer(raw, dtype.value).reshape(shape, order='F' if fortran else 'C')
  target.value = array.astype(dtype.value.newbyteorder('='))

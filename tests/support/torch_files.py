"""Writes `.pt` files byte by byte in the layout of torch.save, without PyTorch."""

import struct
import zipfile

import numpy as np

STORAGES = {'f8': 'Double', 'f4': 'Float', 'f2': 'Half', 'i8': 'Long', 'u1': 'Byte', 'b1': 'Bool'}


def text(value):
  raw = value.encode()
  return b'X' + struct.pack('<I', len(raw)) + raw


def number(value):
  return b'J' + struct.pack('<i', value)


def name(module, attribute):
  return f'c{module}\n{attribute}\n'.encode()


def numbers(values):
  return b'(' + b''.join(number(value) for value in values) + b't'


def tensor(key, array, *, numel=None, offset=0, shape=None, strides=None):
  """The instructions that rebuild one tensor from storage `key`; arguments replace what is true."""
  kind = STORAGES[array.dtype.str[1:]] + 'Storage'
  steps = [step // array.itemsize for step in array.strides]
  return (
    name('torch._utils', '_rebuild_tensor_v2')
    + b'(('
    + text('storage')
    + name('torch', kind)
    + text(key)
    + text('cpu')
    + number(array.size if numel is None else numel)
    + b'tQ'
    + number(offset)
    + numbers(array.shape if shape is None else shape)
    + numbers(steps if strides is None else strides)
    + b'\x89'
    + name('collections', 'OrderedDict')
    + b')RtR'
  )


def program(items):
  """A dictionary of {key: instructions}."""
  body = b''.join(text(key) + value for key, value in items.items())
  return b'\x80\x02}q\x00(' + body + b'u.'


def write(path, code, storages):
  """A zip of the program and of {key: array} as raw storages."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(f'{path.stem}/data.pkl', code)
    archive.writestr(f'{path.stem}/byteorder', 'little')
    for key, array in storages.items():
      archive.writestr(f'{path.stem}/data/{key}', np.ravel(array, order='K').tobytes())
    archive.writestr(f'{path.stem}/version', '3\n')
  return path


def save(path, arrays):
  """What torch.save writes for a dictionary of tensors."""
  items = {key: tensor(str(i), array) for i, (key, array) in enumerate(arrays.items())}
  return write(path, program(items), {str(i): array for i, array in enumerate(arrays.values())})

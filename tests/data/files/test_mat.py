import io
import struct
import zlib

import numpy as np
import pytest
import scipy.io

from robustmed import errors
from robustmed.data.files import mat, pictures

ARRAYS = {
  'I': np.arange(60, dtype=np.float32).reshape(3, 4, 5),
  'GT': np.arange(60, dtype=np.uint8).reshape(3, 4, 5),
  'normalised': np.array(True),
  'wide': np.arange(6.0)[None] / 7,
  'other': 'text',
}


def _written(content=ARRAYS, **more):
  file = io.BytesIO()
  scipy.io.savemat(file, content, **more)
  return file.getvalue()


def _read(content, names=('I', 'GT')):
  return mat.read(io.BytesIO(content), names)


@pytest.mark.parametrize('packed', [False, True])
def test_arrays_are_those_that_were_written(packed):
  found = _read(_written(do_compression=packed), list(ARRAYS)[:4])
  assert list(found) == list(ARRAYS)[:4]
  for name, array in found.items():
    np.testing.assert_array_equal(array.squeeze(), ARRAYS[name].squeeze())
    assert array.dtype == (np.uint8 if name == 'normalised' else ARRAYS[name].dtype)
  assert _read(_written(do_compression=packed), ['absent']) == {}


def _packed(content):
  """The elements of an uncompressed file, each compressed."""
  out, place = content[:128], 128
  while place < len(content):
    size = struct.unpack('<I', content[place + 4 : place + 8])[0] + 8
    element = zlib.compress(content[place : place + size])
    out, place = out + struct.pack('<II', 15, len(element)) + element, place + size
  return out


def _with_shape(content, shape):
  old = struct.pack('<II3i', 5, 12, 3, 4, 5)
  assert old in content
  return content.replace(old, struct.pack('<II3i', 5, 12, *shape), 1)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('shape', [(30000, 30000, 30000), (3, 4, 6), (3, 4, -5), (0, 4, 5)])
def test_a_shape_that_is_not_that_of_the_data_is_refused_before_memory_is_taken(packed, shape):
  content = _with_shape(_written(), shape)
  with pytest.raises(ValueError, match='I declares'):
    _read(_packed(content) if packed else content)


@pytest.mark.parametrize('value', [np.array([['a', 2]], object), 1j * np.ones(3), 'text', {'a': 1}])
def test_what_is_no_array_of_real_numbers_is_refused(value):
  with pytest.raises(ValueError, match='I is no array of real numbers'):
    _read(_written({'I': value}))


def test_sizes_of_elements_are_those_of_the_file():
  whole = _written()
  huge = whole[:132] + struct.pack('<I', 4_000_000_000) + whole[136:]
  with pytest.raises(ValueError, match='declares 4000000000 bytes where'):
    _read(huge)
  for cut in (5, 130, 200, len(whole) - 8):
    with pytest.raises(ValueError, match=r'declares|ends|version 5'):
      _read(whole[:cut])
  with pytest.raises(ValueError, match='two arrays of the name I'):
    _read(whole + whole[128:])
  packed = _packed(whole)
  for damaged in (packed[:-3], packed.replace(packed[150:160], bytes(10))):
    with pytest.raises((ValueError, zlib.error)):
      _read(damaged)
  with pytest.raises(ValueError, match='version 5; save it with -v7'):
    _read(_written({'I': np.ones(3)}, format='4'))


def test_a_damaged_file_is_one_line(tmp_path):
  path = tmp_path / 'a.mat'
  path.write_bytes(_written()[:-100])
  said = r'a\.mat: cannot be read \(ValueError: declares'
  with pytest.raises(errors.UserError, match=said), pictures.opened(path) as file:
    mat.read(file, ['GT'])

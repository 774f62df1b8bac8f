import os
import pathlib
import pickle  # to make files that must not run; the package never loads one
import struct
import zipfile

import numpy as np
import pytest

from robustmed import errors
from robustmed.data.files import torch_archive
from support import torch_files as pt

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
KEYS = ('img', 'disk', 'mask', 'label', 'half', 'turned', 'part', 'number')


def test_files_of_pytorch_itself():
  """Written by torch 2.13: tensors of many dtypes, a transposed one, a view; numpy arrays."""
  found = torch_archive.read(FIXTURES / 'tensors.pt', KEYS)
  count = np.arange(12.0).reshape(3, 4)
  expected = {
    'img': count.astype(np.float32),
    'disk': count,
    'mask': count > 5,
    'label': count.astype(np.int64),
    'half': count.astype(np.float16),
    'turned': count.T.astype(np.uint8),
    'part': count.astype(np.float32)[1:, 2:],
    'number': np.asarray(3),
  }
  assert set(found) == set(KEYS)
  for key, value in expected.items():
    np.testing.assert_array_equal(found[key], value)
    assert found[key].dtype == value.dtype
  arrays = torch_archive.read(FIXTURES / 'arrays.pt', ('img', 'disk', 'mask', 'big'))
  np.testing.assert_array_equal(arrays['img'], count.astype(np.float32))
  np.testing.assert_array_equal(arrays['disk'], count)  # stored in Fortran's order
  np.testing.assert_array_equal(arrays['mask'], count > 5)
  np.testing.assert_array_equal(arrays['big'], count.astype(np.int32))
  assert arrays['big'].dtype.isnative


def test_files_written_by_hand(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {'img': rng.random((4, 5)), 'disk': rng.random((2, 3, 2)).astype(np.float32)}
  path = pt.save(tmp_path / 'a.pt', arrays)
  found = torch_archive.read(path, ('img', 'disk', 'absent'))
  assert set(found) == {'img', 'disk'}
  for key, value in arrays.items():
    np.testing.assert_array_equal(found[key], value)


def test_only_the_asked_storages_are_read(tmp_path):
  arrays = {'img': np.ones((2, 2)), 'mask': np.ones((3, 3))}
  items = {key: pt.tensor(str(i), value) for i, (key, value) in enumerate(arrays.items())}
  path = pt.write(tmp_path / 'a.pt', pt.program(items), {'0': arrays['img']})  # mask is not there
  assert torch_archive.read(path, ['img'])['img'].sum() == 4
  with pytest.raises(errors.UserError, match='damaged tensor archive'):
    torch_archive.read(path, ['mask'])


class Evil:
  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize('case', ['system', 'eval', 'import', 'getattr'])
def test_a_malicious_file_does_not_run(tmp_path, protocol, case):
  target = tmp_path / 'was_here'
  evil = {
    'system': Evil(os.system, f'touch {target}'),
    'eval': Evil(eval, f'open({str(target)!r}, "w").close()'),
    'import': Evil(__import__, 'antigravity'),
    'getattr': Evil(getattr, 'a', 'upper'),
  }[case]
  code = pickle.dumps({'img': evil, 'disk': evil}, protocol=protocol)
  path = pt.write(tmp_path / 'evil.pt', code, {})
  with pytest.raises(
    errors.UserError, match=r'evil\.pt: data\.pkl (imports|has the opcode)'
  ) as caught:
    torch_archive.read(path, ['img'])
  if protocol == 2:
    named = {'system': r'system', 'eval': 'eval', 'import': '__import__', 'getattr': 'getattr'}
    assert named[case] in str(caught.value)
  assert not target.exists()
  if case == 'system':  # it would have run
    pickle.loads(code)
    assert target.exists()


def test_names_are_checked_whole(tmp_path):
  for module, attribute in (
    ('torch', '_rebuild_tensor_v2'),
    ('torch._utils', 'OrderedDict'),
    ('os', 'ndarray'),
    ('torch', 'FloatStorage.from_buffer'),
    ('numpy', 'load'),
  ):
    with pytest.raises(errors.UserError, match=f'imports {module}.{attribute}'):
      path = pt.write(tmp_path / 'a.pt', pt.program({'img': pt.name(module, attribute)}), {})
      torch_archive.read(path, ['img'])


SQUARE = np.arange(9.0).reshape(3, 3)
REACHING = {
  'shape': {'shape': (3, 4)},
  'offset': {'offset': 1},
  'negative offset': {'offset': -1},
  'stride': {'strides': (4, 1)},
  'negative stride': {'strides': (-3, 1)},
  'repeated': {'shape': (2000, 2000, 2000), 'strides': (0, 0, 0)},
  'negative shape': {'shape': (-3, -3)},
}


@pytest.mark.parametrize('case', REACHING)
def test_a_tensor_stays_in_its_storage(tmp_path, case):
  code = pt.program({'img': pt.tensor('0', SQUARE, **REACHING[case])})
  path = pt.write(tmp_path / 'a.pt', code, {'0': SQUARE})
  with pytest.raises(errors.UserError, match='reaches outside its storage'):
    torch_archive.read(path, ['img'])


@pytest.mark.parametrize('numel', [8, 10])
def test_a_storage_has_the_size_it_claims(tmp_path, numel):
  code = pt.program({'img': pt.tensor('0', SQUARE, numel=numel, shape=(2, 2), strides=(3, 1))})
  path = pt.write(tmp_path / 'a.pt', code, {'0': SQUARE})
  with pytest.raises(errors.UserError, match=r'more than the 64|damaged tensor archive'):
    torch_archive.read(path, ['img'])


def _list_file(path):
  pt.write(path, b'\x80\x02].', {})


def _other_zip(path):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('word/document.xml', 'hello')


def _truncated(path):
  pt.save(path, {'img': SQUARE})
  path.write_bytes(path.read_bytes()[:400])


def _flipped(path):
  pt.save(path, {'img': SQUARE})
  path.write_bytes(path.read_bytes().replace(SQUARE.tobytes(), (SQUARE + 1).tobytes()))


def _deep(path):
  pt.write(path, b'\x80\x02' + b'(' * 100000 + b'.', {})


NOT_ARCHIVES = {
  'text': (lambda path: path.write_text('hello'), 'not a tensor archive.*another kind'),
  'empty': (lambda path: path.write_bytes(b''), 'not a tensor archive'),
  'old': (lambda path: path.write_bytes(pt_legacy()), 'PyTorch before 1.6'),
  'zip': (_other_zip, 'a zip without data.pkl'),
  'list': (_list_file, 'holds a list, not a dictionary'),
  'truncated': (_truncated, 'truncated, copy it again'),
  'flipped bits': (_flipped, 'damaged tensor archive'),
  'no end': (lambda path: pt.write(path, b'\x80\x02}', {}), 'damaged tensor archive'),
  'nothing': (lambda path: pt.write(path, b'', {}), 'damaged tensor archive|no end'),
  'nonsense': (lambda path: pt.write(path, b'\x80\x02\xff\xff', {}), 'damaged tensor archive'),
  'marks only': (_deep, 'damaged tensor archive'),
  'no file': (lambda path: None, 'cannot be read'),
}


def pt_legacy():
  return b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.' + struct.pack('<I', 0)


@pytest.mark.parametrize('case', NOT_ARCHIVES)
def test_what_is_no_archive_gives_one_line(tmp_path, case):
  make, message = NOT_ARCHIVES[case]
  path = tmp_path / 'a.pt'
  make(path)
  with pytest.raises(errors.UserError, match=message) as caught:
    torch_archive.read(path, ['img'])
  assert 'a.pt' in str(caught.value) and '\n' not in str(caught.value)

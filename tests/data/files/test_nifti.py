import gzip
import itertools
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from robustmed import errors
from robustmed.data.files import nifti

TURNS = list(itertools.product(itertools.permutations(range(3)), [(1, 1, 1), (-1, 1, -1)]))


def affine_of(order=(0, 1, 2), signs=(-1, -1, 1), spacing=(1.0, 2.0, 3.0)):
  affine = np.eye(4)
  affine[:3, :3] = np.eye(3)[list(order)] * np.array(signs) * spacing
  affine[:3, 3] = [3, -4, 5.5]
  return affine


def whole(shape, affine):
  turned = nifti.oriented(nifti.Volume(np.zeros(shape), affine)).shape
  return nifti.Geometry(affine, np.array(shape), np.array([[0, n] for n in turned]))


@pytest.mark.parametrize('suffix', nifti.SUFFIXES)
def test_what_is_written_is_read_back(tmp_path, suffix):
  array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
  path = tmp_path / 'new' / f'case{suffix}'
  nifti.write(path, array, affine_of())
  again = nifti.read(path)
  assert again.array.dtype == np.float32
  np.testing.assert_array_equal(again.array, array)
  np.testing.assert_array_equal(again.affine, affine_of())
  assert nifti.shape(path) == (3, 4, 5)
  assert [found.name for found in path.parent.iterdir()] == [path.name]
  # an independent reader sees the same
  np.testing.assert_array_equal(nib.load(path).get_fdata(), array)
  assert nib.load(path).header.get_data_dtype() == np.float32
  first = path.read_bytes()
  nifti.write(path, array, affine_of())
  assert path.read_bytes() == first


def test_scaled_integers_and_trailing_axes(tmp_path):
  image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1), affine_of())
  image.header.set_slope_inter(0.5, 10)
  nib.save(image, tmp_path / 'a.nii')
  read = nifti.read(tmp_path / 'a.nii').array
  np.testing.assert_allclose(read, nib.load(tmp_path / 'a.nii').get_fdata()[..., 0])
  assert read.shape == (2, 3, 4) and nifti.read(tmp_path / 'a.nii', axes=4).array.shape[3] == 1


@pytest.mark.parametrize(('order', 'signs'), TURNS)
def test_orientation_and_way_back(order, signs):
  affine = affine_of(order, signs)
  array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
  turned = nifti.oriented(nifti.Volume(array, affine))
  np.testing.assert_array_equal(nifti.restore(turned, whole(array.shape, affine)), array)
  # d counts towards the head, h to the back, w to the left
  for axis, (row, sign) in enumerate([(2, 1), (1, -1), (0, -1)]):
    place = np.stack(np.indices(array.shape).astype(float), -1) @ affine[:3, :3].T
    millimetres = nifti.oriented(nifti.Volume(place[..., row], affine))
    assert (sign * np.diff(millimetres, axis=axis) > 0).all()
  channels = np.stack([array, -array], axis=-1)
  np.testing.assert_array_equal(
    nifti.oriented(nifti.Volume(channels, affine)), np.stack([turned, -turned], axis=-1)
  )


def test_restore_fills_the_box_alone():
  affine = affine_of()
  box = np.array([[1, 3], [2, 6], [0, 4]])  # d, h, w of a file of [w, h, d]
  geometry = nifti.Geometry(affine, np.array([6, 7, 5]), box)
  cube = np.ones((2, 2, 2), np.int32)
  cube[:, 1] = 3
  full = nifti.restore(cube, geometry)
  assert full.shape == (6, 7, 5) and full.dtype == np.int32
  expected = np.zeros((6, 7, 5), int)
  expected[:4, 2:4, 1:3] = 1
  expected[:4, 4:6, 1:3] = 3
  np.testing.assert_array_equal(full, expected)
  smooth = nifti.restore(cube.astype(np.float32), geometry, order=1)
  np.testing.assert_allclose(smooth[0, 2:6, 1], [1, 1.5, 2.5, 3])
  example = {'affine': affine, 'grid': [6, 7, 5], 'box': box, 'image': None}
  np.testing.assert_array_equal(nifti.restore(cube, nifti.geometry_of(example)), full)


def test_spacing():
  np.testing.assert_allclose(nifti.spacing(affine_of((2, 0, 1))), [1, 2, 3])


def test_label_maps(tmp_path):
  path = tmp_path / 'seg.nii.gz'
  nifti.write(path, np.full((2, 2, 2), 4), np.eye(4))
  assert nifti.labels(path).array.dtype.kind == 'i' and (nifti.labels(path).array == 4).all()
  nifti.write(path, np.full((2, 2, 2), 0.5), np.eye(4))
  with pytest.raises(errors.UserError, match=r'seg\.nii\.gz: labels must be whole numbers'):
    nifti.labels(path)


def _nan(path):
  nifti.write(path, np.array([[[1.0, np.nan, np.inf]]]), np.eye(4))


def _flat_affine(path):
  image = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
  content = bytearray(image.to_bytes())
  content[312:328] = bytes(16)  # srow_z of the header
  path.write_bytes(gzip.compress(content))


def _truncated(path):
  noise = np.random.default_rng(0).normal(size=(9, 9, 9))
  nifti.write(path, noise, np.eye(4))
  path.write_bytes(path.read_bytes()[:1500])


def _colours(path):
  pixels = np.zeros((2, 2, 2), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
  nib.save(nib.Nifti1Image(pixels, np.eye(4)), path)


BAD = {
  'colours': (_colours, 'must hold plain numbers'),
  'empty': (lambda path: path.write_bytes(b''), 'Empty file'),
  'text': (lambda path: path.write_bytes(b'not a volume at all' * 30), 'not a NIfTI file'),
  'header only': (_truncated, 'ended before'),
  'four axes': (lambda path: nifti.write(path, np.zeros((2, 2, 2, 3)), np.eye(4)), '3 axes'),
  'nan': (_nan, 'has 2 NaN'),
  'affine': (_flat_affine, 'affine cannot be inverted'),
  'absent': (lambda path: None, 'no such file'),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_files_are_named(tmp_path, kind):
  spoil, message = BAD[kind]
  path = tmp_path / 'case_t1.nii.gz'
  spoil(path)
  with pytest.raises(errors.UserError, match=message) as caught:
    nifti.read(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_other_formats_and_names(tmp_path):
  nib.save(nib.freesurfer.MGHImage(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / 'a.mgz')
  with pytest.raises(errors.UserError, match=r'a\.mgz: is MGHImage, not a NIfTI file'):
    nifti.read(tmp_path / 'a.mgz')
  with pytest.raises(errors.UserError, match=r'must be named \*\.nii\.gz'):
    nifti.write(tmp_path / 'a.npy', np.zeros((2, 2, 2)), np.eye(4))


def test_real_file_keeps_its_grid(shared_data, tmp_path):
  path = shared_data / 'brats_msd_cropped' / 'BRATS_009' / 'BRATS_009_seg.nii.gz'
  volume = nifti.labels(path)
  turned = nifti.oriented(volume)
  np.testing.assert_array_equal(turned, volume.array.transpose(2, 1, 0))
  back = nifti.restore(turned, whole(volume.array.shape, volume.affine))
  nifti.write(tmp_path / 'out.nii.gz', back, volume.affine)
  np.testing.assert_array_equal(nib.load(tmp_path / 'out.nii.gz').get_fdata(), volume.array)


def test_a_bit_that_flips_in_a_compressed_file_is_found(tmp_path):
  """Every flip: a line, or the values as they were."""
  rng = np.random.default_rng(0)
  array = rng.integers(0, 50, (6, 7, 8)).astype(np.int16)
  path = tmp_path / 'a.nii.gz'
  nib.save(nib.Nifti1Image(array, np.eye(4)), path)
  content, silent = bytearray(path.read_bytes()), []
  for place in rng.choice(len(content), 60, replace=False):
    damaged = bytearray(content)
    damaged[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    try:
      found = nifti.read(path).array
    except errors.UserError:
      continue
    if not np.array_equal(found, array):
      silent.append(int(place))
  assert not silent


@pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz'])
@pytest.mark.parametrize('depth', [3, 5, 30_000])
def test_a_header_with_another_size_than_the_file_is_refused(tmp_path, name, depth):
  path = tmp_path / name
  nifti.write(path, np.ones((2, 3, 4)), np.eye(4))
  opened = gzip.open if name.endswith('.gz') else open
  with opened(path, 'rb') as file:
    content = bytearray(file.read())
  content[46:48] = depth.to_bytes(2, 'little')
  with opened(path, 'wb') as file:
    file.write(content)
  with pytest.raises(errors.UserError, match='its header declares'):
    nifti.read(path)


@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
@pytest.mark.parametrize('declared', [2**31 - 16, 4096, 8, 0, -16])
def test_an_extension_may_not_be_larger_than_its_place(tmp_path, ending, declared):
  path = tmp_path / f'a{ending}'
  image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
  image.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'hello'))
  nib.save(image, path)
  assert nifti.header(path).shape == (3, 4, 5)
  content = gzip.decompress(path.read_bytes()) if ending == '.nii.gz' else path.read_bytes()
  content = content[:352] + struct.pack('<i', declared) + content[356:]
  path.write_bytes(gzip.compress(content) if ending == '.nii.gz' else content)
  tracemalloc.start()
  with pytest.raises(errors.UserError, match='extension'):
    nifti.header(path)
  assert tracemalloc.get_traced_memory()[1] < 2**22
  tracemalloc.stop()


@pytest.mark.parametrize('slope', [(3e38, 0.0), (1.0, 3e38)])
def test_values_beyond_what_is_stored_are_one_line_and_no_warning(tmp_path, slope):
  path = tmp_path / 'a.nii'
  nib.save(nib.Nifti1Image(np.full((3, 4, 5), 9, np.int16), np.eye(4)), path)
  content = path.read_bytes()
  path.write_bytes(content[:112] + struct.pack('<2f', *slope) + content[120:])
  if slope[0] > 1:
    with pytest.raises(errors.UserError, match='NaN or infinite'):
      nifti.read(path)
  with pytest.raises(errors.UserError, match=r'label \d+ is not below|whole numbers|NaN'):
    nifti.labels(path)

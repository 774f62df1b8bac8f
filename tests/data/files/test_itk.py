"""Headers and voxels of MetaImage and NRRD files are compared before ITK reads them."""

import numpy as np
import pytest
import SimpleITK as sitk

from robustmed import errors
from robustmed.data.files import itk

ENDINGS = ('.mha', '.mhd', '.nrrd', '.nhdr')


def _written(folder, ending, *, compressed, dtype=np.int16):
  path = folder / f'a{ending}'
  image = sitk.GetImageFromArray(np.arange(120, dtype=dtype).reshape(4, 5, 6))
  sitk.WriteImage(image, str(path), compressed)
  return path


@pytest.mark.parametrize('compressed', [False, True])
@pytest.mark.parametrize('ending', ENDINGS)
@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.uint32, np.int64, np.float32, np.float64])
def test_what_itk_writes_is_accepted(tmp_path, ending, compressed, dtype):
  itk.check(_written(tmp_path, ending, compressed=compressed, dtype=dtype))


def test_vectors_are_accepted(tmp_path):
  image = sitk.GetImageFromArray(np.zeros((4, 5, 6, 2), np.float32), isVector=True)
  for ending in ('.mha', '.nrrd'):
    sitk.WriteImage(image, str(tmp_path / f'v{ending}'), True)
    itk.check(tmp_path / f'v{ending}')


@pytest.mark.parametrize('ending', ENDINGS[::2])
def test_no_flipped_bit_of_compressed_voxels_gives_other_values(tmp_path, ending):
  path = _written(tmp_path, ending, compressed=True)
  whole = path.read_bytes()
  values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
  start = whole.index(b'\x1f\x8b') if ending == '.nrrd' else whole.index(b'LOCAL\n') + 6
  refused = 0
  for place in range(start, len(whole)):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    try:
      itk.check(path)
    except errors.UserError:
      refused += 1
    else:  # bits that mean nothing, such as the time in the header of gzip
      found = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
      np.testing.assert_array_equal(found, values)
  assert refused > 0.9 * (len(whole) - start)


@pytest.mark.parametrize('ending', ENDINGS)
def test_missing_and_surplus_voxels_are_refused(tmp_path, ending):
  path = _written(tmp_path, ending, compressed=False)
  voxels = next((p for p in tmp_path.iterdir() if p != path), path)
  whole = voxels.read_bytes()
  for content in (whole[:-1], whole + b'\x00'):
    voxels.write_bytes(content)
    with pytest.raises(errors.UserError, match='are declared'):
      itk.check(path)


@pytest.mark.parametrize(
  ('old', 'new', 'text'),
  [
    (b'DimSize = 6 5 4', b'DimSize = 6 5 0', 'DimSize'),
    (b'DimSize = 6 5 4', b'DimSize = 6 5 ' + b'9' * 6000, 'DimSize'),
    (b'DimSize = 6 5 4', b'DimSize = 30000 30000 30000', 'are declared'),
    (b'NDims = 3', b'NDims = 3\nNDims = 3', 'NDims twice'),
    (b'ElementSpacing = 1 1 1', b'ElementSpacing = 1 1 nan', 'ElementSpacing'),
    (b'Matrix = 1 0 0 0', b'Matrix = 1 0 0 1e308', 'TransformMatrix'),
    (b'MET_SHORT', b'MET_SHIRT', 'ElementType'),
    (b'LOCAL', b'../a.raw', 'outside of its folder'),
    (b'LOCAL', b'/dev/zero', 'outside of its folder'),
    (b'LOCAL', b'other.raw', 'its voxels are not there'),
  ],
)
def test_a_wrong_header_is_one_short_line(tmp_path, old, new, text):
  path = _written(tmp_path, '.mha', compressed=True)
  path.write_bytes(path.read_bytes().replace(old, new, 1))
  with pytest.raises(errors.UserError, match=text) as refused:
    itk.check(path)
  assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
  ('ending', 'compressed', 'old', 'new', 'pad', 'text'),
  [
    ('.mha', True, b'CompressedDataSize', b'Comment', b'', 'no CompressedDataSize'),
    ('.mha', False, b'NDims = 3', b'NDims = 3\nHeaderSize = 9', bytes(9), 'HeaderSize is 9'),
    ('.mha', True, b'NDims = 3', b'NDims = 3\nHeaderSize = 9', bytes(9), 'HeaderSize is 9'),
    ('.mhd', True, b'NDims = 3', b'NDims = 3\nHeaderSize = 9', bytes(9), 'HeaderSize is 9'),
  ],
)
def test_voxels_that_itk_would_seek_in_the_wrong_place_are_refused(
  tmp_path, capfd, ending, compressed, old, new, pad, text
):
  path = _written(tmp_path, ending, compressed=compressed)
  whole, voxels = path.read_bytes().replace(old, new, 1), next(tmp_path.glob('*.zraw'), path)
  start = whole.index(b'LOCAL\n') + 6 if voxels == path else len(whole)
  path.write_bytes(whole[:start] + pad * (voxels == path) + whole[start:])
  if voxels != path:
    voxels.write_bytes(pad + voxels.read_bytes())
  with pytest.raises(errors.UserError, match=text):
    itk.read(path)
  assert capfd.readouterr() == ('', '')


def test_a_whole_file_of_its_own_for_compressed_voxels_needs_no_size(tmp_path):
  path = _written(tmp_path, '.mhd', compressed=True)
  path.write_bytes(path.read_bytes().replace(b'CompressedDataSize', b'Comment', 1))
  np.testing.assert_array_equal(
    sitk.GetArrayFromImage(itk.read(path)).ravel(), np.arange(120, dtype=np.int16)
  )


def test_what_itk_prints_about_a_file_that_it_refuses_does_not_reach_the_user(
  tmp_path, capfd, monkeypatch
):
  path = _written(tmp_path, '.mha', compressed=False)
  path.write_bytes(path.read_bytes().replace(b'DimSize = 6 5 4', b'DimSize = 6 5'))
  monkeypatch.setattr(itk, 'check', lambda path: None)  # as if it knew nothing of this damage
  with pytest.raises(errors.UserError, match=r'a\.mha: cannot be read'):
    itk.read(path)
  assert capfd.readouterr() == ('', '')


def test_what_itk_warns_of_does_not_reach_the_user(tmp_path, capfd):
  path = tmp_path / 'a.nii'
  sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16)), str(path))
  content = path.read_bytes()
  path.write_bytes(content[:80] + np.float32([3, 3, 3]).tobytes() + content[92:])
  assert itk.grid(path).GetSize() == (6, 5, 4)
  assert capfd.readouterr() == ('', '')

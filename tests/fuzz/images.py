"""Inputs of the readers of images and volumes."""

import functools
import gzip
import io
import struct
import zipfile
import zlib

import nibabel as nib
import numpy as np
import scipy.io
import SimpleITK as sitk
from PIL import Image

from fuzz import readers
from robustmed.data.files import mat, nifti, pictures
from robustmed.data.labelled import formats

_NIFTI = 'robustmed.data.files.nifti'
_PICTURES = 'robustmed.data.files.pictures'
_FORMATS = 'robustmed.data.labelled.formats'
_AFFINE = np.diag([0.7, 0.8, 2.5, 1.0])
_HUGE = struct.pack('<8h', 3, 30000, 30000, 30000, 1, 1, 1, 1)


def _write_nifti(folder, *, name):
  image = nib.Nifti1Image(readers.numbers((4, 5, 6), np.int16), _AFFINE)
  image.header.set_xyzt_units('mm')
  nib.save(image, folder / name)


def _write_itk(folder, *, name, compressed):
  image = sitk.GetImageFromArray(readers.numbers((4, 5, 6), np.int16))
  image.SetSpacing((0.7, 0.8, 2.5))
  sitk.WriteImage(image, str(folder / name), compressed)


def _write_picture(folder, *, name):
  Image.fromarray(readers.numbers((9, 7), np.uint8)).save(folder / name)


def _write_stack(folder, *, name):
  pages = [Image.fromarray(page) for page in readers.numbers((3, 6, 7), np.uint8)]
  pages[0].save(folder / name, save_all=True, append_images=pages[1:])


def _write_npy(folder, *, name):
  np.save(folder / name, readers.numbers((6, 7)))


def _write_npz(folder, *, name, pack=np.savez):
  pack(folder / name, image=readers.numbers((6, 7)))


def _gzipped(content, rng):
  """A header that declares 30,000 voxels along each axis."""
  plain = gzip.decompress(content)
  return gzip.compress(plain[:40] + _HUGE + plain[56:])


def _extended(content, rng):
  """A header with an extension that declares 2 GiB."""
  packed = content[:2] == b'\x1f\x8b'
  plain = gzip.decompress(content) if packed else content
  own = struct.pack('<2i', 2**31 - 16, 4) + b'comment '
  plain = plain[:108] + struct.pack('<f', 368) + plain[112:348] + bytes([1, 0, 0, 0]) + own
  plain += gzip.decompress(content)[352:] if packed else content[352:]
  return gzip.compress(plain) if packed else plain


def _overflow(content, rng):
  """A slope that makes values that no float32 holds."""
  packed = content[:2] == b'\x1f\x8b'
  plain = gzip.decompress(content) if packed else content
  plain = plain[:112] + struct.pack('<2f', 3.4e38, 0) + plain[120:]
  return gzip.compress(plain) if packed else plain


def _unsized(content, rng):
  """Compressed voxels of which the header does not say how many bytes they have."""
  return content.replace(b'CompressedDataSize', b'Comment', 1)


def _skipped(content, rng):
  """Voxels that begin later, as the header says."""
  head, mark, voxels = content.partition(b'LOCAL\n')
  return b'HeaderSize = 9\n' + head + mark + bytes(9) + voxels


def _huge_png(content, rng):
  """A picture that declares 30,000 by 30,000 pixels, with the right check sum."""
  head = b'IHDR' + struct.pack('>II', 30000, 30000) + content[24:29]
  return content[:12] + head + struct.pack('>I', zlib.crc32(head)) + content[33:]


def _huge_bmp(content, rng):
  return content[:18] + struct.pack('<ii', 30000, 30000) + content[26:]


def _huge_jpeg(content, rng):
  place = content.index(b'\xff\xc0') + 5
  return content[:place] + struct.pack('>HH', 60000, 60000) + content[place + 4 :]


def _huge_tiff(content, rng):
  """Width and height of 30,000 in every page."""
  order = '<' if content[:2] == b'II' else '>'
  for tag in (256, 257):
    for kind in (3, 4):
      start = struct.pack(f'{order}HHI', tag, kind, 1)
      parts = content.split(start)
      value = struct.pack(f'{order}I' if kind == 4 else f'{order}HH', 30000, *([0] * (kind == 3)))
      content = parts[0] + b''.join(start + value + part[4:] for part in parts[1:])
  return content


def _as_postscript(content, rng):
  return b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 7 9\n%%EndComments\nshowpage\n'


def _mat_shape(content, rng):
  return content.replace(struct.pack('<II3i', 5, 12, 3, 4, 5), struct.pack('<II3i', 5, 12, *_LONG))


def _mat_packed(content, rng):
  element = zlib.compress(_mat_shape(content, rng)[128:])
  return content[:128] + struct.pack('<II', 15, len(element)) + element


def _mat_cells(content, rng):
  shaped = _mat_shape(content, rng)
  return shaped[:144] + bytes([1]) + shaped[145:]  # class cell: an object for every number


def _npy_head(content, text):
  rest = content[content.index(b'\n') + 1 :]
  text = text.ljust(117) + b'\n'
  return content[:8] + struct.pack('<H', len(text)) + text + rest


def _huge_npy(content, rng):
  return _npy_head(content, b"{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 60000)}")


def _structured_npy(content, rng):
  return _npy_head(content, b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6, 7)}")


def _object_npy(content, rng):
  return _npy_head(content, b"{'descr': '|O', 'fortran_order': False, 'shape': (6, 7)}")


def _complex_npy(content, rng):
  return _npy_head(content, b"{'descr': '<c8', 'fortran_order': False, 'shape': (3, 7)}")


def _rezipped(content, rng, *, change):
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, 'w') as new:
    for name in old.namelist():
      new.writestr(name, change(old.read(name), rng))
  return out.getvalue()


def _second_array(content, rng):
  out = io.BytesIO(content)
  with zipfile.ZipFile(out, 'a') as archive:
    archive.writestr('other.npy', archive.read(archive.namelist()[0]))
  return out.getvalue()


_LONG = (30000, 30000, 3)
_HEADER_CHANGES = {
  'huge': readers.declared(40, _HUGE),
  'small': readers.declared(40, struct.pack('<8h', 3, 4, 5, 5, 1, 1, 1, 1)),
  'nothing': readers.declared(40, struct.pack('<8h', 3, 4, 5, 0, 1, 1, 1, 1)),
  'negative': readers.declared(40, struct.pack('<8h', 3, 4, 5, -6, 1, 1, 1, 1)),
  'long_voxels': readers.declared(76, struct.pack('<4f', 1, 1e7, 1e7, 1e7)),
  'nan_voxels': readers.declared(76, struct.pack('<4f', 1, float('nan'), 1, 1)),
  'extended': _extended,
  'overflow': _overflow,
  'nan_slope': readers.declared(112, struct.pack('<2f', float('inf'), 1)),
}
_NPY = {
  'huge': _huge_npy,
  'structured': _structured_npy,
  'pickled': _object_npy,
  'complex': _complex_npy,
}
_NPZ = {name: functools.partial(_rezipped, change=change) for name, change in _NPY.items()}
_NPZ['second_array'] = _second_array
_BYTES = ('flip', 'flips', 'zeros', 'remove', 'double')
_PLAIN_NIFTI = {
  **readers.unchecked('an uncompressed NIfTI file', *_BYTES),
  'long_voxels': 'the size of a voxel is what the header says',
}
_TEXT_HEAD = readers.unchecked('a header of text', *_BYTES, 'number', 'line_lost')
_BODY = {**_TEXT_HEAD, **readers.unchecked('uncompressed voxels', 'nul', 'not_utf8', 'quote')}
_ITK = ('content', 'place', 'text')


def _write_mat(folder, *, name):
  scipy.io.savemat(folder / name, {'I': readers.numbers((3, 4, 5), np.float32)})


def _read_mat(folder):
  with pictures.opened(folder / 'a.mat') as file:
    return mat.read(file, ['I'])


def _formats(name, make, **more):
  return readers.Reader(
    f'formats:{name}',
    functools.partial(make, name=name),
    name,
    lambda folder: formats.read(folder / name),
    (_FORMATS,),
    **more,
  )


READERS = (
  readers.Reader(
    'nifti:a.nii',
    functools.partial(_write_nifti, name='a.nii'),
    'a.nii',
    lambda folder: nifti.read(folder / 'a.nii'),
    (_NIFTI,),
    special=_HEADER_CHANGES,
    silent=_PLAIN_NIFTI,
  ),
  readers.Reader(
    'nifti:a.nii.gz',
    functools.partial(_write_nifti, name='a.nii.gz'),
    'a.nii.gz',
    lambda folder: nifti.read(folder / 'a.nii.gz'),
    (_NIFTI,),
    special={'huge': _gzipped, 'extended': _extended, 'overflow': _overflow},
  ),
  readers.Reader(
    'pictures:a.png',
    functools.partial(_write_picture, name='a.png'),
    'a.png',
    lambda folder: pictures.read(folder / 'a.png'),
    (_PICTURES,),
    special={'huge': _huge_png},
  ),
  _formats('b.nii', _write_nifti, special=_HEADER_CHANGES, silent=_PLAIN_NIFTI),
  _formats(
    'b.nii.gz',
    _write_nifti,
    special={'huge': _gzipped, 'extended': _extended, 'overflow': _overflow},
  ),
  _formats(
    'b.mha',
    functools.partial(_write_itk, compressed=False),
    groups=_ITK,
    silent=_BODY,
    special={'skipped': _skipped},
  ),
  _formats(
    'c.mha',
    functools.partial(_write_itk, compressed=True),
    groups=_ITK,
    silent=_TEXT_HEAD,
    special={'skipped': _skipped, 'unsized': _unsized},
  ),
  _formats(
    'b.mhd', functools.partial(_write_itk, compressed=False), groups=_ITK, silent=_TEXT_HEAD
  ),
  _formats('b.nrrd', functools.partial(_write_itk, compressed=False), groups=_ITK, silent=_BODY),
  _formats(
    'c.nrrd', functools.partial(_write_itk, compressed=True), groups=_ITK, silent=_TEXT_HEAD
  ),
  _formats('b.png', _write_picture, special={'huge': _huge_png, 'postscript': _as_postscript}),
  *(
    _formats(
      name,
      make,
      special={'huge': huge, 'postscript': _as_postscript},
      silent=readers.unchecked(name[-3:].upper(), *_BYTES, *more),
    )
    for name, make, huge, more in (
      ('b.tif', _write_picture, _huge_tiff, ()),
      ('s.tif', _write_stack, _huge_tiff, ()),
      ('b.bmp', _write_picture, _huge_bmp, ()),
      ('b.jpg', _write_picture, _huge_jpeg, ()),
    )
  ),
  readers.Reader(
    'mat:a.mat',
    functools.partial(_write_mat, name='a.mat'),
    'a.mat',
    _read_mat,
    ('robustmed.data.files.mat',),
    special={'huge': _mat_shape, 'huge_packed': _mat_packed, 'huge_cells': _mat_cells},
    silent=readers.unchecked('an uncompressed .mat file', *_BYTES),
  ),
  _formats(
    'b.npy',
    _write_npy,
    special=_NPY,
    silent=readers.unchecked('NPY', *_BYTES),
  ),
  _formats('b.npz', _write_npz, special=_NPZ),
  _formats('c.npz', functools.partial(_write_npz, pack=np.savez_compressed), special=_NPZ),
)

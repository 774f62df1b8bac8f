"""Reads the images of one case as nnunetv2 does, writes label maps on the grid of their file."""

import gzip
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image

from robustmed import errors
from robustmed.data.files import nifti, pictures
from robustmed.data.labelled import formats
from robustmed.process import files

FLAT = 999.0  # spacing across a single picture, which keeps it from being resampled
READERS = ('SimpleITKIO', 'NibabelIO', 'NaturalImage2DIO', 'Tiff3DIO')
TURNED = ('NibabelIOWithReorient', 'SimpleITKIOWithReorient')


class Case(NamedTuple):
  """The images of one case, and where they lie."""

  image: np.ndarray  # [c, z, y, x] float32
  spacing: tuple[float, float, float]  # [z, y, x]
  affine: np.ndarray  # [4, 4] of the file
  path: pathlib.Path  # of the first channel
  turn: np.ndarray | None = None  # nibabel's orientation transform back to the file's axes


def read(paths: Sequence[pathlib.Path], *, reader: str = READERS[0]) -> Case:
  """Returns the images of one case, one file per channel, with the axes of that reader of nnunetv2.

  Images of other shapes or spacings than the first one are a `UserError`.
  """
  if reader not in (*READERS, *TURNED):
    raise errors.UserError(f'unknown reader {reader!r} in the plans (known: {READERS + TURNED})')
  if not paths:
    raise errors.UserError('a case needs at least one image')
  found = [_volume(path, reader) for path in paths]
  first = found[0]
  for path, (image, spacing, _) in zip(paths, found):
    if image.shape[1:] != first[0].shape[1:] or not np.allclose(spacing, first[1], rtol=1e-4):
      raise errors.UserError(f'{path}: has another grid than {paths[0]}')
  image, spacing, affine = np.concatenate([one for one, _, _ in found]), first[1], first[2]
  turn = None
  if reader in TURNED:
    there = nib.orientations.io_orientation(affine)
    moved = nib.orientations.apply_orientation(image.transpose(3, 2, 1, 0), there)
    image = np.ascontiguousarray(moved.transpose(3, 2, 1, 0))
    order = np.argsort(there[:, 0]).astype(int)
    spacing = tuple(spacing[::-1][axis] for axis in order)[::-1]
    standard = np.array([[axis, 1] for axis in range(3)])
    turn = nib.orientations.ornt_transform(standard, there)
  return Case(image, spacing, affine, pathlib.Path(paths[0]), turn)


def write(path: pathlib.Path, labels: np.ndarray, case: Case) -> None:
  """Writes a label map [z, y, x] on the grid of the case's file, whole or not at all."""
  labels = labels.astype(np.uint8 if labels.max(initial=0) < 255 else np.uint16)
  if case.turn is not None:
    turned = nib.orientations.apply_orientation(labels.transpose(2, 1, 0), case.turn)
    labels = turned.transpose(2, 1, 0)
  suffix = formats.suffix_of(path)
  if suffix in nifti.SUFFIXES:
    image = nib.Nifti1Image(np.ascontiguousarray(labels.transpose(2, 1, 0)), case.affine)
    image.header.set_xyzt_units('mm')
    content = image.to_bytes()
    packed = gzip.compress(content, 6, mtime=0) if suffix.endswith('.gz') else content
    with files.replacing(path) as temporary:
      temporary.write_bytes(packed)
  elif suffix in ('.png', '.tif', '.tiff', '.bmp') and len(labels) == 1:
    with files.replacing(path) as temporary, temporary.open('wb') as file:
      Image.fromarray(labels[0]).save(file, format=Image.registered_extensions()[suffix])
  else:
    raise errors.UserError(
      f'{path}: label maps are written as {", ".join(nifti.SUFFIXES)}, single slices as .png, too'
    )


def _volume(path, reader):
  """Returns an image [c, z, y, x], its spacing and its affine."""
  stored = formats.read(path)
  array = np.asarray(stored.array, np.float32)
  rank = stored.spatial or array.ndim
  if array.ndim not in (rank, rank + 1) or rank not in (2, 3):
    raise errors.UserError(f'{path}: must be an image, not an array of {list(array.shape)}')
  array = np.moveaxis(array, -1, 0) if array.ndim > rank else array[None]
  spacing = stored.spacing
  if reader == 'Tiff3DIO':
    spacing = _beside(path, rank)
  elif spacing is None:
    spacing = (1.0,) * rank
  if rank == 2:
    flat = formats.suffix_of(path) in pictures.PHOTOS
    deep = _depth(path, stored) or (FLAT if flat else FLAT * max(spacing))
    array, spacing = array[:, None], (deep, *spacing)
  return array, tuple(float(value) for value in spacing), stored.affine


def _depth(path, stored):
  """Returns the thickness of a volume of one slice, None for pictures."""
  if formats.suffix_of(path) not in nifti.SUFFIXES or len(nifti.shape(path)) < 3:
    return None
  return float(nifti.spacing(stored.affine)[2])


def _beside(path, rank):
  """Returns the spacing in the JSON file that nnU-Net has beside a TIFF, `case.json`."""
  stem = re.sub(r'_\d{4}$', '', formats.stem_of(path))
  name = path.with_name(f'{stem}.json')
  try:
    spacing = tuple(float(value) for value in files.parsed_json(name)['spacing'])
  except (errors.UserError, ValueError, KeyError, TypeError) as error:
    raise errors.UserError(f'{name}: has no spacing for {path.name} ({error})') from error
  return spacing[-rank:]

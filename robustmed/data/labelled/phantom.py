"""Synthetic twin of a labelled folder: an organ with a lesion in MR-like volumes of 2 x 1 x 1 mm.

`fill` writes the same cases as files in nnU-Net's raw layout.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

from robustmed import errors
from robustmed.data import painting
from robustmed.data.labelled import folders, formats, labelled, study, survey

VERSION = 1  # to be raised when the same fields give other voxels
_OWN = {'cases': 24, 'volume_seed': 0, 'scale': 1.0}
_FILES = ('dir', 'layout', 'patients', 'split_file')
DEFAULTS = {
  **{name: value for name, value in study.DEFAULTS.items() if name not in _FILES},
  **_OWN,
}
_SHAPE, _SPACING = (20, 48, 48), (2.0, 1.0, 1.0)
_AFFINE = np.diag([*_SPACING[::-1], 1.0])
_NAME = 'case_{:03d}'
CLASSES = {'background': 0, 'organ': 1, 'lesion': 2}


def fill(folder: pathlib.Path, *, cases: int = 24, volume_seed: int = 0, scale: float = 1.0):
  """Writes the folder: imagesTr/NAME_0000.nii.gz (int16), labelsTr, dataset.json; returns it."""
  for number in range(cases):
    image, labels = draw(number, volume_seed=volume_seed, scale=scale)
    for part, array, channel in (('imagesTr', image, '_0000'), ('labelsTr', labels, '')):
      path = folder / part / f'{_NAME.format(number)}{channel}.nii.gz'
      path.parent.mkdir(parents=True, exist_ok=True)
      nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), _AFFINE), path)
  found = {
    'channel_names': {'0': 'MRI'},
    'labels': CLASSES,
    'numTraining': cases,
    'file_ending': '.nii.gz',
  }
  (folder / 'dataset.json').write_text(json.dumps(found, indent=1), encoding='utf-8')
  return folder


def draw(number: int, *, volume_seed: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image [z, y, x] int16 and the labels [z, y, x] uint8 of one case."""
  rng = np.random.default_rng([volume_seed % 2**32, number])
  sides = np.round(np.array(_SHAPE) * scale * rng.uniform(0.9, 1.1, 3)).astype(int)
  shape = tuple(np.maximum(sides, (6, 16, 16)).tolist())
  canvas = painting.Canvas(rng, shape, warp=0.03)
  image = np.full(shape, 0.35, np.float32) + 0.05 * painting.smooth_field(rng, shape, cells=6)
  middle, radii = rng.normal(0, 0.06, 3), rng.uniform(0.24, 0.32, 3)
  organ = canvas.ellipsoid(middle, radii)
  for _ in range(3):  # what has the organ's brightness and is none
    place = rng.uniform(-0.45, 0.45, 3)
    other = canvas.ellipsoid(place, rng.uniform(0.06, 0.12, 3))
    canvas.paint(image, 0.6, np.maximum(other, 0.03 - organ))
  canvas.paint(image, 0.62 + rng.normal(0, 0.02), organ)
  inside = middle + 0.4 * radii * rng.uniform(-1, 1, 3)
  lesion = canvas.ellipsoid(inside, radii * rng.uniform(0.3, 0.45, 3))
  canvas.paint(image, 0.85 + rng.normal(0, 0.02), lesion)
  image *= np.exp(0.08 * painting.smooth_field(rng, shape, cells=3))
  image += 0.05 * painting.texture(rng, shape, width=0.6)
  labels = np.where(lesion < 0, 2, np.where(organ < 0, 1, 0)).astype(np.uint8)
  gain = 400 * np.exp(rng.normal(0, 0.4))  # scanners have no common unit
  return np.round(np.maximum(image, 0) * gain).astype(np.int16), labels


def make_study(fields: Mapping[str, Any]) -> study.Study:
  """Returns what is known of the synthetic folder, without any files."""
  if fields['cases'] < 2 or not 0.2 <= fields['scale'] <= 4:
    raise errors.UserError(
      f'data fields cases {fields["cases"]} must be at least 2 and scale {fields["scale"]} in '
      '[0.2, 4]'
    )
  own = {name: fields[name] for name in _OWN}
  surveys = tuple(
    _survey(number, own['volume_seed'], own['scale']) for number in range(own['cases'])
  )
  cases = tuple(
    folders.Case(_NAME.format(number), (pathlib.Path(_NAME.format(number)),), number)
    for number in range(own['cases'])
  )
  root = pathlib.Path('phantom')
  layout = 'synthetic volumes'
  folder = folders.Folder(root, layout, 'segmentation', cases, CLASSES, channels=('MRI',))
  return study.of(folder, surveys, {**study.DEFAULTS, **fields})


@functools.lru_cache(maxsize=512)
def _survey(number, volume_seed, scale) -> survey.Survey:
  image, labels = draw(number, volume_seed=volume_seed, scale=scale)
  stored = formats.Stored(image, 3, _SPACING, _AFFINE, str(image.dtype))
  return survey.measured(image[..., None].astype(np.float32), stored, labels)


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  return labelled.counts(make_study(fields))


def groups(fields: Mapping[str, Any]) -> int:
  return labelled.patients(make_study(fields))


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns all that the voxels and the splits depend on."""
  own = {name: fields[name] for name in _OWN}
  return {**labelled.content(make_study(fields)), 'phantom': VERSION, **own}


class PhantomLabelled(labelled.Labelled):
  """Builds the splits of the synthetic folder."""

  def known(self):
    return make_study(self.fields)

  def read(self, found, number):
    own = {name: self.fields[name] for name in ('volume_seed', 'scale')}
    image, labels = draw(number, **own)
    return image[..., None].astype(np.float32), labels.astype(np.int16)


def arrange(source, fields: Mapping[str, Any], facts: Mapping[str, Any]):
  return labelled.arranged(source, make_study(fields), facts)


Builder = PhantomLabelled

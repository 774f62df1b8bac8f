"""Synthetic twin of the source `lumbar_disks`: T2-like disks between vertebrae, by patient.

`phantom_shapes` draws the shapes, `render` the images. Patient p of a seed is the same whatever the
number of patients, so a smaller data set is a subset of a larger one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from robustmed import errors
from robustmed.data import store
from robustmed.data.spine import contours, phantom_shapes, render

DEFAULTS = {
  'side': 64,
  'seed': 0,
  'train_patients': 80,
  'test_patients': 20,
  'disks_per_patient': 5,
  'contrast': 0.2,  # nucleus above marrow, in units of the intensity range
  'noise': 0.03,  # standard deviation, same units
}
_TEST_OFFSET = 1_000_000  # random streams of test patients


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of examples per split, without drawing any."""
  return {
    'train': fields['train_patients'] * fields['disks_per_patient'],
    'test': fields['test_patients'] * fields['disks_per_patient'],
  }


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of patients of the test split."""
  return fields['test_patients']


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns all fields, on which the drawn data depend; a value out of range is a `UserError`."""
  for name in ('train_patients', 'test_patients', 'disks_per_patient'):
    if fields[name] < 1:
      raise errors.UserError(f'data field {name} must be at least 1, not {fields[name]}')
  contours.check_side(fields['side'])
  for name in ('contrast', 'noise'):
    if not 0 <= fields[name] <= 1:
      raise errors.UserError(f'data field {name} must lie in [0, 1], not {fields[name]}')
  return {name: fields[name] for name in DEFAULTS}


class PhantomLumbarDisks(store.Builder):
  """Draws 'train' and 'test', by default 80 and 20 patients of five disks each."""

  # to be raised when the same fields give other pixels: prepared data are stored per version
  VERSION = tfds.core.Version('1.1.0')

  def features(self):
    return contours.features(self.fields['side'])

  def splits(self):
    train, test = self.fields['train_patients'], self.fields['test_patients']
    return {
      'train': self._patients(range(train), first=0),
      'test': self._patients(range(test), first=train),
    }

  def _patients(self, patients, *, first) -> Iterator[dict[str, Any]]:
    fields = self.fields
    count, side = fields['disks_per_patient'], fields['side']
    for patient in patients:
      stream = patient + (_TEST_OFFSET if first else 0)
      shape, image = draw_patient(
        np.random.default_rng([fields['seed'], stream]),
        count=count,
        side=side,
        contrast=fields['contrast'],
        noise=fields['noise'],
      )
      group = first + patient
      for disk in range(count):
        yield contours.example(
          image[disk],
          shape[disk],
          index=group * count + disk,
          group=group,
          name=f'phantom{group:04d}_{disk + 1}',
        )


def draw_patient(
  rng: np.random.Generator, *, count: int, side: int, contrast: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns contours [count, 176, 2] in pixels (x first) and images [count, side, side]."""
  shape = phantom_shapes.draw(rng, count)
  patient = render.draw_patient(rng)
  image = render.render(shape, patient, rng, side=side, contrast=contrast, noise=noise)
  return (shape * side + (side - 1) / 2).astype(np.float32), image


Builder = PhantomLumbarDisks

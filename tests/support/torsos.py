"""Small folders of abdominal CT with organ labels, as data sets are distributed."""

import nibabel as nib
import numpy as np

from robustmed import data
from robustmed.data.abdomen import abdomen as files
from robustmed.data.abdomen import phantom

TWIN = {'name': 'phantom_abdomen', 'side': 32, 'spacing': 12.0, 'subjects': (2, 1, 1), 'depth': 3}
NUMBERS = files.LAYOUTS['flare22'].organs


def fill(folder, *, fields=TWIN):
  """Writes the phantom as files named like FLARE22, right and left kidney apart."""
  for case in phantom.cases(data.fields_of(fields)):
    volume = case.read()
    numbers = np.zeros(volume.labels.shape, np.uint8)
    for place, organ in enumerate(('pancreas', 'kidneys', 'liver', 'spleen'), start=1):
      numbers[volume.labels == place] = NUMBERS[organ][0]
    left = (volume.labels == 2) & (np.arange(numbers.shape[2]) >= numbers.shape[2] // 2)
    numbers[left] = NUMBERS['kidneys'][1]
    save(folder / 'images' / f'{case.name}_0000.nii.gz', volume.image[..., 0], volume.spacing)
    save(folder / 'labels' / f'{case.name}.nii.gz', numbers, volume.spacing)
  return folder


def save(path, array, spacing, *, signs=(-1, -1, 1)):
  """One file of an array [z, y, x] whose axes count to the head, the back and the left."""
  path.parent.mkdir(parents=True, exist_ok=True)
  dtype = np.uint8 if array.dtype.kind in 'ui' else np.float32
  affine = np.diag([*(s * mm for s, mm in zip(signs, spacing[::-1])), 1.0])
  nib.save(nib.Nifti1Image(array.transpose(2, 1, 0).astype(dtype), affine), path)
  return path

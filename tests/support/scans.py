"""Small folders of labelled volumes in the layout of the Medical Segmentation Decathlon."""

import json

import nibabel as nib
import numpy as np

from robustmed import data
from robustmed.data.decathlon import phantom_hippocampus, phantom_organs

TWIN = {'name': 'phantom_hippocampus', 'cases': 6, 'scale': 0.4}


def fill(folder, *, fields=TWIN, dtype=np.float32):
  """Writes the hippocampus phantom as files; returns the folder."""
  cases = phantom_organs.study(phantom_hippocampus.ANATOMY, data.fields_of(fields)).cases
  for case in cases:
    volume = case.read()
    save(folder / 'imagesTr' / f'{case.name}.nii.gz', volume.image[..., 0], volume.spacing, dtype)
    save(folder / 'labelsTr' / f'{case.name}.nii.gz', volume.labels, volume.spacing, np.uint8)
  return describe(folder, [case.name for case in cases])


def save(path, array, spacing=(1, 1, 1), dtype=np.float32):
  """One file of an array [z, y, x] or [z, y, x, c] with its spacing in that order."""
  path.parent.mkdir(parents=True, exist_ok=True)
  turned = np.moveaxis(array, (0, 1, 2), (2, 1, 0)).astype(dtype)
  nib.save(nib.Nifti1Image(turned, np.diag([*spacing[::-1], 1])), path)
  return path


def describe(folder, names, *, modality=('MRI',), labels=('background', 'Anterior', 'Posterior')):
  numbered = lambda values: {str(number): value for number, value in enumerate(values)}
  content = {
    'name': 'Hippocampus',
    'modality': numbered(modality),
    'labels': numbered(labels),
    'training': [
      {'image': f'./imagesTr/{name}.nii.gz', 'label': f'./labelsTr/{name}.nii.gz'} for name in names
    ],
  }
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'dataset.json').write_text(json.dumps(content))
  return folder

"""Saves examples of segmented slices: arrays for the report's pictures, NIfTI files."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special

from robustmed.data.files import nifti
from robustmed.evaluation import examples


def pictures(found: examples.Example) -> dict[str, np.ndarray]:
  """Foreground of stacked examples, true and predicted, for the report's pictures."""
  foreground = lambda outputs: 1 - scipy.special.softmax(outputs['head0'], axis=-1)[..., 0]
  return {
    'mask_true': found.example['target']['labels'] > 0,
    'seg_clean': foreground(found.clean),
    'seg_adv': foreground(found.attacked),
  }


def write_example(folder: pathlib.Path, image: np.ndarray, example: Mapping[str, Any]) -> None:
  """Writes a preprocessed slice as NIfTI: case_CCC_IIIIII.nii.gz (all modalities) and _label."""
  folder = pathlib.Path(folder)
  name = f'case_{int(example["group"]):03d}_{int(example["index"]):06d}'
  between, rows, columns = (float(value) for value in example['target']['spacing'])
  affine = np.diag([columns, rows, between, 1.0])
  volume = image.transpose(1, 0, 2)[:, :, None, :]  # [x, y, z, modality]
  nifti.write(
    folder / f'{name}.nii.gz', volume.squeeze(-1) if volume.shape[-1] == 1 else volume, affine
  )
  labels = np.maximum(example['target']['labels'], 0).T[:, :, None]
  nifti.write(folder / f'{name}_label.nii.gz', labels.astype(np.float32), affine)

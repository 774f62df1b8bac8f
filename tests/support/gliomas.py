"""Small brain tumour cases as files, in the layouts of real sets."""

import json
import pathlib

import numpy as np

from robustmed.data.brain import brains, phantom
from robustmed.data.files import nifti

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE[:3, 3] = [0, 239, 0]
MARGIN = 3  # voxels of nothing around the brain


def draw(number: int, *, side: int = 16, **fields) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Series by name and labels 0 1 2 4, both in a file's order [w, h, d]."""
  fields = {**phantom.DEFAULTS, 'side': side, **fields}
  case = phantom.draw(np.random.default_rng([7, number]), fields)
  turn = lambda array: np.pad(array.transpose(2, 1, 0), MARGIN)
  series = {
    name: np.round(800 * turn(case.series[..., channel]))
    for channel, name in enumerate(brains.SERIES)
  }
  labels = turn(case.labels)
  return series, np.where(labels == 3, 4, labels)


def save(pattern: str, number: int, **fields) -> dict[str, pathlib.Path]:
  """Writes one case; '{series}' in `pattern` becomes each series' name and 'seg'."""
  series, labels = draw(number, **fields)
  paths = {}
  for name, array in {**series, 'seg': labels}.items():
    paths[name] = pathlib.Path(pattern.format(series=name))
    nifti.write(paths[name], array, AFFINE)
  return paths


def brats2017(folder: pathlib.Path, *, high: int = 2, low: int = 1, **fields) -> pathlib.Path:
  """HGG and LGG folders with so many cases."""
  for number in range(high + low):
    name = f'Brats17_CBICA_{number}_1'
    place = folder / ('HGG' if number < high else 'LGG') / name
    save(f'{place}/{name}_{{series}}.nii.gz', number, **fields)
  return folder


def decathlon(folder: pathlib.Path, *, cases: int = 3, **fields) -> pathlib.Path:
  """MSD Task01: one file of four series a case, labels 1 oedema 2 core 3 enhancing."""
  order = ('flair', 't1', 't1ce', 't2')
  listed = []
  for number in range(cases):
    series, labels = draw(number, **fields)
    listed.append({key: f'./{place}/BRATS_{number:03d}.nii.gz' for key, place in PLACES.items()})
    stack = np.stack([series[name] for name in order], axis=-1)
    nifti.write(folder / listed[-1]['image'], stack, AFFINE)
    nifti.write(folder / listed[-1]['label'], np.array([0, 2, 1, 0, 3])[labels], AFFINE)
  content = {
    'modality': {'0': 'FLAIR', '1': 'T1w', '2': 't1gd', '3': 'T2w'},
    'labels': {
      '0': 'background',
      '1': 'edema',
      '2': 'non-enhancing tumor',
      '3': 'enhancing tumour',
    },
    'training': listed,
  }
  (folder / 'dataset.json').write_text(json.dumps(content))
  return folder


PLACES = {'image': 'imagesTr', 'label': 'labelsTr'}

"""Small fields for every data source, and small folders of the original files of real ones."""

import numpy as np

from robustmed import data
from robustmed.data.labelled import phantom as phantom_labelled
from support import cells, chests, gliomas, scans, skulls, spines, torch_files, torsos


def _disk_folder(folder):
  """The phantom written in the file format of the real source."""
  phantom = data.load({**CONFIGS['phantom_lumbar_disks'], 'cache_dir': str(folder / 'phantom')})
  raw = folder / 'raw'
  raw.mkdir()
  for example in [*phantom.train, *phantom.test]:
    np.savez(
      raw / f'{example["name"]}.npz', img=example['image'][..., 0] * 900, shape=example['contour']
    )
  return {'dir': str(raw)}


def _cell_folder(folder):
  return {'dir': str(cells.fill(folder / 'raw'))}


def _skull_folder(folder):
  return {'dir': str(skulls.challenge(folder / 'raw', (1, 2, 3, 151, 201)))}


def _mask_folder(folder):
  return {'dir': str(spines.fill(folder / 'raw'))}


def _spider_folder(folder):
  for patient in range(3):
    image, mask, _ = spines.draw(patient)
    mask = np.where(mask > 0, 200 + mask, 0).astype(np.uint8)
    for kind, plane in (('images', image), ('masks', mask)):
      path = folder / 'raw' / kind / f'{patient}_t2.mha'
      spines.save_volume(path, plane, spacing=(4, 1, 1), direction=(1, 2, 0))
  return {'dir': str(folder / 'raw')}


def _tensor_folder(folder):
  for number in range(3):
    image, _, contours = spines.draw(number, disks=5, shape=(240, 80), scale=60.0)
    side = 'test' if number == 2 else 'train'
    torch_files.save(
      folder / 'raw' / side / f'p{number}_0.pt', {'img': image / 255, 'disk': contours}
    )
  return {'dir': str(folder / 'raw')}


BOXED = {'height': 32, 'width': 48, 'long_side': 40, 'max_boxes': 9}


def _glioma_folder(folder):
  return {'dir': str(gliomas.brats2017(folder / 'raw'))}


def _volume_folder(folder):
  return {'dir': str(scans.fill(folder / 'raw'))}


def _torso_folder(folder):
  return {'dir': str(torsos.fill(folder / 'raw'))}


def _chest_folder(folder):
  return {'dir': str(chests.fill(folder / 'raw'))}


def _labelled_folder(folder):
  own = {name: CONFIGS['phantom_labelled'][name] for name in ('cases', 'scale')}
  return {'dir': str(phantom_labelled.fill(folder / 'raw', **own))}


_TORSO = {'side': 32, 'spacing': 12.0, 'subjects': (2, 1, 1), 'slices': 'all'}
CONFIGS = {
  'abdomen': {'name': 'abdomen', **_TORSO, 'layout': 'flare22'},
  'phantom_abdomen': {**torsos.TWIN, 'slices': 'all'},
  'bccd': {'name': 'bccd', **BOXED},
  'ceph': {'name': 'ceph', 'height': 40, 'width': 32},
  'phantom_ceph': {
    'name': 'phantom_ceph',
    'height': 40,
    'width': 32,
    'train_images': 3,
    'validation_images': 1,
    'test_images': 1,
  },
  'phantom_bccd': {
    'name': 'phantom_bccd',
    **BOXED,
    'train_images': 5,
    'validation_images': 2,
    'test_images': 2,
  },
  'labelled': {'name': 'labelled'},
  'phantom_labelled': {'name': 'phantom_labelled', 'cases': 5, 'scale': 0.4},
  'phantom_lumbar_disks': {
    'name': 'phantom_lumbar_disks',
    'side': 16,
    'train_patients': 4,
    'test_patients': 1,
    'disks_per_patient': 2,
  },
  'brats': {'name': 'brats', 'side': 16, 'n4': 'none'},
  'phantom_brats': {'name': 'phantom_brats', 'side': 16, 'train_cases': 4, 'test_cases': 1},
  'phantom_heart': {'name': 'phantom_heart', 'cases': 5, 'scale': 0.06, 'slices': 'all'},
  'phantom_hippocampus': {**scans.TWIN, 'slices': 'all'},
  'phantom_nodules': chests.TWIN,
  'phantom_prostate': {'name': 'phantom_prostate', 'cases': 5, 'scale': 0.06, 'slices': 'all'},
  'luna16': {'name': 'luna16', 'side': 8, 'spacing': 3.0, 'negatives': 2, 'backgrounds': 1},
  'msd': {'name': 'msd', 'slices': 'all'},
  'lumbar_disks': {'name': 'lumbar_disks', 'side': 16},
  'disk_masks': {'name': 'disk_masks', 'side': 16},
  'spider': {'name': 'spider', 'side': 16},
  'ssmspine': {'name': 'ssmspine', 'side': 16},
}
FILES = {  # real sources: makes a small folder of the original files
  'abdomen': _torso_folder,
  'bccd': _cell_folder,
  'brats': _glioma_folder,
  'ceph': _skull_folder,
  'labelled': _labelled_folder,
  'lumbar_disks': _disk_folder,
  'disk_masks': _mask_folder,
  'spider': _spider_folder,
  'ssmspine': _tensor_folder,
  'luna16': _chest_folder,
  'msd': _volume_folder,
}

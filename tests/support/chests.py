"""Small chest CT scans with nodules: made by hand, or phantoms in the files of LUNA16."""

import csv

import numpy as np
import SimpleITK as sitk

from robustmed import data
from robustmed.data.chest import nodule_scans, phantom

TWIN = {
  'name': 'phantom_nodules',
  'side': 8,
  'spacing': 3.0,
  'negatives': 2,
  'backgrounds': 1,
  'scans': (2, 1, 1),
  'voxel': 3.0,
  'nodules': (1, 2),
  'diameters': (8.0, 14.0),
}
HEADER = ('seriesuid', *nodule_scans.PLACE)


def rotation(seed, *, oblique=True):
  """A direction matrix: any rotation, or a permutation of the axes with signs."""
  rng = np.random.default_rng(seed)
  if oblique:
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return matrix * np.sign(np.linalg.det(matrix))
  return np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)


def scan(image, *, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None, **fields):
  """A scan of an array [z, y, x] with empty tables unless given."""
  empty = nodule_scans.table('one', [], diameter_mm=[], kind=[])
  return nodule_scans.NoduleScan(
    **{
      'uid': 'one',
      'image': np.asarray(image, np.float32),
      'spacing': spacing,
      'origin': np.array(origin, float),
      'direction': np.eye(3) if direction is None else direction,
      'lung': np.ones(np.shape(image), bool),
      'nodules': empty,
      'excluded': empty,
      **fields,
    }
  )


def spots(uid, *rows):
  """A table of (x, y, z, diameter, kind)."""
  return nodule_scans.table(
    uid,
    [row[:3] for row in rows],
    diameter_mm=[float(row[3]) for row in rows],
    kind=[row[4] for row in rows],
  )


def write_rows(path, header, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as file:
    csv.writer(file).writerows([header, *rows])


def append(path, *row):
  with path.open('a', newline='') as file:
    csv.writer(file).writerow(row)


def save(path, array, like, *, compressed=False):
  """Writes an array on the voxels of a `NoduleScan`; .mhd makes a .raw (or .zraw) beside it."""
  image = sitk.GetImageFromArray(array)
  image.SetSpacing([float(mm) for mm in like.spacing[::-1]])
  image.SetOrigin(like.origin.tolist())
  image.SetDirection(np.ravel(like.direction).tolist())
  path.parent.mkdir(parents=True, exist_ok=True)
  sitk.WriteImage(image, str(path), useCompression=compressed)
  return path


def write(folder, scans, *, subsets, masks=True):
  """Writes scans as LUNA16 does, scan i into subset `subsets[i]`; returns the folder."""
  tables = folder / 'evaluationScript' / 'annotations'
  write_rows(folder / 'annotations.csv', (*HEADER, 'diameter_mm'), [])
  write_rows(tables / 'annotations_excluded.csv', (*HEADER, 'diameter_mm'), [])
  write_rows(folder / 'candidates_V2.csv', (*HEADER, 'class'), [])
  write_rows(tables / 'seriesuids.csv', (scans[0].uid,), [(one.uid,) for one in scans[1:]])
  texture = {'ground_glass': (1, 6), 'part_solid': (3, 6), 'solid': (5, 6), 'calcified': (5, 3)}
  kinds = []
  for one, number in zip(scans, subsets):
    hu = np.round(nodule_scans.to_hu(one.image)).astype(np.int16)
    save(folder / f'subset{number}' / f'{one.uid}.mhd', hu, one)
    lungs = np.where(one.lung, np.int16(3), np.int16(0))
    lungs[..., : lungs.shape[2] // 2] += (lungs[..., : lungs.shape[2] // 2] > 0).astype(np.int16)
    save(folder / 'seg-lungs-LUNA16' / f'{one.uid}.mhd', lungs, one, compressed=True)
    for rows, path, value in (
      (one.nodules, folder / 'annotations.csv', 'diameter_mm'),
      (one.excluded, tables / 'annotations_excluded.csv', 'diameter_mm'),
      (one.candidates, folder / 'candidates_V2.csv', 'class'),
    ):
      for place, number_of in zip(nodule_scans.centres(rows), rows[value]):
        append(path, one.uid, *place, number_of)
    if masks:
      labels = one.masks.astype(np.uint8)
      labels[labels > 0] = 1 + labels.max() - labels[labels > 0]  # not in the order of the table
      save(folder / 'nodule_masks' / f'{one.uid}.nii.gz', labels, one)
      last = int(one.masks.max())
      kinds += [
        (one.uid, last - row, *texture[kind]) for row, kind in enumerate(one.nodules['kind'])
      ]
  if masks:
    path = folder / 'nodule_masks' / 'nodules.csv'
    write_rows(path, ('seriesuid', 'label', 'texture', 'calcification'), kinds)
  return folder


def fill(folder, *, fields=TWIN, **options):
  """The phantom's scans as a folder of LUNA16: two of train, then validation and test."""
  scans = phantom.scans(data.fields_of(fields))
  uids = [uid for listed in scans.splits.values() for uid in listed]
  return write(folder, [scans.read(uid) for uid in uids], subsets=(0, 3, 8, 9), **options)

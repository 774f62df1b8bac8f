"""Reads scans in the layout of LUNA16 (Setio et al. 2017; CC BY 4.0).

  subset0/ ... subset9/   <series id>.mhd with its .raw; not all ten need to be there
  annotations.csv, annotations_excluded.csv, seriesuids.csv, candidates_V2.csv
                          here, or in evaluationScript/annotations, CSVFILES or candidates_V2
  seg-lungs-LUNA16/       <series id>.mhd; 3 and 4 are the lungs
  nodule_masks/           optional: <series id>.nii.gz (or .nii, .mhd) on the scan's own voxels, its
                          nodules numbered 1 ... n, and nodules.csv with seriesuid, label, texture,
                          calcification

LUNA16 has no nodule masks. The readers' contours are in the XML files of LIDC-IDRI, and `python -m
robustmed.data.chest.lidc_xml` makes nodule_masks of them: the voxels that half of a nodule's
readers chose, and the medians of their ratings. Labels and annotations are brought together by
place. The texture (1 ... 5) says ground glass up to 2, solid from 4, part-solid between; a
calcification below 6 makes a solid nodule a calcified one."""

import functools
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from robustmed import errors
from robustmed.data.chest import nodule_scans
from robustmed.data.files import exams, itk
from robustmed.metrics.froc import luna16
from robustmed.process import files, links

HELP = (
  'unpack subset0.zip ... subset9.zip and seg-lungs-LUNA16.zip of LUNA16 (zenodo 3723295 and '
  '4121926) there, and put annotations.csv, candidates_V2.csv and evaluationScript beside them'
)
LUNGS = (3, 4)  # labels of the left and the right lung
_TABLE_FOLDERS = ('', 'evaluationScript/annotations', 'CSVFILES', 'annotations', 'candidates_V2')
_MASK_SUFFIXES = ('.nii.gz', '.nii', '.mhd')
_CANDIDATES = 'candidates_V2.csv'


class Found(NamedTuple):
  """What is in a folder; scans by id, in order."""

  root: pathlib.Path
  images: Mapping[str, pathlib.Path]
  subset: Mapping[str, int]
  tables: Mapping[str, pathlib.Path]  # file name -> path

  def lung(self, uid: str) -> pathlib.Path:
    return self.root / 'seg-lungs-LUNA16' / f'{uid}.mhd'

  def mask(self, uid: str) -> pathlib.Path | None:
    paths = [self.root / 'nodule_masks' / f'{uid}{suffix}' for suffix in _MASK_SUFFIXES]
    return next((path for path in paths if links.present(self.root, path)), None)

  def kinds(self) -> pathlib.Path | None:
    path = self.root / 'nodule_masks' / 'nodules.csv'
    return path if links.present(self.root, path) else None

  def paths(self, uid: str) -> list[pathlib.Path]:
    """All files of one scan that are there."""
    result = []
    for path in (self.images[uid], self.lung(uid), self.mask(uid)):
      if path is not None and links.present(self.root, path):
        voxels = _voxels(path)
        there = voxels is not None and links.present(self.root, voxels)
        result += [path, voxels] if there else [path]
    return result


class Annotations(NamedTuple):
  """The tables as they stand, their scans counted by `scans`."""

  scans: tuple[str, ...]
  nodules: luna16.Rows
  excluded: luna16.Rows
  candidates: luna16.Rows | None
  kinds: luna16.Columns | None


def find(folder: str, *, candidates: bool = True) -> Found:
  """Returns the scans and tables of a folder; a `UserError` says what is missing.

  candidates: whether candidates_V2.csv must be there.
  """
  root = exams.root_of(folder, help_text=HELP)
  images, subset = {}, {}
  for number in range(10):
    for path in sorted(root.glob(f'subset{number}/*.mhd')):
      links.inside(root, path)
      if path.stem in images:
        raise errors.UserError(f'{path}: subset{subset[path.stem]} has that scan too; remove one')
      images[path.stem], subset[path.stem] = path, number
  if not images:
    raise errors.UserError(f'{root}: has no subset*/*.mhd; {HELP}')
  tables = {}
  for name in ('annotations.csv', 'annotations_excluded.csv', 'seriesuids.csv', _CANDIDATES):
    places = (root / inner / name for inner in _TABLE_FOLDERS)
    path = next((place for place in places if links.present(root, place)), None)
    if path is not None:
      tables[name] = path
    elif candidates or name != _CANDIDATES:
      raise errors.UserError(f'{root}: has no {name}; {HELP}')
  return Found(root, dict(sorted(images.items())), subset, tables)


def annotations(found: Found) -> Annotations:
  """Reads the tables; every scan of the folder must be in seriesuids.csv."""
  paths = (*found.tables.items(), ('nodules.csv', found.kinds()))
  present = tuple((name, path) for name, path in paths if path is not None)
  result = _annotations(present, repr(exams.stamp(path for _, path in present)))
  unknown = [uid for uid in found.images if uid not in set(result.scans)]
  if unknown:
    raise errors.UserError(
      f'{found.images[unknown[0]]}: its series id is not in {found.tables["seriesuids.csv"]}'
    )
  return result


@functools.lru_cache(maxsize=2)
def _annotations(paths, stamp):
  paths = dict(paths)
  scans = luna16.read_scans(paths['seriesuids.csv'])
  candidates = kinds = None
  if _CANDIDATES in paths:
    candidates = luna16.read_rows(paths[_CANDIDATES], 'class', scans)
  if 'nodules.csv' in paths:
    kinds = luna16.read_columns(paths['nodules.csv'], ('label', 'texture', 'calcification'), scans)
  nodules = luna16.read_rows(paths['annotations.csv'], 'diameter_mm', scans, once=True)
  excluded = luna16.read_rows(paths['annotations_excluded.csv'], 'diameter_mm', scans, empty=True)
  _check(nodules.value > 0, nodules, paths['annotations.csv'], 'diameter_mm must be above 0')
  if candidates is not None:
    known = np.isin(candidates.value, (0, 1))
    _check(known, candidates, paths[_CANDIDATES], 'class must be 0 or 1')
  return Annotations(scans, nodules, excluded, candidates, kinds)


def _check(good, rows, path, rule):
  if not good.all():
    first = np.argmin(good)
    raise errors.UserError(f'{path}, row {rows.row[first]}: {rule}, not {rows.value[first]:g}')


def tables(known: Annotations, uid: str) -> nodule_scans.Tables:
  """The tables of one scan; kinds are unknown before the masks are read."""
  number = known.scans.index(uid)

  def part(rows, column, **more):
    mine = rows.scan == number
    return nodule_scans.table(uid, rows.centre[mine], **{column: rows.value[mine]}, **more)

  candidates = None
  if known.candidates is not None:
    candidates = part(known.candidates, 'class').astype({'class': int})
  return nodule_scans.Tables(
    uid,
    part(known.nodules, 'diameter_mm', kind='unknown'),
    part(known.excluded, 'diameter_mm', kind='unknown'),
    candidates,
  )


def masked(found: Found, known: Annotations, uid: str) -> tuple[str, ...]:
  """The kinds of the nodules that the mask file of a scan holds, without reading it.

  A file of which nodules.csv says nothing has nodules of unknown kind.
  """
  if found.mask(uid) is None:
    return ()
  return tuple(_kinds(known, uid).values()) or ('unknown',)


def _kinds(known, uid):
  """Label -> kind of what nodules.csv has of a scan."""
  if known.kinds is None:
    return {}
  mine = known.kinds.scan == known.scans.index(uid)
  columns = (known.kinds.values[name][mine] for name in ('label', 'texture', 'calcification'))
  return {int(label): kind_of(*rest) for label, *rest in zip(*columns)}


def read(found: Found, known: Annotations, uid: str) -> nodule_scans.NoduleScan:
  """Reads one scan; nodules and candidates outside it are a `UserError` with file and row."""
  path = found.images[uid]
  image = itk.volume(path)
  hu = sitk.GetArrayViewFromImage(image)
  if hu.dtype.kind == 'f' and not np.isfinite(hu).all():
    raise errors.UserError(f'{path}: has NaN or infinite values')
  mine = tables(known, uid)
  scan = nodule_scans.NoduleScan(
    uid=uid,
    image=nodule_scans.normalise(hu),
    spacing=image.GetSpacing()[::-1],
    origin=np.array(image.GetOrigin()),
    direction=np.reshape(image.GetDirection(), (3, 3)),
    lung=None,
    nodules=mine.nodules,
    excluded=mine.excluded,
    candidates=mine.candidates,
  )
  for name, rows in (('annotations.csv', known.nodules), (_CANDIDATES, known.candidates)):
    if rows is not None:
      _check_inside(scan, rows, known.scans.index(uid), found.tables[name], path)
  if links.present(found.root, found.lung(uid)):
    lung = sitk.GetArrayFromImage(_like(image, path, found.lung(uid)))
    scan = scan._replace(lung=np.isin(lung, LUNGS))
  if found.mask(uid) is not None:
    labels = sitk.GetArrayFromImage(_like(image, path, found.mask(uid)))
    scan = _with_masks(scan, labels, found.mask(uid), known)
  return scan


def _check_inside(scan, rows, number, table, path):
  mine = np.flatnonzero(rows.scan == number)
  bad = ~nodule_scans.inside(scan, rows.centre[mine], scan.image.shape)
  if bad.any():
    first = mine[np.argmax(bad)]
    place = ', '.join(f'{value:g}' for value in rows.centre[first])
    raise errors.UserError(
      f'{table}, row {rows.row[first]}: ({place}) lies outside the scan {path.name} of '
      f'{list(scan.image.shape)} voxels; correct the row or copy the scan again'
    )


def _with_masks(scan, labels, path, known):
  whole = labels.dtype.kind != 'f' or (labels == np.round(labels)).all()
  if not whole or labels.min() < 0:
    raise errors.UserError(f'{path}: must have the whole numbers 0 (no nodule), 1, 2, ...')
  labels = labels.astype(np.int64)
  order = np.zeros(labels.max() + 1, np.int16)
  kinds, found = _kinds(known, scan.uid), []
  for row, (centre, diameter) in enumerate(
    zip(nodule_scans.centres(scan.nodules), scan.nodules['diameter_mm'])
  ):
    label = _label_at(labels, scan, centre, diameter)
    if label and not order[label]:
      order[label] = row + 1
    found.append(kinds.get(label, 'unknown'))
  return scan._replace(masks=order[labels], nodules=scan.nodules.assign(kind=found))


def kind_of(texture: float, calcification: float) -> str:
  """The kind of a nodule by the LIDC scales, see the module's docstring."""
  if texture <= 2:
    return 'ground_glass'
  if texture < 4:
    return 'part_solid'
  return 'calcified' if calcification < 6 else 'solid'


def _label_at(labels, scan, centre, diameter):
  """The label nearest to an annotation, within its radius and a voxel; 0 if there is none."""
  voxel = nodule_scans.to_voxel(scan, centre[None])[0]
  reach = diameter / 2 + max(scan.spacing)
  steps = np.ceil(reach / np.array(scan.spacing))
  low = np.maximum(0, np.floor(voxel - steps)).astype(int)
  part = labels[tuple(slice(a, int(b) + 1) for a, b in zip(low, np.ceil(voxel + steps)))]
  places = np.argwhere(part)
  if not len(places):
    return 0
  away = np.linalg.norm((places + low - voxel) * scan.spacing, axis=1)
  nearest = int(np.argmin(away))
  return int(part[tuple(places[nearest])]) if away[nearest] <= reach else 0


def _like(image, path, other):
  """Another volume on the voxels of `image`."""
  volume = itk.volume(other)
  close = all(
    np.allclose(one, two, atol=1e-3)
    for one, two in (
      (volume.GetSpacing(), image.GetSpacing()),
      (volume.GetDirection(), image.GetDirection()),
      (volume.GetOrigin(), image.GetOrigin()),
    )
  )
  if volume.GetSize() != image.GetSize() or not close:
    raise errors.UserError(f'{other}: lies on other voxels than {path}')
  return volume


def _voxels(path):
  """The file of voxels that an .mhd names; None for other formats and for voxels inside."""
  if path.suffix != '.mhd':
    return None
  with files.regular(path).open('rb') as file:
    text = file.read(4096).decode('latin-1')
  names = re.findall(r'^\s*ElementDataFile\s*=\s*(\S.*?)\s*$', text, re.MULTILINE)
  if not names:
    raise errors.UserError(f'{path}: names no ElementDataFile; damaged, copy it again')
  return None if names[-1].upper() == 'LOCAL' else path.parent / names[-1]

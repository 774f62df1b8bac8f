"""Nodule masks for LUNA16 from the contours of LIDC-IDRI (Armato et al. 2011; CC BY 3.0).

  python -m robustmed.data.chest.lidc_xml --xml LIDC-XML-only --luna FOLDER

LUNA16 has no nodule masks. Its scans are those of LIDC-IDRI, where up to four readers have drawn
around every nodule of 3 mm or more; LIDC-XML-only.zip of the archive has their contours without the
images. The command writes FOLDER/nodule_masks as `luna16_files` reads it: for every scan of the
folder `<series id>.nii.gz`, its nodules numbered 1 ... n, and nodules.csv with the medians of
texture and calcification over its readers.

A contour runs over the first pixels outside the nodule, so the mask is what lies inside it, as in
pylidc; a contour with inclusion FALSE is a hole. Nodules of different readers are one if their
contours are at most a slice apart. The mask is the voxels that half or more of its readers chose.
"""

import csv
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse.csgraph
import scipy.spatial
import SimpleITK as sitk
import skimage.draw

from robustmed import errors
from robustmed.data.chest import luna16_files, nodule_scans
from robustmed.data.files import itk, xml
from robustmed.process import console, files, links, tool

CONSENSUS = 0.5
READERS = 4
_SCALES = {'texture': (1, 5), 'calcification': (1, 6)}


class Outline(NamedTuple):
  """One contour: the slice's world z in millimetres, and pixels [n, 2] (column, row)."""

  z: float
  points: np.ndarray
  inclusion: bool


class Reading(NamedTuple):
  """A nodule of 3 mm or more as one reader has drawn it; a rating not given is None."""

  where: str  # file, session and nodule, for messages
  outlines: tuple[Outline, ...]
  texture: float | None
  calcification: float | None


class Grid(NamedTuple):
  """Where the voxels of a scan lie; see `nodule_scans.NoduleScan`."""

  shape: tuple[int, int, int]
  spacing: tuple[float, float, float]
  origin: np.ndarray
  direction: np.ndarray


class Region(NamedTuple):
  """A mask within a box of voxels; `low` (z, y, x) is the box's first one."""

  low: np.ndarray
  mask: np.ndarray


class Nodule(NamedTuple):
  region: Region
  texture: float | None  # medians over the readers
  calcification: float | None


# Files --------------------------------------------------------------------------------------------


def parse(path: pathlib.Path) -> tuple[str, tuple[Reading, ...]] | None:
  """Returns the series id and the nodules of one file; None for a chest radiograph's file.

  Document types and entities are refused. Marks of a single point, nodules below 3 mm, are left
  out.
  """
  root = xml.read(path, kind='a file of LIDC-IDRI')
  for node in root.iter():
    node.tag = node.tag.rpartition('}')[2]
  if root.tag != 'LidcReadMessage':
    return None
  header = root.find('ResponseHeader')
  names = ('SeriesInstanceUid', 'SeriesInstanceUID')
  uid = '' if header is None else next(filter(None, map(header.findtext, names)), '').strip()
  if not uid:
    raise errors.UserError(f'{path}: names no SeriesInstanceUid; damaged, copy it again')
  readings = []
  for number, session in enumerate(root.findall('readingSession'), start=1):
    for node in session.findall('unblindedReadNodule'):
      name = (node.findtext('noduleID') or '').strip()
      found = _reading(node, f'{path}: session {number}, nodule {name!r}')
      readings += [found] if found.outlines else []
  return uid, tuple(readings)


def _reading(node, where):
  outlines = []
  for roi in node.findall('roi'):
    place = f'{where}: roi'
    edges = roi.findall('edgeMap')
    points = [
      [xml.number(edge, key, where=place) for key in ('xCoord', 'yCoord')] for edge in edges
    ]
    inclusion = (roi.findtext('inclusion') or '').strip().upper()
    if inclusion not in ('TRUE', 'FALSE'):
      raise errors.UserError(f'{place}: inclusion is {inclusion!r}, neither TRUE nor FALSE')
    if len(points) > 2:
      z = xml.number(roi, 'imageZposition', where=place)
      outlines.append(Outline(z, np.array(points), inclusion == 'TRUE'))
  ratings = {}
  for name, (low, high) in _SCALES.items():
    given = (node.findtext(f'characteristics/{name}') or '').strip()
    ratings[name] = xml.number(node, f'characteristics/{name}', where=where) if given else None
    if given and not low <= ratings[name] <= high:
      raise errors.UserError(f'{where}: {name} is {given}, not in {low} ... {high}')
  return Reading(where, tuple(outlines), **ratings)


def read_grid(path: pathlib.Path) -> Grid:
  """Returns where the voxels of a scan lie; the voxels themselves are not read."""
  reader = itk.grid(path)
  return Grid(
    shape=tuple(reader.GetSize()[::-1]),
    spacing=tuple(reader.GetSpacing()[::-1]),
    origin=np.array(reader.GetOrigin()),
    direction=np.reshape(reader.GetDirection(), (3, 3)),
  )


# Masks --------------------------------------------------------------------------------------------


def region_of(reading: Reading, grid: Grid) -> Region | None:
  """Returns what lies strictly within a reader's contours; None where that is no voxel.

  Each contour belongs to the slice nearest to its z. A contour beyond the scan is a `UserError`.
  """
  step = grid.direction[2, 2] * grid.spacing[0]
  slices = [round((outline.z - grid.origin[2]) / step) for outline in reading.outlines]
  for place, outline in zip(slices, reading.outlines):
    low, high = outline.points.min(axis=0), outline.points.max(axis=0)
    if min(*low, place) < 0 or place >= grid.shape[0] or (high >= grid.shape[:0:-1]).any():
      raise errors.UserError(
        f'{reading.where}: its contour at z = {outline.z:g} lies outside the scan of '
        f'{list(grid.shape)} voxels; these are not the contours of this scan'
      )
  rows = np.concatenate([outline.points[:, ::-1] for outline in reading.outlines])
  low = np.array([min(slices), *np.floor(rows.min(axis=0))]).astype(int)
  high = np.array([max(slices), *np.ceil(rows.max(axis=0))]).astype(int) + 1
  mask = np.zeros(high - low, bool)
  for inclusion in (True, False):
    for place, outline in zip(slices, reading.outlines):
      if outline.inclusion == inclusion:
        mask[place - low[0]][_within(outline.points[:, ::-1] - low[1:], mask.shape[1:])] = inclusion
  return Region(low, mask) if mask.any() else None


def _within(points, shape):
  """Pixels strictly within the polygon [n, 2] (row, column), [*shape] bool."""
  inside = skimage.draw.polygon2mask(shape, points)
  edge = np.zeros(shape, bool)
  whole = np.round(points).astype(int)
  for one, two in zip(whole, np.roll(whole, -1, axis=0)):
    edge[skimage.draw.line(*one, *two)] = True
  return inside & ~edge


def groups(readings: Sequence[Reading], grid: Grid) -> list[list[int]]:
  """Returns the places of the readings that are of one nodule each.

  Two are if their contours come within a slice of each other; where that joins more than the
  readers there are, ever nearer ones are asked for.
  """
  in_mm = lambda outline: np.insert(outline.points * grid.spacing[:0:-1], 2, outline.z, axis=1)
  places = [np.concatenate([*map(in_mm, reading.outlines)]) for reading in readings]
  trees = [scipy.spatial.cKDTree(points) for points in places]
  away = np.zeros((len(trees),) * 2)
  for one in range(len(trees)):
    for two in range(one):
      away[one, two] = away[two, one] = trees[one].query(places[two])[0].min()
  labels = np.zeros(0, int)
  for reach in np.geomspace(grid.spacing[0], 0.1, 20):
    labels = scipy.sparse.csgraph.connected_components(away <= reach)[1]
    if (np.bincount(labels) <= READERS).all():
      break
  return [np.flatnonzero(labels == label).tolist() for label in range(labels.max(initial=-1) + 1)]


def consensus(regions: Sequence[Region]) -> Region | None:
  """Returns the voxels that `CONSENSUS` or more of the regions have; None if there are none."""
  low = np.min([region.low for region in regions], axis=0)
  high = np.max([region.low + region.mask.shape for region in regions], axis=0)
  votes = np.zeros(high - low, int)
  for region in regions:
    start = region.low - low
    votes[tuple(slice(a, a + n) for a, n in zip(start, region.mask.shape))] += region.mask
  mask = votes >= CONSENSUS * len(regions)
  return Region(low, mask) if mask.any() else None


def nodules_of(readings: Sequence[Reading], grid: Grid) -> list[Nodule]:
  """Returns the nodules of one scan."""
  pairs = [(reading, region_of(reading, grid)) for reading in readings]
  drawn = [(reading, region) for reading, region in pairs if region is not None]
  found = []
  for members in groups([reading for reading, _ in drawn], grid):
    region = consensus([drawn[place][1] for place in members])
    if region is not None:
      mine = [drawn[place][0] for place in members]
      ratings = (_median([getattr(one, name) for one in mine]) for name in _SCALES)
      found.append(Nodule(region, *ratings))
  return found


def _median(values):
  known = [value for value in values if value is not None]
  return statistics.median(known) if known else None


# The command --------------------------------------------------------------------------------------


def convert(xml: pathlib.Path, luna: pathlib.Path) -> None:
  """Writes nodule_masks of the LUNA16 folder `luna` from the files below the folder `xml`.

  Every file is read before anything is written; a table of an earlier call is replaced.
  """
  found = luna16_files.find(str(luna), candidates=False)
  known = luna16_files.annotations(found._replace(root=found.root / 'nowhere'))  # no nodules.csv
  contours = _all(xml, found.images)
  folder, rows = found.root / 'nodule_masks', []
  progress, annotated, matched = console.Progress('nodule masks', len(contours)), 0, 0
  for number, (uid, readings) in enumerate(contours.items(), start=1):
    grid = read_grid(found.images[uid])
    nodules = nodules_of(readings, grid)
    labels = np.zeros(grid.shape, np.uint8 if len(nodules) < 256 else np.uint16)
    for label, nodule in enumerate(nodules, start=1):
      box = tuple(slice(a, a + n) for a, n in zip(nodule.region.low, nodule.region.mask.shape))
      labels[box][nodule.region.mask & (labels[box] == 0)] = label
      if nodule.texture is not None and nodule.calcification is not None:
        rows.append((uid, label, nodule.texture, nodule.calcification))
    if nodules:
      _save(folder / f'{uid}.nii.gz', labels, grid)
    tables = luna16_files.tables(known, uid)
    annotated, matched = annotated + len(tables.nodules), matched + _matched(tables, nodules, grid)
    progress.update(number, f'{matched} of {annotated} annotated nodules')
  progress.close()
  with files.replacing(folder / 'nodules.csv') as temporary, temporary.open('w', newline='') as out:
    csv.writer(out).writerows([('seriesuid', 'label', *_SCALES), *rows])
  missing = len(found.images) - len(contours)
  console.say(
    f'masks of {matched} of the {annotated} annotated nodules of {len(contours)} scans in {folder}'
    + (f'; {missing} scans have no file of contours' if missing else '')
  )
  if matched < annotated / 2:
    console.say('warning: most annotations lie in no mask; are these the contours of these scans?')


def _all(xml, images):
  """The readings of the scans in `images` by series id."""
  found = links.walk(xml, endings=('.xml',)) if xml.is_dir() else []
  paths = [links.inside(xml, path) for path in found if path.suffix == '.xml']
  if not paths:
    raise errors.UserError(f'{xml}: has no *.xml; unpack LIDC-XML-only.zip of LIDC-IDRI there')
  contours, source = {}, {}
  for path in paths:
    parsed = parse(path)
    if parsed is None or parsed[0] not in images:
      continue
    uid, readings = parsed
    if uid in contours:
      raise errors.UserError(f'{path}: {source[uid]} is of the same series; remove one')
    contours[uid], source[uid] = readings, path
  if not contours:
    raise errors.UserError(f'{xml}: none of its {len(paths)} files is of a scan of the folder')
  return dict(sorted(contours.items()))


def _save(path, labels, grid):
  image = sitk.GetImageFromArray(labels)
  image.SetSpacing(grid.spacing[::-1])
  image.SetOrigin(grid.origin.tolist())
  image.SetDirection(grid.direction.ravel().tolist())
  with files.replacing(path) as temporary:
    whole = temporary.with_suffix('.nii.gz')  # the format goes by the ending
    sitk.WriteImage(image, str(whole), useCompression=True)
    whole.replace(temporary)


def _matched(tables, nodules, grid):
  """Annotations within whose radius, and a voxel, the middle of a mask lies."""
  middles = [np.argwhere(one.region.mask).mean(axis=0) + one.region.low for one in nodules]
  world = nodule_scans.to_world(grid, np.reshape(middles, (-1, 3)))
  away = np.linalg.norm(nodule_scans.centres(tables.nodules)[:, None] - world, axis=-1)
  reach = tables.nodules['diameter_mm'].to_numpy(float) / 2 + max(grid.spacing)
  return int((away <= reach[:, None]).any(axis=1).sum())


def _run(words):
  parser = tool.Parser(
    prog='python -m robustmed.data.chest.lidc_xml',
    description='Nodule masks for a folder of LUNA16 from the contours of LIDC-IDRI.',
    allow_abbrev=False,
  )
  folder = {'type': pathlib.Path, 'required': True, 'metavar': 'DIR'}
  parser.add_argument('--xml', **folder, help='folder of LIDC-XML-only.zip, unpacked')
  parser.add_argument('--luna', **folder, help='folder of LUNA16; its nodule_masks is written')
  given = parser.parse_args(list(words))
  convert(given.xml.expanduser(), given.luna.expanduser())
  return 0


def main(words: Sequence[str]) -> int:
  """Runs the command; a user's mistake is one line on stderr and exit code 2."""
  return tool.run(_run, words)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

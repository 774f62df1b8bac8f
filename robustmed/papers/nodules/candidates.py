"""Candidates of nodules in whole scans: maxima of heat maps, boxes, and the union of both.

Liu et al. 2020, 'No Surprises', section 3.1: the heat maps of two networks, one of them tuned to
ground glass, are fused by the larger value; their maxima and the boxes of a third network are the
candidates, at most 100 a scan.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from scipy import ndimage

from robustmed import errors, types
from robustmed.data.chest import nodule_scans
from robustmed.metrics import froc
from robustmed.metrics.froc import volume_boxes
from robustmed.process import parallel
from robustmed.tasks import proposals, sliding

PyTree = Any
COLUMNS = ('seriesuid', 'coordX', 'coordY', 'coordZ', 'probability')
LIMIT = froc.MAX_MARKS  # a scan
_PER_TILE = 100  # boxes


class Candidates(NamedTuple):
  """Points of one scan in cells, in the order of its axes; the best first."""

  centre: np.ndarray  # [n, rank]
  score: np.ndarray  # [n], in [0, 1]


class Settings(NamedTuple):
  """How a scan is searched; lengths in cells of the scan."""

  patch: tuple[int, ...]  # of a tile
  step: float = 0.5  # from tile to tile, in patches
  batch_size: int = 1  # tiles; rounded up to the devices
  distance: float = 4.0  # closer candidates are one
  threshold: float = 0.05  # no maxima below
  iou: float = 0.1  # boxes that overlap more are one
  sides: tuple[float, ...] = proposals.SIDES  # of the anchors
  limit: int = LIMIT


class Finder:
  """The programs of the candidate networks, for scans of any size and any weights.

  Every device gets some of the tiles; with several hosts all of them search the same scans.
  """

  def __init__(
    self, heat: types.Task | None, boxes: types.Task | None = None, *, settings: Settings
  ):
    if heat is None and boxes is None:
      raise errors.UserError('candidates need a network for heat maps or one for boxes')
    self._settings = settings
    self._size = parallel.round_up(settings.batch_size)
    self._heat = heat and _program(lambda v, x: jax.nn.sigmoid(heat.predict(v, x)['heat']))
    self._boxes = boxes and _program(
      lambda v, x: proposals.decode(
        boxes.predict(v, x)['boxes'],
        grid=tuple(settings.patch),
        sides=tuple(settings.sides),
        limit=_PER_TILE,
      )
    )

  def heat(self, scan: np.ndarray, networks: Sequence[PyTree]) -> np.ndarray:
    """The larger of the networks' probabilities, [*scan]; `networks` are their variables."""
    if self._heat is None or not networks:
      raise errors.UserError('a heat map needs its network and variables')
    return fused(
      sliding.stitch(
        self._tiles(self._heat, variables, scan), size=scan.shape, patch=self._settings.patch
      )[..., 0]
      for variables in networks
    )

  def boxes(self, scan: np.ndarray, variables: PyTree) -> Candidates:
    """The boxes of all tiles, of those that overlap the best one alone."""
    if self._boxes is None:
      raise errors.UserError('boxes need their network')
    found = [
      (tile.outputs.centre + tile.corner, tile.outputs.size, tile.outputs.score)
      for tile in self._tiles(self._boxes, variables, scan)
    ]
    centre, size, score = map(np.concatenate, zip(*found, strict=True))
    inside = np.all((centre >= -0.5) & (centre <= np.array(scan.shape) - 0.5), axis=-1)
    inside &= score >= self._settings.threshold
    centre, size, score = centre[inside], size[inside], score[inside]
    near = volume_boxes.by_overlap(centre, size, self._settings.iou)
    kept = volume_boxes.nms(score, near, limit=self._settings.limit)
    return Candidates(centre[kept], score[kept])

  def __call__(
    self, scan: np.ndarray, *, heat: Sequence[PyTree] = (), boxes: PyTree = None
  ) -> Candidates:
    """The candidates of a scan [*spatial] by heat maps, by boxes, or by both (`union`)."""
    return self.joined(self.parts(scan, heat=heat, boxes=boxes))

  def parts(
    self, scan: np.ndarray, *, heat: Sequence[PyTree] = (), boxes: PyTree = None
  ) -> dict[str, Candidates]:
    """The candidates of a scan by each kind of network, 'heat' and 'boxes'."""
    settings, parts = self._settings, {}
    if heat:
      parts['heat'] = maxima(
        self.heat(scan, heat),
        distance=settings.distance,
        threshold=settings.threshold,
        limit=settings.limit,
      )
    if boxes is not None:
      parts['boxes'] = self.boxes(scan, boxes)
    if not parts:
      raise errors.UserError('candidates need the variables of a network')
    return parts

  def joined(self, parts: Mapping[str, Candidates]) -> Candidates:
    """The `union` of the candidates of each kind."""
    settings = self._settings
    return union(list(parts.values()), distance=settings.distance, limit=settings.limit)

  def _tiles(self, program, variables, scan):
    return sliding.tiles(
      lambda windows: program(variables, windows),
      np.asarray(scan, np.float32)[..., None],
      patch=self._settings.patch,
      step=self._settings.step,
      batch_size=self._size,
    )


def _program(function: Callable[[PyTree, jax.Array], PyTree]):
  return parallel.each_device(function, split=(1,))


def fused(heats) -> np.ndarray:
  """The element-wise maximum of heat maps."""
  first, *others = heats
  for heat in others:
    first = np.maximum(first, heat)
  return first


def maxima(
  heat: np.ndarray, *, distance: float, threshold: float, limit: int | None = LIMIT
) -> Candidates:
  """Cells of heat [*grid] that no cell closer than `distance` exceeds, those of a plateau once.

  At most `limit` that are at least `threshold`, the highest first.
  """
  reach = int(np.ceil(distance)) - 1
  offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * heat.ndim, indexing='ij'))
  ball = np.sum(offsets**2, axis=0) < distance**2
  top = ndimage.maximum_filter(heat, footprint=ball, mode='constant', cval=-np.inf)
  cells = np.argwhere((heat == top) & (heat >= threshold))
  score = heat[tuple(cells.T)]
  near = volume_boxes.by_distance(cells, distance)
  kept = volume_boxes.nms(score, near, limit=limit)
  return Candidates(cells[kept].astype(np.float64), score[kept])


def union(parts: Sequence[Candidates], *, distance: float, limit: int | None = LIMIT) -> Candidates:
  """Candidates of several kinds in turn: the best of each, the second best of each, and so on.

  Their scores need not be comparable. One closer than `distance` to one before it is left out. The
  result is sorted by score.
  """
  rank = np.concatenate([np.argsort(np.argsort(-part.score, kind='stable')) for part in parts])
  centre = np.concatenate([part.centre for part in parts])
  score = np.concatenate([part.score for part in parts])
  near = volume_boxes.by_distance(centre, distance)
  kept = volume_boxes.nms(-rank.astype(np.float64), near, limit=limit)
  kept = kept[np.argsort(-score[kept], kind='stable')]
  return Candidates(centre[kept], score[kept])


def in_world(found: Candidates, scan: Any) -> Candidates:
  """The same with centres (x, y, z) in mm; `scan`: the `nodule_scans.NoduleScan` searched."""
  return found._replace(centre=nodule_scans.to_world(scan, found.centre))


def submission(scans: Mapping[str, Candidates], *, limit: int = LIMIT) -> pd.DataFrame:
  """A submission to LUNA16, which `python -m robustmed.metrics.froc` scores.

  {series id: candidates}, whose centres are those of `in_world` and whose scores are the
  probabilities to be judged; the `limit` best of each scan. NaN is a `UserError`.
  """
  tables = [pd.DataFrame(columns=COLUMNS)]
  for series, found in scans.items():
    if not np.isfinite(found.score).all() or not np.isfinite(found.centre).all():
      raise errors.UserError(f'candidates of {series}: a probability or coordinate is not finite')
    kept = np.argsort(-found.score, kind='stable')[:limit]
    x, y, z = found.centre[kept].T
    row = dict(zip(COLUMNS, (series, x, y, z, found.score[kept]), strict=True))
    tables.append(pd.DataFrame(row))
  return pd.concat([t for t in tables if len(t)] or tables, ignore_index=True)

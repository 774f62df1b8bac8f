"""NSD and HD95 of label maps, per class: columns of the rows, computed on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed.data.labelled import study as studies
from robustmed.evaluation import grid
from robustmed.metrics import surface

TOLERANCE_MM = 2.0
METRICS = ('NSD', 'HD95')


class Plan(NamedTuple):
  """How distances are measured."""

  tolerance: float  # of NSD
  unit: str  # mm, or pixels where a file has no spacing
  whole: bool  # of whole cases, else of slices, of which a case has the mean

  @property
  def words(self) -> str:
    of = 'whole cases' if self.whole else 'single slices, of which a case has the mean'
    unit = self.unit if self.tolerance != 1 else self.unit.removesuffix('s')
    return f'{of}, in {self.unit}, tolerance of NSD {self.tolerance:g} {unit}'


def plan(found: studies.Study, cases: Sequence[int], *, tolerance: float = 0.0) -> Plan:
  """Returns how distances are measured of examples of these `cases`, one entry per example.

  tolerance 0: 2 mm, or 1 pixel where a file has no spacing. Slices are put together to cases where
  all slices of all cases are there.
  """
  unit = 'mm' if all(one.spacing for one in found.surveys) else 'pixels'
  numbers, counts = np.unique(np.asarray(cases, int), return_counts=True)
  whole = all(found.grids[n].slices == count for n, count in zip(numbers, counts))
  return Plan(tolerance or (TOLERANCE_MM if unit == 'mm' else 1.0), unit, whole)


def host_metrics(found: studies.Study, names: Sequence[str], how: Plan) -> grid.HostMetrics:
  """Returns the columns NSD_<name>, HD95_<name> and their means over classes, NSD and HD95.

  A class that neither labels nor prediction show is nan; where one of the two has none, NSD is 0
  and HD95 the diagonal of the image. Means are over the classes that the labels show; where they
  show none, NSD is 1 if nothing is found, else 0, and HD95 nan. Pixels that do not count are
  background.
  """
  masks = list(found.regions.values()) or [(k,) for k in range(1, len(names) + 1)]
  kind = np.uint8 if len(found.classes) < 256 else np.int32
  reduced = jax.jit(lambda logits: jnp.argmax(logits, axis=-1).astype(kind))

  def kept(outputs, batch):
    target = batch['target']
    wanted = {
      name: target[name] for name in ('labels', 'case', 'slice', 'counted') if name in target
    }
    return {'found': reduced(outputs['head0']), **wanted}

  def one(kept, rows):
    number = int(kept['case'][rows[0]])
    maps = [np.maximum(kept[name][rows], 0) for name in ('found', 'labels')]
    if 'counted' in kept:
      maps = [np.where(kept['counted'][rows], array, 0) for array in maps]
    if how.whole and found.axes < found.spatial:
      order = np.argsort(kept['slice'][rows])
      maps = [np.moveaxis(array[order], 0, found.axis) for array in maps]
      spacing = np.insert(found.grids[number].spacing, found.axis, _across(found, number))
    else:
      maps, spacing = [array[0] for array in maps], found.grids[number].spacing
    if how.unit != 'mm':
      spacing = np.ones(maps[0].ndim)
    inside = [[np.isin(array, several) for several in masks] for array in maps]
    return [(*_pair(*both, spacing, how.tolerance), both[1].any()) for both in zip(*inside)]

  def columns(kept):
    count = len(kept['case'])
    rows = [np.array([n]) for n in range(count)]
    if how.whole:
      rows = [np.flatnonzero(kept['case'] == number) for number in np.unique(kept['case'])]
    values = np.full((count, len(names), 3), np.nan)
    for places in rows:
      values[places] = np.array(one(kept, places))
    nothing = np.isnan(values[..., 0]).all(axis=1)
    known = np.where(values[..., 2:] > 0, values[..., :2], np.nan)
    total, shown = np.nansum(known, axis=1), (values[..., 2] > 0).sum(axis=1)
    means = np.where(shown[:, None], total / np.maximum(shown, 1)[:, None], np.nan)
    means[:, 0] = np.where(shown, means[:, 0], nothing)
    made = dict(zip(METRICS, means.T))
    for n, metric in enumerate(METRICS):
      made |= {f'{metric}_{name}': values[:, k, n] for k, name in enumerate(names)}
    return made

  return grid.HostMetrics(kept, columns)


def _across(found, number) -> float:
  """The distance of neighbouring slices."""
  spacing = found.surveys[number].spacing
  return spacing[found.axis] if spacing else 1.0


def _pair(predicted, true, spacing, tolerance) -> tuple[float, float]:
  if not predicted.any() and not true.any():
    return np.nan, np.nan
  return surface.pair(predicted, true, spacing=spacing, tolerance=tolerance)

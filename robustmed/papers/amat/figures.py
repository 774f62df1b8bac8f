"""Figures of adaptive-margin training, drawn as PNG bytes from plain arrays and frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from robustmed.report import figures

BLUE, ORANGE, GREY = '#0072B2', '#D55E00', '#999999'
MOST_COLUMNS = 3  # of histograms side by side
DECADES = 30.0  # largest over smallest value from which an axis is logarithmic


class Sample(NamedTuple):
  """Clean values V of one term and stratum, and their threshold."""

  title: str
  values: np.ndarray
  threshold: float


def clean_values(samples: Sequence[Sample], *, what: str) -> bytes:
  """Histograms of clean values V with the normal of equal mean and deviation, and thresholds."""
  columns = min(len(samples), MOST_COLUMNS)
  rows = -(-len(samples) // columns)
  figure = figures.blank(4.6 * columns, 3.4 * rows)
  grid = np.ravel(figure.subplots(rows, columns))
  for axes in grid[len(samples) :]:
    axes.set_axis_off()
  for axes, (title, values, threshold) in zip(grid, samples):
    axes.hist(values, bins=40, density=True, color=BLUE, alpha=0.6)
    deviation = float(np.std(values))
    if deviation > 0:
      x = np.linspace(values.min(), values.max(), 200)
      axes.plot(x, scipy.stats.norm.pdf(x, np.mean(values), deviation), color=ORANGE, lw=1.6)
    axes.axvline(threshold, color='black', ls='--', lw=1.2)
    axes.set(title=f'{title}: threshold {threshold:.3g} (dashed)', xlabel=f'clean {what} V of STD')
    axes.set_ylabel('density (orange: normal)')
    axes.spines[['top', 'right']].set_visible(False)
  return figures.png(figure)


def margins(table: pd.DataFrame) -> bytes | None:
  """Share of the drawn training examples by margin over the steps, with their mean.

  The axis is logarithmic where margins lie more than `DECADES` apart.
  """
  bins = [name for name in table.columns if name.startswith('from_')]
  if table.empty or not bins:
    return None
  edges = np.array([float(name.removeprefix('from_')) for name in bins])
  counts = table[bins].to_numpy(float)
  counts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  used = np.flatnonzero(counts.sum(axis=0))
  first, last = max(used.min() - 1, 0), min(used.max() + 2, len(edges))
  width = edges[1] - edges[0] if len(edges) > 1 else 1.0
  figure = figures.blank(6.6, 3.6)
  axes = figure.subplots()
  steps = table['step'].to_numpy(float)
  smallest = table['min'][table['min'] > 0].min()  # nan: none is above 0
  borders = np.concatenate([steps, [steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]])
  # Most margins are multiples of the bins' width, so they lie at the lower edge of their bin.
  sides = np.concatenate([edges[first:last], [edges[last - 1] + width]]) - width / 2
  sides[0] = max(sides[0], 0.0)
  if table['max'].max() > DECADES * smallest:
    axes.set_yscale('log')
    if sides[0] <= 0:  # a logarithmic axis has no 0
      sides[0] = min(smallest, sides[1] / 2)
  mesh = axes.pcolormesh(borders, sides, counts[:, first:last].T, cmap='Blues', vmin=0, vmax=1)
  axes.plot(steps, table['mean'], color=ORANGE, lw=1.8, label='mean margin')
  axes.set(xlabel='training step', ylabel='margin (L2)')
  axes.legend(loc='upper left', frameon=False)
  figure.colorbar(mesh, ax=axes, label='share of the drawn examples')
  return figures.png(figure)

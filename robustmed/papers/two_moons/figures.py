"""Fig. 7 of Liu et al. 2020: p(positive) in the plane, and the points it was learnt from."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.lines
import numpy as np

from robustmed.report import figures

NEGATIVE, POSITIVE = '#0072B2', '#D55E00'
COLUMNS = 3
WIDEST = 40  # characters of a title's line, which is to stay above its panel


def panels(
  stored: Mapping[str, np.ndarray], *, arms: Sequence[tuple[str, str]], box
) -> bytes | None:
  """One panel for each (arm, title) that is there; the line is p = 0.5.

  stored: 'arm' [n], 'probability' [n, rows, columns] with y from below, 'xy' [n, points, 2], nan
  where an arm has fewer, 'label' and 'added' [n, points].
  """
  names = stored['arm'].tolist()
  arms = [(arm, title) for arm, title in arms if arm in names]
  if not arms:
    return None
  rows = -(-len(arms) // COLUMNS)
  figure = figures.blank(11.4, 3.55 * rows + 0.7, dpi=110)
  grid = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True)
  (left, right), (below, above) = box
  for axes, (arm, title) in zip(grid.flat, arms):
    at = names.index(arm)
    mesh = axes.imshow(
      stored['probability'][at],
      origin='lower',
      extent=(left, right, below, above),
      cmap='RdBu_r',
      vmin=0,
      vmax=1,
      interpolation='bilinear',
      aspect='auto',
    )
    _line(axes, stored['probability'][at], box)
    _points(axes, *(stored[name][at] for name in ('xy', 'label', 'added')))
    axes.set_title(textwrap.fill(title, WIDEST), fontsize=10, loc='left')
    axes.set(xlim=(left, right), ylim=(below, above))
  for axes in list(grid.flat)[len(arms) :]:
    axes.set_visible(False)
  bar = figure.colorbar(mesh, ax=grid, shrink=0.8, pad=0.01)
  bar.set_label('p(positive)')
  figures.legend(figure, _handles(), columns=5)
  return figures.png(figure)


def _line(axes, probability, box):
  if not probability.min() < 0.5 < probability.max():
    return
  (left, right), (below, above) = box
  height, width = probability.shape
  # Pixels are the centres of equal cells of the box.
  x = left + (np.arange(width) + 0.5) * (right - left) / width
  y = below + (np.arange(height) + 0.5) * (above - below) / height
  axes.contour(x, y, probability, levels=[0.5], colors='black', linewidths=1.3)


def _points(axes, xy, label, added):
  known = np.isfinite(xy[:, 0])
  for value, colour in ((0, NEGATIVE), (1, POSITIVE)):
    real, more = (known & (label == value) & (added == flag) for flag in (False, True))
    size = 7 if real.sum() > 100 else 20
    axes.scatter(*xy[real].T, s=size, c=colour, edgecolors='white', linewidths=0.3)
    axes.scatter(*xy[more].T, s=24, c=colour, marker='^', edgecolors='black', linewidths=0.6)


def _handles():
  line = matplotlib.lines.Line2D
  plain = {'ls': '', 'mec': 'white', 'ms': 7}
  more = {'ls': '', 'mec': 'black', 'marker': '^', 'ms': 7}
  return [
    line([], [], marker='o', color=NEGATIVE, label='negative', **plain),
    line([], [], marker='o', color=POSITIVE, label='positive', **plain),
    line([], [], color=NEGATIVE, label='added negative', **more),
    line([], [], color=POSITIVE, label='added positive', **more),
    line([], [], color='black', lw=1.3, label='p = 0.5'),
  ]

"""Pictures of landmarks and boxes, and curves of a metric of the whole test set, as PNG bytes."""

from collections.abc import Mapping, Sequence

import matplotlib.lines
import matplotlib.patches
import numpy as np
import pandas as pd

from robustmed.report import figures


def landmarks(stored: Mapping[str, np.ndarray]) -> bytes:
  """One row per stored example: clean and attacked, true points with lines to the found ones."""

  def draw(axes, place, suffix):
    true, found = stored['points_true'][place], stored[f'points_{suffix}'][place]
    for one, other in zip(true, found, strict=True):
      axes.plot(*zip(one, other), color=figures.PREDICTED, lw=1.0)
    axes.plot(*true.T, 'o', color=figures.TRUE, ms=3)
    axes.plot(*found.T, 'x', color=figures.PREDICTED, ms=3)
    apart = (found - true) * stored['scale'][place]
    return f'MRE {np.linalg.norm(apart, axis=-1).mean():.1f} mm'

  line = matplotlib.lines.Line2D
  return _pairs(
    stored,
    draw,
    [
      line([], [], color=figures.TRUE, marker='o', ls='', label='true'),
      line([], [], color=figures.PREDICTED, marker='x', label='found'),
    ],
  )


def boxes(stored: Mapping[str, np.ndarray], *, classes: Sequence[str]) -> bytes:
  """One row per stored example: clean and attacked, true boxes white, found ones by class."""

  def draw(axes, place, suffix):
    for box in _known(stored['boxes_true'][place]):
      axes.add_patch(_rectangle(box, 'white', 0.8))
    found = stored[f'boxes_{suffix}'][place]
    kinds = stored[f'classes_{suffix}'][place]
    for box, kind in zip(found, kinds, strict=True):
      if kind >= 0:
        axes.add_patch(_rectangle(box, figures.COLOURS[kind % len(figures.COLOURS)], 1.4))
    return f'{int((kinds >= 0).sum())} found, {len(_known(stored["boxes_true"][place]))} true'

  patch = matplotlib.patches.Patch
  handles = [patch(color=figures.COLOURS[k], label=name) for k, name in enumerate(classes)]
  handles.append(patch(facecolor='#777777', edgecolor='white', label='true (white)'))
  return _pairs(stored, draw, handles)


def curves(table: pd.DataFrame, *, value: str) -> bytes:
  """`value` against the level, one line per arm; table has the columns arm, eps and `value`."""
  figure = figures.blank(6.4, 4.0)
  axes = figure.subplots()
  for number, (arm, part) in enumerate(table.groupby('arm', sort=False)):
    part = part.sort_values('eps')
    colour, marker, style = figures.look(number)
    axes.plot(part['eps'], part[value], color=colour, marker=marker, ls=style, label=arm)
  axes.set(xlabel='attack level', ylabel=value, ylim=(-0.02, 1.02))
  axes.spines[['top', 'right']].set_visible(False)
  figures.legend(figure)
  return figures.png(figure)


def _known(found):
  return found[np.isfinite(found).all(axis=-1)]


def _rectangle(box, colour, width):
  x1, y1, x2, y2 = (float(value) - 0.5 for value in box)  # pixel 0 lies from -0.5 to 0.5
  return matplotlib.patches.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width)


def _pairs(stored, draw, handles):
  count, (height, width) = len(stored['arm']), stored['image'].shape[1:3]
  size = (7.2, (3.4 * height / width + 0.5) * count + 0.5)
  figure = figures.blank(*size)
  low, high = float(stored['image'].min()), float(stored['image'].max())
  for place, row in enumerate(figure.subplots(count, 2, squeeze=False)):
    shown = (('clean', 'image'), ('adv', 'adversarial'))
    for axes, (suffix, name) in zip(row, shown, strict=True):
      axes.imshow(np.clip((stored[name][place] - low) / ((high - low) or 1), 0, 1))
      axes.set_xlabel(draw(axes, place, suffix), fontsize=8.5)
      axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    row[0].set_ylabel(str(stored['arm'][place]), fontweight='bold')
    row[0].set_title(f'image {int(stored["index"][place])}, clean', fontsize=10)
    row[1].set_title(f'attacked at {float(stored["eps"][place]):g}', fontsize=10)
  figures.legend(figure, handles)
  return figures.png(figure)

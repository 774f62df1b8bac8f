"""Pictures of landmarks and boxes, and curves of a metric of the whole test set, as PNG bytes."""

from collections.abc import Mapping, Sequence

import matplotlib.patches
import numpy as np
import pandas as pd

from robustmed.report import figures, overlays


def landmarks(stored: Mapping[str, np.ndarray]) -> bytes:
  """One row per stored example: clean and attacked, true points with lines to the found ones."""

  def draw(axes, place, suffix):
    true, found = stored['points_true'][place], stored[f'points_{suffix}'][place]
    overlays.points(axes, true, found)
    apart = (found - true) * stored['scale'][place]
    return f'MRE {np.linalg.norm(apart, axis=-1).mean():.1f} mm'

  return _pairs(stored, draw, overlays.of_points())


def boxes(stored: Mapping[str, np.ndarray], *, classes: Sequence[str]) -> bytes:
  """One row per stored example: clean and attacked, true boxes white, found ones by class."""

  def draw(axes, place, suffix):
    true, kinds = stored['boxes_true'][place], stored[f'classes_{suffix}'][place]
    overlays.boxes(axes, true, stored[f'boxes_{suffix}'][place], kinds)
    return f'{int((kinds >= 0).sum())} found, {len(overlays.known(true))} true'

  patch = matplotlib.patches.Patch
  handles = [patch(color=overlays.COLOURS[k], label=name) for k, name in enumerate(classes)]
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

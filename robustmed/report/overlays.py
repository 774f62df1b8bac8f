"""Truth and output drawn over an image: outlines, regions, landmarks, boxes.

Colours are those of Okabe and Ito, which differ for every kind of colour vision.
"""

from collections.abc import Mapping, Sequence

import matplotlib.lines
import matplotlib.patches
import numpy as np

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
TRUE, PREDICTED, REGION = '#F0E442', '#D55E00', '#56B4E9'
_OF_CLASSES = ('#56B4E9', '#E69F00', '#009E73', '#CC79A7', '#F0E442', '#D55E00', '#0072B2')


def draw(axes, stored: Mapping[str, np.ndarray], position: int, *, suffix: str) -> None:
  """Draws what is stored of an example: contours and points (x, y) in pixels, boxes, regions.

  A region is where it is above 0.5; suffix: 'clean' or 'adv', of the output.
  """
  if 'labels_true' in stored:
    labels(axes, stored['labels_true'][position], stored[f'labels_{suffix}'][position])
    return
  region = stored.get(f'seg_{suffix}')
  if region is not None:
    shown = np.squeeze(region[position])
    colour = np.array([int(REGION[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    overlay = np.zeros((*shown.shape, 4))
    overlay[..., :3] = colour
    overlay[..., 3] = 0.45 * (shown > 0.5)
    axes.imshow(overlay, interpolation='nearest')
  truth = stored.get('contour_true')
  if truth is not None:
    axes.plot(*_closed(truth[position]), color=TRUE, lw=1.6)
  elif stored.get('mask_true') is not None:
    mask = np.squeeze(stored['mask_true'][position]).astype(float)
    if mask.min() < 0.5 < mask.max():
      axes.contour(mask, levels=[0.5], colors=[TRUE], linewidths=1.6)
  found = stored.get(f'contour_{suffix}')
  if found is not None:
    axes.plot(*_closed(found[position]), color=PREDICTED, lw=1.6, ls=(0, (3, 1.2)))
  if 'points_true' in stored:
    points(axes, stored['points_true'][position], stored[f'points_{suffix}'][position])
  if 'boxes_true' in stored:
    found = stored[f'boxes_{suffix}'][position]
    boxes(axes, stored['boxes_true'][position], found, stored[f'classes_{suffix}'][position])


def labels(axes, true: np.ndarray, found: np.ndarray) -> None:
  """Draws two label maps [h, w], 0 is the background: true ones as outlines, found ones filled."""
  for kind in sorted({*np.unique(true), *np.unique(found)} - {0}):
    colour = of_class(kind)
    overlay = np.zeros((*found.shape, 4))
    overlay[..., :3] = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    overlay[..., 3] = 0.45 * (found == kind)
    axes.imshow(overlay, interpolation='nearest')
    mask = (true == kind).astype(float)
    if mask.min() < 0.5 < mask.max():
      axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.6)


def of_class(kind: int) -> str:
  """The colour of a class from 1 on; those that are seen on grey come first and come again."""
  return _OF_CLASSES[(int(kind) - 1) % len(_OF_CLASSES)]


def points(axes, true: np.ndarray, found: np.ndarray) -> None:
  """Draws landmarks [n, 2] as (x, y), a line from each true one to the found one."""
  for one, other in zip(true, found, strict=True):
    axes.plot(*zip(one, other), color=PREDICTED, lw=1.0)
  axes.plot(*true.T, 'o', color=TRUE, ms=3)
  axes.plot(*found.T, 'x', color=PREDICTED, ms=3)


def boxes(axes, true: np.ndarray, found: np.ndarray, classes: np.ndarray) -> None:
  """Draws boxes [n, 4] as corners, true ones white (nan: none), found ones by class (-1: none)."""
  for box in known(true):
    axes.add_patch(_rectangle(box, 'white', 0.8))
  for box, kind in zip(found, classes, strict=True):
    if kind >= 0:
      axes.add_patch(_rectangle(box, COLOURS[kind % len(COLOURS)], 1.4))


def known(found: np.ndarray) -> np.ndarray:
  """The boxes without the rows of nan that pad them."""
  return found[np.isfinite(found).all(axis=-1)]


def handles(stored: Mapping[str, np.ndarray], classes: Sequence[str] = ()) -> list:
  """The legend of what `draw` draws; classes: names of labels, the background first."""
  line, patch = matplotlib.lines.Line2D, matplotlib.patches.Patch
  kept = []
  if 'labels_true' in stored:
    used = set().union(*(np.unique(stored[f'labels_{part}']) for part in ('true', 'clean', 'adv')))
    name = lambda kind: classes[kind] if kind < len(classes) else f'class {kind}'
    kinds = [int(kind) for kind in sorted(used - {0})]
    return [
      *(patch(color=of_class(kind), label=name(kind)) for kind in kinds),
      line([], [], color='#555555', lw=2, label='line: true'),
      patch(color='#555555', alpha=0.45, label='filled: found'),
    ]
  if 'contour_true' in stored or 'mask_true' in stored:
    kept.append(line([], [], color=TRUE, lw=3, label='true outline'))
  if 'contour_adv' in stored:
    style = {'color': PREDICTED, 'ls': (0, (3, 1.2)), 'lw': 2}
    kept.append(line([], [], label='predicted contour', **style))
  if 'seg_adv' in stored:
    kept.append(patch(color=REGION, alpha=0.6, label='predicted segmentation'))
  if 'points_true' in stored:
    kept += of_points()
  if 'boxes_true' in stored:
    kept += [
      patch(fill=False, edgecolor=COLOURS[0], label='found, a colour for each class'),
      patch(facecolor='#777777', edgecolor='white', label='true (white)'),
    ]
  return kept


def of_points() -> list:
  """The legend of `points`."""
  line = matplotlib.lines.Line2D
  return [
    line([], [], color=TRUE, marker='o', ls='', label='true'),
    line([], [], color=PREDICTED, marker='x', label='found'),
  ]


def _closed(contour: np.ndarray):
  return np.concatenate([contour, contour[:1]]).T


def _rectangle(box, colour, width):
  x1, y1, x2, y2 = (float(value) - 0.5 for value in box)  # pixel 0 lies from -0.5 to 0.5
  return matplotlib.patches.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=width)

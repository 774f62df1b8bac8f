"""The figures of Chen et al. 2021, drawn as PNG bytes from plain arrays and frames, without JAX.

Every curve comes twice: as printed, with levels at equal distances and the paper's limits, and with
a true axis.
"""

from collections.abc import Mapping, Sequence

import matplotlib.lines
import numpy as np
import pandas as pd

from robustmed.report import figures, tables

COLOURS = {'P03': '#0072B2', 'P05': '#009E73', 'P10': '#D55E00'}
VARIANTS = {4: 'rand', 5: 'adv_rs', 6: 'adv_r', 7: 'adv_s'}  # figure number -> arm
PANELS = (('Error_reg', 'pgd_reg'), ('DICE_reg', 'pgd_reg'), ('DICE_seg', 'pgd_seg'))
ERROR_LIMIT = 26.0  # pixels at side 128
TRUE, OUTPUT = '#D62728', '#2CA02C'


def robustness(summary: pd.DataFrame, *, variant: str, side: int, true_scale: bool) -> bytes | None:
  """Figs. 4 to 7: three panels, the std models dashed and the variant's solid."""
  drawn = [
    f'{shape}_{variant}' for shape in COLOURS if (summary['arm'] == f'{shape}_{variant}').any()
  ]
  if not drawn:
    return None
  figure = figures.blank(11.0, 3.8)
  grid = figure.subplots(1, 3)
  limits = ((0.0, ERROR_LIMIT * side / 128), (0.5, 1.0), (0.5, 1.0))
  for axes, (metric, attack), limit in zip(grid, PANELS, limits, strict=True):
    levels = tables.levels(summary, attack=attack)
    for shape, colour in COLOURS.items():
      for kind, line in (('std', '--'), (variant, '-')):
        cells = tables.curve(summary, arm=f'{shape}_{kind}', attack=attack, metric=metric)
        if cells.empty:
          continue
        x = [eps if true_scale else levels.index(eps) for eps in cells['eps']]
        axes.plot(x, cells['mean'], line, color=colour, marker='o', ms=3.5, lw=1.6)
    if true_scale:
      axes.set_ylim(0, None)
      axes.set_xticks([0, *levels[-2:]])
    else:
      axes.set_ylim(*limit)
      axes.set_xticks(range(len(levels)), labels=[f'{eps:g}' for eps in levels])
    axes.set(title=metric, xlabel='noise level')
    axes.grid(color='#d9d9d9', lw=0.6)
    axes.spines[['top', 'right']].set_visible(False)
  line = matplotlib.lines.Line2D
  shapes = [shape for shape in COLOURS if f'{shape}_{variant}' in drawn]
  handles = [line([], [], color=COLOURS[shape], label=shape) for shape in shapes]
  handles += [line([], [], color='#555555', ls='--', label='std')]
  handles += [line([], [], color='#555555', label=variant)]
  figures.legend(figure, handles, columns=5)
  return figures.png(figure)


def virtual(stored: Mapping[str, np.ndarray]) -> bytes:
  """Fig. 2: a real image with its contour, a virtual shape over it, the virtual image."""
  figure = figures.blank(8.4, 3.3)
  grid = figure.subplots(1, 3)
  rows = (
    ('image', 'contour', 'real image and shape'),
    ('image', 'virtual_contour', 'virtual shape'),
    ('virtual_image', 'virtual_contour', 'virtual image'),
  )
  for axes, (image, contour, title) in zip(grid, rows, strict=True):
    _image(axes, stored[image])
    _outline(axes, stored[contour], OUTPUT if 'virtual' in contour else TRUE)
    axes.set_title(title)
  return figures.png(figure)


def strip(stored: Mapping[str, np.ndarray], *, attack: str) -> bytes | None:
  """Figs. 8 and 9: rows are models, columns noise levels; the truth red, the output green."""
  here = np.flatnonzero(stored['attack'] == attack)
  if not len(here):
    return None
  arms = list(dict.fromkeys(stored['arm'][here].tolist()))
  levels = sorted(set(stored['eps'][here].tolist()))
  figure = figures.blank(1.6 * len(levels) + 0.4, 1.75 * len(arms) + 0.3)
  grid = figure.subplots(len(arms), len(levels), squeeze=False)
  for position in here:
    axes = grid[arms.index(stored['arm'][position]), levels.index(stored['eps'][position])]
    _image(axes, stored['image'][position])
    if attack == 'pgd_reg':
      _outline(axes, stored['contour_true'][position], TRUE)
      _outline(axes, stored['contour'][position], OUTPUT)
    else:
      _edge(axes, stored['mask_true'][position] - 0.5, TRUE)
      _edge(axes, stored['segmentation'][position], OUTPUT)
  for axes, eps in zip(grid[0], levels, strict=True):
    axes.set_title(f'{eps:g}', fontsize=10)
  for axes, arm in zip(grid[:, 0], arms, strict=True):
    axes.set_ylabel(arm, fontsize=9)
  return figures.png(figure)


def pair(
  clean: Mapping[str, np.ndarray], changed: Mapping[str, np.ndarray], *, titles: Sequence[str]
) -> bytes:
  """Fig. 1: two images with what the network says of each, under them a line of text each."""
  figure = figures.blank(6.4, 4.1)
  for axes, held, title in zip(figure.subplots(1, 2), (clean, changed), titles, strict=True):
    _image(axes, held['image'])
    _outline(axes, held['contour'], OUTPUT)
    _edge(axes, held['segmentation'], '#56B4E9')
    axes.set_title(title, fontsize=9)
  line = matplotlib.lines.Line2D
  handles = [
    line([], [], color=OUTPUT, label='contour'),
    line([], [], color='#56B4E9', label='segmentation'),
  ]
  figures.legend(figure, handles)
  return figures.png(figure)


def agreement(rows: pd.DataFrame, *, arm: str) -> bytes:
  """Fig. 10: how alike the outputs on the OOD and on the IND image are, 20 bins on 0.95 to 1."""
  figure = figures.blank(8.0, 3.2)
  titles = {'agree_reg': 'contour', 'agree_seg': 'segmentation'}
  for axes, (column, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
    values = rows[column].to_numpy(float)
    axes.hist(values, bins=np.linspace(0.95, 1, 21), color='#0072B2')
    below = int((values < 0.95).sum())
    axes.set(title=f'{title}: {below} of {len(values)} below 0.95', xlabel='Dice', ylabel='images')
  figure.suptitle(arm, x=0.02, ha='left', fontweight='bold')
  return figures.png(figure)


def reconstruction(rows: pd.DataFrame, *, arms: Sequence[str], attack: str) -> bytes:
  """Fig. 11: reconstruction errors, IND above OOD, 50 bins on 0 to 0.03 or to the largest."""
  figure = figures.blank(4.6 * len(arms), 4.2)
  top = max(0.03, float(rows.loc[rows['attack'].isin(['ind', attack]), 'score'].max()))
  grid = figure.subplots(2, len(arms), squeeze=False, sharex=True)
  for column, arm in enumerate(arms):
    for axes, kind, colour in zip(grid[:, column], ('ind', attack), ('#0072B2', '#D55E00')):
      here = rows[(rows['arm'] == arm) & (rows['attack'] == kind)]
      axes.hist(here['score'], bins=np.linspace(0, top, 51), color=colour)
      axes.set_ylabel('IND' if kind == 'ind' else f'OOD ({kind})')
    grid[0, column].set_title(arm)
    grid[1, column].set_xlabel('reconstruction error')
  return figures.png(figure)


def foreign(stored: Mapping[str, np.ndarray], *, attacks: Sequence[str]) -> bytes | None:
  """Fig. 12: the OOD image, the attacked one, their difference and the wanted disk, by arm."""
  here = [i for i, name in enumerate(stored['attack']) if name in attacks]
  if not here:
    return None
  figure = figures.blank(8.6, 2.35 * len(here))
  grid = figure.subplots(len(here), 4, squeeze=False)
  for line, i in zip(grid, here, strict=True):
    _image(line[0], stored['start'][i])
    _image(line[1], stored['attacked'][i])
    change = np.squeeze(stored['attacked'][i] - stored['start'][i])
    largest = np.abs(change).max() or 1.0
    _image(line[2], change, cmap='PuOr', vmin=-largest, vmax=largest)
    _edge(line[2], stored['mask_true'][i] - 0.5, TRUE)
    _image(line[3], stored['image'][i])
    _outline(line[3], stored['contour_wanted'][i], TRUE)
    _outline(line[1], stored['contour'][i], OUTPUT)
    line[0].set_ylabel(f'{stored["arm"][i]}\n{stored["attack"][i]}', fontsize=8.5)
  titles = ('OOD image', 'attacked, with output', 'change, with the true mask', 'IND image')
  for axes, title in zip(grid[0], titles, strict=True):
    axes.set_title(title, fontsize=10)
  return figures.png(figure)


def rocs(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
  """ROC curves by name, each (false positive, true positive)."""
  figure = figures.blank(5.6, 4.8)
  axes = figure.subplots()
  axes.plot([0, 1], [0, 1], color='#999999', lw=0.8, ls=':')
  for place, (name, (x, y)) in enumerate(curves.items()):
    colour, _, style = figures.look(place)
    axes.plot(x, y, color=colour, ls=style, lw=1.6, label=name)
  axes.set(xlabel='IND images called OOD', ylabel='OOD images called OOD', aspect='equal')
  figures.legend(figure, columns=2, fontsize=8)
  return figures.png(figure)


def _image(axes, image, **style):
  shown = np.squeeze(image)
  style = {'cmap': 'gray', 'vmin': 0, 'vmax': 1, **style}
  axes.imshow(shown, interpolation='nearest', **style)
  height, width = shown.shape
  axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _outline(axes, contour, colour):
  axes.plot(*np.concatenate([contour, contour[:1]]).T, color=colour, lw=1.2)


def _edge(axes, values, colour):
  values = np.squeeze(values).astype(float)
  if values.min() < 0 < values.max():
    axes.contour(values, levels=[0.0], colors=[colour], linewidths=1.2)

"""Figures of Chen et al. 2019, drawn as PNG bytes from plain arrays and frames, without JAX."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colors, patches

from robustmed.report import figures

# the paper's: pancreas blue, kidneys green, liver orange, spleen red
COLOURS = {'pancreas': '#1F77B4', 'kidneys': '#2CA02C', 'liver': '#FF7F0E', 'spleen': '#D62728'}
_SUCCESS = 0.7


def draws(stored: Mapping[str, np.ndarray], *, place: int = 0) -> bytes:
  """Fig. 2: image, clean output, and two draws with their outputs."""
  panels = [('image', 'image'), ('clean', 'clean output')]
  for number in (0, 1):
    panels += [(f'attacked{number}', f'draw {number + 1}'), (f'found{number}', 'its output')]
  figure = figures.blank(1.9 * len(panels), 2.5)
  for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels, strict=True):
    if name in ('clean', 'found0', 'found1'):
      _labels(axes, stored[name][place])
    else:
      _image(axes, stored[name][place], stored['image'][place])
    axes.set_title(title, fontsize=9)
  _legend(figure)
  return figures.png(figure)


def cases(stored: Mapping[str, np.ndarray]) -> bytes:
  """Fig. 3: columns are cases, rows I_0, S_GT, S_0, I_DV, V, S_DV."""
  rows = ('image', 'truth', 'clean', 'attacked0', 'V0', 'found0')
  titles = ('I_0', 'S_GT', 'S_0', 'I_DV', 'V', 'S_DV')
  count = len(stored['image'])
  figure = figures.blank(1.7 * count + 0.4, 1.7 * len(rows) + 0.3)
  grid = figure.subplots(len(rows), count, squeeze=False)
  largest = np.abs(stored['V0']).max() or 1.0
  for line, name, title in zip(grid, rows, titles, strict=True):
    line[0].set_ylabel(title)
    for place, axes in enumerate(line):
      if name in ('truth', 'clean', 'found0'):
        _labels(axes, stored[name][place])
      elif name == 'V0':
        _image(axes, stored[name][place], cmap='PuOr', vmin=-largest, vmax=largest)
      else:
        _image(axes, stored[name][place], stored['image'][place])
  _legend(figure)
  return figures.png(figure)


def deformation(stored: Mapping[str, np.ndarray]) -> bytes:
  """D of every case, as a warped grid over the image and as arrows to where pixels come from."""
  count = len(stored['image'])
  figure = figures.blank(2.6 * count, 5.4)
  grid = figure.subplots(2, count, squeeze=False)
  side = stored['image'].shape[1]
  step = max(1, side // 16)
  rows, columns = np.mgrid[:side, :side].astype(float)
  for place in range(count):
    field = stored['D0'][place]
    bent, arrows = grid[:, place]
    for axes in (bent, arrows):
      _image(axes, stored['image'][place])
    at = rows + field[..., 0], columns + field[..., 1]
    for line in range(0, side, step):
      bent.plot(at[1][line], at[0][line], color='#56B4E9', lw=0.6)
      bent.plot(at[1][:, line], at[0][:, line], color='#56B4E9', lw=0.6)
    few = (slice(step // 2, None, step),) * 2
    arrows.quiver(
      columns[few], rows[few], field[..., 1][few], field[..., 0][few],
      angles='xy', scale_units='xy', scale=1, color='#F0E442', width=0.006,
    )  # fmt: skip
    for axes in (bent, arrows):
      axes.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
  return figures.png(figure)


def sweep(table: pd.DataFrame, clean: Mapping[str, float], paper: pd.DataFrame) -> bytes:
  """Dice per organ and p against xi, ours solid and the paper's dotted; dashed: 70 % of clean."""
  figure = figures.blank(9.6, 3.8)
  dice, change = figure.subplots(1, 2)
  paper = paper[paper['image'] == 'I_DV']
  for organ, colour in COLOURS.items():
    dice.plot(table['xi'], table[organ], '-o', color=colour, ms=4, label=organ)
    dice.axhline(100 * _SUCCESS * clean.get(organ, np.nan), color=colour, ls='--', lw=0.8)
    dice.plot(paper['xi'], paper[organ], ':', color=colour, lw=1)
  change.plot(table['xi'], table['p'], '-o', color='#000000', ms=4, label='here')
  change.plot(paper['xi'], paper['p'], ':', color='#000000', lw=1, label='paper')
  change.legend(frameon=False)
  dice.set(xlabel='xi (nats)', ylabel='Dice (%)', ylim=(0, 100))
  change.set(xlabel='xi (nats)', ylabel='p (z-scores)', ylim=(0, None))
  for axes in (dice, change):
    axes.spines[['top', 'right']].set_visible(False)
  _legend(figure)
  return figures.png(figure)


def training(
  log: pd.DataFrame, looks: pd.DataFrame, *, levels: Mapping[str, float]
) -> bytes | None:
  """Per generator X against xi (validation dotted), the critic's gap, |D|, |V| and p by step."""
  names = [name for name in levels if (log['arm'] == name).any()]
  needed = ('generator/X', 'generator/counted', 'critic/gap')
  if not names or any(name not in log.columns for name in needed):
    return None
  figure = figures.blank(12.0, 2.9)
  grid = figure.subplots(1, 5)
  for place, name in enumerate(names):
    colour, _, style = figures.look(place)
    part = log[(log['arm'] == name) & (log['seed'] == log['seed'].min())]
    counted = part['generator/counted'].clip(lower=1e-6)
    curves = [part['generator/X'] / counted, part['critic/gap']]
    curves += [part[f'generator/{kind}'] for kind in ('D', 'V', 'p')]
    for axes, curve in zip(grid, curves, strict=True):
      axes.plot(part['step'], curve, color=colour, ls=style, lw=1.2, label=name)
    grid[0].axhline(levels[name], color=colour, ls='--', lw=0.8)
    if len(looks):
      seen = looks[(looks['arm'] == name) & (looks['seed'] == looks['seed'].min())]
      grid[0].plot(seen['step'], seen['X'], ':o', color=colour, ms=3)
  for axes, title in zip(grid, ('X (dashed: xi)', 'critic gap', '|D| (px)', '|V|', 'p')):
    axes.set(title=title, xlabel='step')
    axes.spines[['top', 'right']].set_visible(False)
  figures.legend(figure, columns=6)
  return figures.png(figure)


def _image(axes, image, like=None, **style):
  like = image if like is None else like
  low, high = np.quantile(like, [0.01, 0.995])
  axes.imshow(image, **{'cmap': 'gray', 'vmin': low, 'vmax': high, **style})
  axes.set(xticks=[], yticks=[])


def _labels(axes, labels):
  palette = colors.ListedColormap(['#000000', *COLOURS.values()])
  axes.imshow(np.maximum(labels, 0), cmap=palette, vmin=0, vmax=4, interpolation='nearest')
  axes.set(xticks=[], yticks=[])


def _legend(figure, names: Sequence[str] = tuple(COLOURS)):
  handles = [patches.Patch(color=COLOURS[name], label=name) for name in names]
  figures.legend(figure, handles)

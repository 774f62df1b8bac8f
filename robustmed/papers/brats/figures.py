"""The figures of Liu et al. 2021, drawn as PNG bytes from plain arrays and frames, without JAX."""

from collections.abc import Mapping, Sequence

import matplotlib.patches
import numpy as np
import pandas as pd

from robustmed.report import figures, tables

REGIONS = {'dice_wt': 'whole tumour', 'dice_tc': 'tumour core', 'dice_et': 'enhancing tumour'}
LABELS = {1: ('#56B4E9', 'necrosis'), 2: ('#009E73', 'oedema'), 3: ('#E69F00', 'enhancing')}
TRUE = '#FFFFFF'
CONTRAST, FLAIR = 1, 3  # channels that show a tumour


def against_eps(
  summary: pd.DataFrame,
  *,
  arms: Mapping[str, str],
  attack: str,
  paper: pd.DataFrame | None = None,
  starred: Sequence[str] = (),
) -> bytes | None:
  """Figs. 5 to 8: Dice of the three regions against eps; the paper's values hollow and dotted."""
  known = [name for name in arms if (summary['arm'] == name).any()]
  if not known:
    return None
  figure = figures.blank(11.0, 3.9)
  for axes, (metric, title) in zip(figure.subplots(1, 3, sharey=True), REGIONS.items()):
    for place, name in enumerate(known):
      colour, marker, style = figures.look(place)
      cells = tables.curve(summary, arm=name, attack=attack, metric=metric)
      marker, size = ('*', 9) if name in starred else (marker, 4)
      line = {'color': colour, 'marker': marker, 'ms': size, 'ls': style, 'lw': 1.6}
      axes.plot(cells['eps'], cells['mean'], label=arms[name], **line)
      theirs = tables.published(paper, arm=name, attack=attack, metric=metric)
      if theirs:
        levels = sorted(theirs)
        style = {'color': colour, 'ls': ':', 'lw': 1.0, 'marker': marker, 'ms': 5, 'mfc': 'white'}
        axes.plot(levels, [theirs[eps] for eps in levels], **style)
    axes.set(title=title, xlabel='eps', ylim=(-0.02, 1.0))
    _plain(axes)
  figure.axes[0].set_ylabel('Dice')
  figures.legend(figure, columns=6, title='' if paper is None else 'hollow: paper')
  return figures.png(figure)


def against_iterations(
  rows: pd.DataFrame | None, *, alpha: float, attacks: Mapping[str, str]
) -> bytes | None:
  """Figs. 3 and 4: Dice of the three regions and PSNR against the number of iterations."""
  if rows is None or rows.empty:
    return None
  metrics = {**REGIONS, 'psnr': 'PSNR (dB)'}
  figure = figures.blank(11.0, 3.4)
  for axes, (metric, title) in zip(figure.subplots(1, 4), metrics.items()):
    for place, (name, shown) in enumerate(attacks.items()):
      mine = rows[(rows['attack'] == name) & np.isfinite(rows[metric])]
      found = mine.groupby('eps')[metric].agg(['mean', 'std'])
      x = np.round(found.index.to_numpy() / alpha)
      colour, _, style = figures.look(place)
      axes.plot(x, found['mean'], color=colour, ls=style, marker='o', ms=3, lw=1.5, label=shown)
      low, high = found['mean'] - found['std'], found['mean'] + found['std']
      axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes.set(title=title, xlabel='iterations')
    axes.xaxis.get_major_locator().set_params(integer=True)
    if metric in REGIONS:
      axes.set_ylim(-0.02, 1.0)
    _plain(axes)
  figures.legend(figure, columns=2)
  return figures.png(figure)


def label_leak(summary: pd.DataFrame, *, arms: Mapping[str, str], eps: float) -> bytes | None:
  """Dice under FGSM against clean Dice: above the diagonal an attack helps, which tells of a label
  leaking into the attacked images of the training."""
  figure = figures.blank(5.2, 4.6)
  axes = figure.subplots()
  axes.plot([0, 1], [0, 1], color='#999999', lw=0.8, ls=':')
  drawn = False
  for place, (name, shown) in enumerate(arms.items()):
    points = []
    for metric in REGIONS:
      cells = tables.curve(summary, arm=name, attack='fgsm', metric=metric).set_index('eps')
      if 0.0 in cells.index and eps in cells.index:
        points.append((cells.loc[0.0, 'mean'], cells.loc[eps, 'mean']))
    if points:
      drawn = True
      colour, marker, _ = figures.look(place)
      axes.plot(*np.array(points).T, label=shown, color=colour, marker=marker, ls='')
  if not drawn:
    return None
  axes.set(xlabel='Dice on clean images', ylabel=f'Dice under FGSM at {eps:g}', aspect='equal')
  axes.set(xlim=(0, 1), ylim=(0, 1))
  _plain(axes)
  figures.legend(figure, columns=3)
  return figures.png(figure)


def attacked_slices(
  stored: Mapping[str, np.ndarray], *, arm: str, eps: float, titles: Mapping[str, str]
) -> bytes | None:
  """Fig. 2: one slice untouched and under each attack, in two series, with what the network says
  (colours) and the truth (white)."""
  here = (stored['arm'] == arm) & np.isclose(stored['eps'], eps)
  found = {name: np.flatnonzero(here & (stored['attack'] == name)) for name in titles}
  found = {name: int(places[0]) for name, places in found.items() if len(places)}
  if not found:
    return None
  first = next(iter(found.values()))
  columns = [('no attack', stored['image'][first], stored['clean'][first])]
  columns += [
    (titles[name], stored['adversarial'][at], stored['attacked'][at]) for name, at in found.items()
  ]
  figure = figures.blank(2.3 * len(columns), 5.2)
  grid = figure.subplots(2, len(columns), squeeze=False)
  channels = _channels(stored)
  for column, (title, image, labels) in zip(grid.T, columns):
    for axes, (name, channel) in zip(column, channels.items()):
      _slice(axes, image[..., channel], labels, stored['truth'][first])
      if axes is column[0]:
        axes.set_title(title, fontsize=10)
      if column is grid.T[0] or title == 'no attack':
        axes.set_ylabel(name, fontsize=9)
  _key(figure)
  return figures.png(figure)


def models(
  stored: Mapping[str, np.ndarray], *, arms: Mapping[str, str], attack: str, eps: float
) -> bytes | None:
  """Fig. 9: what each network says of the slice as it is, the slice as the network's own attack
  left it, and what the network then says; in the first column the slice and the truth."""
  here = (stored['attack'] == attack) & np.isclose(stored['eps'], eps)
  found = {name: np.flatnonzero(here & (stored['arm'] == name)) for name in arms}
  found = {name: int(places[0]) for name, places in found.items() if len(places)}
  if not found:
    return None
  figure = figures.blank(1.9 * (1 + len(found)), 7.8)
  grid = figure.subplots(4, 1 + len(found), squeeze=False)
  channel = _channels(stored)['FLAIR']
  first = next(iter(found.values()))
  image, truth = stored['image'][first][..., channel], stored['truth'][first]
  for axes, labels in zip(grid[:3, 0], (truth, None, truth)):
    _slice(axes, image, labels, truth)
  grid[3, 0].axis('off')
  grid[0, 0].set_title('truth', fontsize=9)
  for column, (name, at) in zip(grid.T[1:], found.items()):
    image, truth = stored['image'][at][..., channel], stored['truth'][at]
    attacked = stored['adversarial'][at][..., channel]
    _slice(column[0], image, stored['clean'][at], truth)
    _slice(column[1], attacked, None, truth)
    _slice(column[2], attacked, stored['attacked'][at], truth)
    change = attacked - image
    column[3].imshow(change, cmap='PuOr', vmin=-eps, vmax=eps, interpolation='nearest')
    column[0].set_title(arms[name], fontsize=9)
  for axes, title in zip(grid[:, 0], ('prediction', 'attacked', 'prediction, attacked')):
    axes.set_ylabel(title, fontsize=9)
  grid[3, 1].set_ylabel('change', fontsize=9)
  for axes in grid.flat:
    axes.set(xticks=[], yticks=[])
  _key(figure)
  return figures.png(figure)


def _channels(stored) -> dict[str, int]:
  """Two series that show a tumour; the two of a set that has no more."""
  if stored['image'].shape[-1] > FLAIR:
    return {'T1 with contrast': CONTRAST, 'FLAIR': FLAIR}
  return {'first series': 0, 'FLAIR': stored['image'].shape[-1] - 1}


def _slice(axes, image, labels, truth):
  axes.imshow(image, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
  if labels is not None:
    overlay = np.zeros((*labels.shape, 4))
    for label, (colour, _) in LABELS.items():
      shade = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
      overlay[labels == label] = (*shade, 0.45)
    axes.imshow(overlay, interpolation='nearest')
  if truth.min() < 0.5 < truth.max():
    axes.contour((truth > 0).astype(float), levels=[0.5], colors=[TRUE], linewidths=1.0)
  axes.set(xticks=[], yticks=[])


def _key(figure):
  patch = matplotlib.patches.Patch
  handles = [patch(color=colour, alpha=0.6, label=name) for colour, name in LABELS.values()]
  handles.append(patch(facecolor='#555555', edgecolor=TRUE, label='true outline (white)'))
  figures.legend(figure, handles)


def _plain(axes):
  axes.grid(color='#d9d9d9', lw=0.6)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)

"""Figures of Liu et al. 2020 (nodules), drawn as PNG bytes from plain arrays, without JAX.

`stored` has, by the name of a column ('codes 0.15'), the middle slices of some patches [n, s, s],
'NAME/before' the same slices before the attack and 'NAME/number' [n] which patches they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from robustmed.report import figures

SHOWN = (0.0, 0.3)  # of differences, Fig. 6
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
Stored = Mapping[str, np.ndarray]
Line = tuple[str, np.ndarray, np.ndarray]


def froc(lines: Sequence[Line]) -> bytes | None:
  """Sensitivity against false positives per scan; lines are (label, rates, sensitivities)."""
  if not lines:
    return None
  figure = figures.blank(7.6, 5.0, dpi=110)
  axes = figure.add_subplot()
  for place, (label, rate, sensitivity) in enumerate(lines):
    known = rate > RATES[0]  # beyond the end of a curve its last value stands
    x = np.concatenate([RATES[:1], rate[known], [max(RATES[-1], rate[-1])]])
    first = np.interp(RATES[0], rate, sensitivity)
    y = np.concatenate([[first], sensitivity[known], sensitivity[-1:]])
    colour, _, style = figures.look(place)
    axes.plot(x, y, style, lw=1.6, label=label, color=colour)
  axes.set_xscale('log', base=2)
  axes.set_xticks(RATES, ['1/8', '1/4', '1/2', '1', '2', '4', '8'])
  axes.minorticks_off()
  axes.set(xlim=(RATES[0], RATES[-1]), ylim=(0, 1))
  axes.set(xlabel='false positives per scan', ylabel='sensitivity')
  axes.grid(color='#d9d9d9', lw=0.6)
  axes.spines[['top', 'right']].set_visible(False)
  figures.legend(figure, columns=3, fontsize=8)
  return figures.png(figure)


def named(stored: Stored, attack: str) -> str:
  """The first column under `attack`, '' where there is none."""
  return next((n for n in stored if '/' not in n and n.rsplit(' ', 1)[0] == attack), '')


def before_and_after(stored: Stored, *, count: int = 6) -> bytes | None:
  """Fig. 5: the place in the lungs, the nodule of a random code, and that code after the search."""
  random, codes = named(stored, 'random'), named(stored, 'codes')
  if not random or not codes:
    return None
  first, second = (stored[f'{name}/number'].tolist() for name in (random, codes))
  both = [number for number in first if number in second][:count]
  if not both:
    return None
  one, two = [first.index(n) for n in both], [second.index(n) for n in both]
  rows = (
    ('lung', stored[f'{random}/before'][one]),
    ('random code', stored[random][one]),
    ('searched code', stored[codes][two]),
  )
  return _mosaic(rows)


def synthetic(stored: Stored) -> bytes | None:
  """Fig. 8: as many nodules of random codes as of searched ones."""
  rows = [
    (shown, stored[name])
    for attack, shown in (('random', 'random codes'), ('codes', 'searched codes'))
    if (name := named(stored, attack))
  ]
  return _mosaic(rows) if rows else None


def attacked(stored: Stored, *, count: int = 2) -> bytes | None:
  """Fig. 6: patches before and after the attack and their difference, on `SHOWN`."""
  lines = []
  for attack, shown in (
    ('positives', 'nodule'),
    ('noise_pgd', 'noise'),
    ('negatives', 'negative'),
  ):
    name = named(stored, attack)
    for place in range(min(count, len(stored[name]) if name else 0)):
      lines.append((shown, _before(stored, name, place), stored[name][place]))
  if not lines:
    return None
  figure = figures.blank(5.4, 1.75 * len(lines) + 0.3, dpi=110)
  grid = figure.subplots(len(lines), 3, squeeze=False)
  for title, axes in zip(('before', 'attacked', '|difference|'), grid[0], strict=True):
    axes.set_title(title, fontsize=9)
  for (shown, before, after), line in zip(lines, grid, strict=True):
    line[0].set_ylabel(shown, fontsize=9)
    difference = None if before is None else np.abs(after - before)
    pictures = ((before, (0.0, 1.0)), (after, (0.0, 1.0)), (difference, SHOWN))
    for axes, (picture, (low, high)) in zip(line, pictures, strict=True):
      if picture is None:
        _blank(axes)
      else:
        _image(axes, picture, low, high)
  return figures.png(figure)


def _before(stored, name, place):
  """What the search of a patch began with: attacked noise with the plain noise of its number."""
  if f'{name}/before' in stored:
    return stored[f'{name}/before'][place]
  plain, number = named(stored, 'plain_noise'), stored[f'{name}/number'][place]
  found = np.flatnonzero(stored[f'{plain}/number'] == number) if plain else ()
  return stored[plain][found[0]] if len(found) else None


def noise(stored: Stored, levels: Mapping[str, Sequence[float]], *, count: int = 2) -> bytes | None:
  """Fig. 9: a nodule without noise and under every kind and level of it."""
  columns = [('none 0', 'no noise')]
  columns += [(f'{kind} {x:g}', f'{kind} {x:g}') for kind, values in levels.items() for x in values]
  columns = [(name, shown) for name, shown in columns if name in stored]
  if len(columns) < 2:
    return None
  count = min(count, *(len(stored[name]) for name, _ in columns))
  figure = figures.blank(1.6 * len(columns), 1.75 * count + 0.3, dpi=110)
  grid = figure.subplots(count, len(columns), squeeze=False)
  for column, (name, shown) in enumerate(columns):
    grid[0, column].set_title(shown, fontsize=9)
    for row in range(count):
      _image(grid[row, column], stored[name][row])
  return figures.png(figure)


def _mosaic(rows) -> bytes:
  count = max(len(pictures) for _, pictures in rows)
  figure = figures.blank(1.5 * count + 0.4, 1.55 * len(rows) + 0.2, dpi=110)
  grid = figure.subplots(len(rows), count, squeeze=False)
  for line, (shown, pictures) in zip(grid, rows, strict=True):
    line[0].set_ylabel(shown, fontsize=9)
    for place, axes in enumerate(line):
      if place < len(pictures):
        _image(axes, pictures[place])
      else:
        _blank(axes)
  return figures.png(figure)


def _image(axes, picture, low=0.0, high=1.0):
  axes.imshow(picture, cmap='gray', vmin=low, vmax=high, interpolation='nearest')
  axes.set(xticks=[], yticks=[])


def _blank(axes):
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_visible(False)

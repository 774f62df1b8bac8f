"""The figures of the report as PNG bytes: deterministic, without display or global state.

Colours are those of `overlays`; lines also differ by marker.
"""

import io
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.lines
import matplotlib.patches
import numpy as np
import pandas as pd
from matplotlib import figure as figure_lib
from matplotlib.backends import backend_agg

from robustmed.evaluation import trials
from robustmed.process import files
from robustmed.report import overlays, tables
from robustmed.report import spec as spec_lib

MARKERS = 'osD^vPX'
DPI = 150

_GREY = '#d9d9d9'


def curves(
  summary: pd.DataFrame,
  *,
  panel: spec_lib.Panel,
  arms: Sequence[spec_lib.Arm],
  units: str = '',
  paper: pd.DataFrame | None = None,
) -> bytes:
  """Mean of a metric against the attack level, one line per arm with its interval as a band."""
  figure, axes = _axes(width=6.4, height=4.4)
  handles = []
  with_paper = False
  for arm, colour, marker, style in _styled(arms):
    cells = tables.curve(summary, arm=arm.name, attack=panel.attack, metric=panel.metric)
    x = cells['eps'].to_numpy()
    (line,) = axes.plot(
      x, cells['mean'], color=colour, ls=style, marker=marker, ms=5, lw=1.8, label=arm.shown
    )
    handles.append(line)
    axes.fill_between(x, cells['low'], cells['high'], color=colour, alpha=0.18, lw=0)
    published = tables.published(paper, arm=arm.name, attack=panel.attack, metric=panel.metric)
    if set(published) - {0.0}:
      with_paper = True
      levels = sorted(published)
      axes.plot(
        levels,
        [published[eps] for eps in levels],
        color=colour,
        ls=':',
        lw=1.1,
        marker=marker,
        ms=5,
        mfc='white',
      )
  if with_paper:
    label = 'paper (hollow)'
    handles.append(
      matplotlib.lines.Line2D([], [], color='#555555', ls=':', marker='o', mfc='white', label=label)
    )
  levels = tables.levels(summary, attack=panel.attack)
  _level_ticks(axes, levels)
  if panel.limits:
    low, high = panel.limits
    axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
  better = 'higher is better' if panel.higher_is_better else 'lower is better'
  axes.set_ylabel(f'{panel.shown}\n({better})')
  axes.set_xlabel(f'attack level {units}'.strip())
  figure.suptitle(f'{panel.metric} under {panel.attack}', x=0.02, ha='left', fontweight='bold')
  legend(figure, handles)
  return png(figure)


def bars(
  table: pd.DataFrame, *, attacks: Mapping[str, str], metric: str, level: float
) -> bytes | None:
  """One group of bars per arm: the metric under each attack at one level; None without any."""
  arms = list(dict.fromkeys(table['arm']))
  known = [name for name in attacks if (table['attack'] == name).any()]
  if not arms or not known:
    return None
  figure = blank(max(5.0, 1.4 * len(arms) + 2), 3.7)
  axes = figure.subplots()
  width = 0.8 / len(known)
  colours = [*overlays.COLOURS[:4], '#999999']
  for place, name in enumerate(known):
    cells = table[table['attack'] == name].set_index('arm')['mean']
    values = [float(cells.get(arm, np.nan)) for arm in arms]
    at = np.arange(len(arms)) + (place - (len(known) - 1) / 2) * width
    axes.bar(at, values, width, label=attacks[name], color=colours[place % len(colours)])
  axes.set_xticks(range(len(arms)), labels=arms)
  axes.set(ylabel=f'{metric} at level {level:g}')
  axes.spines[['top', 'right']].set_visible(False)
  legend(figure, columns=2)
  return png(figure)


def training(log: pd.DataFrame, *, arms: Sequence[spec_lib.Arm]) -> bytes | None:
  """Loss against step, one colour per arm and one line per trial; None without losses."""
  if not {'arm', 'step', 'loss'} <= set(log.columns):
    return None
  log = log[np.isfinite(pd.to_numeric(log['loss'], errors='coerce'))]
  named = {arm.name for arm in arms}
  arms = (*arms, *(spec_lib.Arm(name) for name in log['arm'].unique() if name not in named))
  arms = [arm for arm in arms if (log['arm'] == arm.name).any()]
  if not arms:
    return None
  figure, axes = _axes(width=6.4, height=4.0)
  handles = []
  for place, (arm, colour, _, style) in enumerate(_styled(arms)):
    lines = log[log['arm'] == arm.name]
    width = 1.4 + min(3.0, 0.5 * (len(arms) - 1 - place))  # a line below others is seen beside them
    names = trials.names(lines)
    for _, line in lines.groupby(names, sort=True) if names else [(0, lines)]:
      line = line.sort_values('step')
      loss = line['loss'].astype(float)
      window = len(line) // 40
      if window > 1:
        axes.plot(line['step'], loss, color=colour, lw=0.6, alpha=0.25)
        loss = loss.rolling(window, center=True, min_periods=1).mean()
      (drawn,) = axes.plot(line['step'], loss, color=colour, ls=style, lw=width, label=arm.shown)
    handles.append(drawn)
  low, high = log['loss'].min(), log['loss'].max()
  if low > 0 and high > 30 * low:
    axes.set_yscale('log')
  axes.set_xlabel('optimiser step')
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set_ylabel('training loss')
  figure.suptitle('Training', x=0.02, ha='left', fontweight='bold')
  legend(figure, handles)
  return png(figure)


def examples(
  stored: Mapping[str, np.ndarray],
  *,
  attack: str,
  eps: float,
  arms: Sequence[spec_lib.Arm],
  captions: Mapping[tuple[str, bool], str] | None = None,
  units: str = '',
  classes: Sequence[str] = (),
) -> bytes | None:
  """Rows are arms; clean image, perturbation, attacked image, with truth and output.

  One example is shown: the first that every arm has, else each arm's first. `captions` gives a
  line under the image by (arm, attacked), `classes` the names of labels in the legend. Images are
  [n, h, w, c], of which channel 0 is drawn; other ranks give None.
  """
  here = (stored['attack'] == attack) & np.isclose(stored['eps'], eps)
  picked = _pick(stored, here=here, arms=arms)
  if not picked or stored['image'].ndim != 4:
    return None
  captions = captions or {}
  height, width = stored['image'].shape[1:3]
  row = 2.65 * height / width + 0.5
  figure = blank(8.6, row * len(picked) + 1.0)
  grid = figure.subplots(len(picked), 3, squeeze=False)
  positions = [position for _, position in picked]
  clean = stored['image'][positions, ..., 0].astype(np.float64)
  attacked = stored['adversarial'][positions, ..., 0].astype(np.float64)
  change = attacked - clean
  shades = {'cmap': 'gray', 'vmin': clean.min(), 'vmax': clean.max(), 'interpolation': 'nearest'}
  largest = np.abs(change).max() or 1.0
  for line, (arm, position) in enumerate(picked):
    grid[line, 0].imshow(clean[line], **shades)
    overlays.draw(grid[line, 0], stored, position, suffix='clean')
    mappable = grid[line, 1].imshow(
      change[line], cmap='PuOr', vmin=-largest, vmax=largest, interpolation='nearest'
    )
    grid[line, 2].imshow(attacked[line], **shades)
    overlays.draw(grid[line, 2], stored, position, suffix='adv')
    name = '\n'.join(textwrap.wrap(arm.shown, max(8, int(6 * row))))  # not above the picture
    grid[line, 0].set_ylabel(name, fontsize=11, fontweight='bold')
    under = [captions.get((arm.name, False), ''), '', captions.get((arm.name, True), '')]
    height_of_text = max(text.count('\n') for text in under)
    for axes, text in zip(grid[line], under, strict=True):
      # the same number of lines under every image keeps the row level
      text += '\n' * (height_of_text - text.count('\n'))
      axes.set_xlabel(text or ' ', fontsize=8.5)
  for axes in grid.flat:
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for spine in axes.spines.values():
      spine.set_visible(False)
  for axes, title in zip(grid[0], ('clean image', 'perturbation', 'attacked image'), strict=True):
    axes.set_title(title, fontsize=11)
  bar = figure.colorbar(
    mappable, ax=grid[:, 1], location='bottom', shrink=0.85, pad=0.02, aspect=25
  )
  bar.set_label(f'added to the image {units}'.strip(), fontsize=9)
  bar.set_ticks([-largest, 0, largest], labels=[f'{-largest:.3g}', '0', f'{largest:.3g}'])
  figure.suptitle(f'{attack} at {eps:g}', x=0.02, ha='left', fontweight='bold')
  shown = {name: stored[name][positions] for name in stored if name.startswith('labels_')}
  legend(figure, overlays.handles({**stored, **shown}, classes))
  return png(figure)


def example_cells(stored: Mapping[str, np.ndarray]) -> list[tuple[str, float]]:
  """The (attack, level) pairs for which there are stored examples."""
  return sorted({(str(attack), float(eps)) for attack, eps in zip(stored['attack'], stored['eps'])})


def example_index(stored, *, attack: str, eps: float, arms) -> dict[str, int]:
  """Which example `examples` draws for each arm."""
  here = (stored['attack'] == attack) & np.isclose(stored['eps'], eps)
  picked = _pick(stored, here=here, arms=arms)
  return {arm.name: int(stored['index'][position]) for arm, position in picked}


def _pick(stored, *, here, arms):
  """The examples to draw: [(arm, position in the stored arrays)]."""
  by_arm = {}
  for arm in arms:
    positions = np.flatnonzero(here & (stored['arm'] == arm.name))
    if len(positions):
      by_arm[arm] = {int(stored['index'][position]): position for position in positions[::-1]}
  if not by_arm:
    return []
  first = next(iter(by_arm.values()))
  common = [index for index in reversed(first) if all(index in held for held in by_arm.values())]
  return [
    (arm, held[common[0]] if common else next(reversed(held.values())))
    for arm, held in by_arm.items()
  ]


def _styled(arms: Sequence[spec_lib.Arm]):
  for position, arm in enumerate(arms):
    colour, marker, line = look(position)
    yield arm, arm.colour or colour, marker, arm.line if arm.line != '-' else line


def look(position: int) -> tuple[str, str, str]:
  """Colour, marker and line style of the line number `position`; the first 21 differ."""
  turn, place = divmod(position, len(overlays.COLOURS))
  marker, line = MARKERS[(place + turn) % len(MARKERS)], ('-', '--', '-.')[turn % 3]
  return overlays.COLOURS[place], marker, line


def blank(width: float, height: float, *, dpi: int = DPI):
  """An empty figure, `width` x `height` in inches."""
  figure = figure_lib.Figure(figsize=(width, height), dpi=dpi, layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  return figure


def _axes(*, width: float, height: float):
  figure = blank(width, height)
  axes = figure.subplots()
  axes.grid(color=_GREY, lw=0.6)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  return figure, axes


def _level_ticks(axes, levels: Sequence[float]):
  """Gives every level a tick; labels that would overlap stand upright, or else are left out."""
  if not levels:
    return
  span = (max(levels) - min(levels)) or 1.0
  upright = min(np.diff(levels), default=span) < 0.075 * span
  labelled = [levels[0]]
  for eps in levels[1:]:
    if eps - labelled[-1] >= 0.03 * span:
      labelled.append(eps)
  turn = {'rotation': 90, 'fontsize': 8} if upright else {}
  axes.set_xticks(labelled, labels=[f'{eps:g}' for eps in labelled], **turn)
  axes.set_xticks([eps for eps in levels if eps not in labelled], minor=True)
  margin = 0.03 * span
  axes.set_xlim(min(levels) - margin, max(levels) + margin)


def legend(figure, handles=None, *, columns: int = 4, **style) -> None:
  """Draws a legend below `figure`, by default of the labels in its axes, each once.

  It has as many `columns` as fit.
  """
  if handles is None:
    pairs = [zip(*axes.get_legend_handles_labels()) for axes in figure.axes]
    handles = list({name: one for pair in pairs for one, name in pair}.values())
  for count in range(min(columns, len(handles)), 0, -1):
    drawn = figure.legend(
      handles=handles, loc='outside lower center', ncols=count, frameon=False, **style
    )
    if count == 1 or drawn.get_window_extent().width <= figure.bbox.width:
      return
    drawn.remove()


def png(figure) -> bytes:
  """A figure as PNG bytes, the same for the same figure."""
  held = io.BytesIO()
  figure.savefig(held, format='png', facecolor='white', metadata={'Software': None})
  return held.getvalue()


def save(folder: pathlib.Path, name: str, picture: bytes | None) -> list[pathlib.Path]:
  """Writes a picture into the report of the workdir `folder`; returns [its path], or []."""
  if picture is None:
    return []
  path = pathlib.Path('report') / 'figures' / f'{name}.png'
  with files.replacing(folder / path) as temporary:
    temporary.write_bytes(picture)
  return [path]

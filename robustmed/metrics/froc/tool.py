"""The command `python -m robustmed.metrics.froc`: scores submissions in the LUNA16 format."""

import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import figure as figure_lib
from matplotlib.backends import backend_agg

from robustmed import errors
from robustmed.metrics import froc
from robustmed.metrics.froc import luna16
from robustmed.process import files, tool

_BAND_RATES = tuple(np.geomspace(froc.RATES[0], froc.RATES[-1], 49))


def main(words: Sequence[str]) -> int:
  """Runs the command and returns its exit code; a user error is one line on stderr and code 2."""
  return tool.run(_run, words)


def parser() -> tool.Parser:
  """Returns the parser of the command line."""
  out = tool.Parser(
    prog='python -m robustmed.metrics.froc',
    description='FROC and CPM of LUNA16 submissions, with bootstrap intervals over scans.',
    allow_abbrev=False,
  )
  add = out.add_argument
  add('submission', type=pathlib.Path, help='CSV: seriesuid, coordX, coordY, coordZ, probability')
  add(
    '--annotations',
    type=pathlib.Path,
    required=True,
    metavar='DIR',
    help='folder of annotations.csv, annotations_excluded.csv and seriesuids.csv',
  )
  add(
    '--min-diameter',
    type=float,
    default=0.0,
    metavar='MM',
    help='smaller nodules are treated as irrelevant findings (default: 0, none)',
  )
  add(
    '--out',
    type=pathlib.Path,
    default=pathlib.Path(),
    metavar='DIR',
    help='folder for the curve as CSV and PNG (default: the current folder)',
  )
  add(
    '--bootstrap',
    type=int,
    default=1000,
    metavar='N',
    help='draws of scans (default: 1000; 0: no intervals)',
  )
  add(
    '--against',
    type=pathlib.Path,
    metavar='OTHER.csv',
    help='a second submission: prints the difference of the CPMs, paired over scans',
  )
  return out


def _run(words):
  command = parser().parse_args(list(words))
  if command.bootstrap < 0:
    raise errors.UserError(f'--bootstrap must be 0 or more, not {command.bootstrap}')
  annotations = luna16.read_annotations(command.annotations, min_diameter=command.min_diameter)
  scored = _score(command.submission, annotations)
  found = froc.summary(scored, resamples=command.bootstrap)
  print(table(found, scored.counts))
  if command.against:
    other = _score(command.against, annotations)
    print(_compared(froc.compare(scored, other, resamples=command.bootstrap), command.against))
  stem = command.submission.stem
  band = froc.summary(scored, rates=_BAND_RATES, resamples=command.bootstrap).sensitivity
  curve = froc.curve(scored)
  for path, write in (
    (command.out / f'{stem}_froc.csv', lambda path: _write_curve(path, curve)),
    (command.out / f'{stem}_froc.png', lambda path: _draw(path, curve, found, band)),
  ):
    with files.replacing(path) as temporary:
      write(temporary)
    print(f'wrote {path}')
  return 0


def _score(path, annotations):
  marks = luna16.read_submission(path, annotations.scans)
  return froc.match(marks, annotations.findings, num_scans=len(annotations.scans))


def table(found: froc.Summary, counts: dict[str, int]) -> str:
  """Returns the counts and the operating points as aligned text."""
  width = max(map(len, counts))
  lines = [f'{name:<{width}} {value:>7}' for name, value in counts.items()]
  lines += ['', 'false positives per scan  sensitivity  95 % interval']
  cells = zip(froc.RATES, *found.sensitivity)
  lines += [f'{rate:<24g}  {_cell(*values)}' for rate, *values in cells]
  lines.append(f'{"CPM (mean of the seven)":<24}  {_cell(*found.cpm)}')
  return '\n'.join(lines)


def _cell(value, low, high):
  return f'{value:<11.4f}' + ('' if np.isnan(low) else f'  {low:.4f} to {high:.4f}')


def _compared(difference, other):
  interval = (
    ''
    if np.isnan(difference.low)
    else f' ({difference.low:+.4f} to {difference.high:+.4f}, p = {difference.p_value:.3g})'
  )
  return f'CPM minus that of {other.name}: {difference.value:+.4f}{interval}'


def _write_curve(path, curve):
  frame = pd.DataFrame(
    {
      'threshold': curve.threshold,
      'false_positives_per_scan': curve.rate,
      'sensitivity': curve.sensitivity,
    }
  )
  frame.to_csv(path, index=False)


def _draw(path, curve, found, band):
  """Draws the curve with its interval from 1/8 to 8 false positives per scan."""
  figure = figure_lib.Figure(figsize=(6.4, 4.4), dpi=150, layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  shown = curve.rate > 0  # the axis is logarithmic; the curve is constant beyond its end
  rate = np.append(curve.rate[shown], max(froc.RATES[-1], curve.rate[-1]))
  sensitivity = np.append(curve.sensitivity[shown], curve.sensitivity[-1])
  axes.plot(rate, sensitivity, color='#0072B2', lw=1.5)
  axes.plot(
    froc.RATES, found.sensitivity.value, 'o', color='#0072B2', ms=5, label='operating points'
  )
  if not np.isnan(band.low).any():
    axes.fill_between(
      _BAND_RATES, band.low, band.high, color='#0072B2', alpha=0.18, lw=0, label='95 % interval'
    )
  axes.set_xscale('log', base=2)
  axes.set_xticks(froc.RATES, ['1/8', '1/4', '1/2', '1', '2', '4', '8'])
  axes.minorticks_off()
  axes.set(
    xlim=(froc.RATES[0], froc.RATES[-1]),
    ylim=(0, 1),
    xlabel='False positives per scan',
    ylabel='Sensitivity',
    title=f'CPM {found.cpm.value:.4f}',
  )
  axes.grid(color='#d9d9d9', lw=0.6)
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, loc='lower right')
  figure.savefig(path, format='png')

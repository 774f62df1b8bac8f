"""Tables of what `--stage compile` stored in a folder's workdirs: programs.csv and runs.csv in it,
and table.md for a page, where each run says what was not compiled.

python -m robustmed.runs.compilation FOLDER
"""

import ast
import pathlib
import re
import sys

import pandas as pd

from robustmed.process import files

MIB = 2**20


def main(folder: pathlib.Path) -> None:
  """Writes both tables, sorted by experiment."""
  found = [files.read_json(path) for path in sorted(folder.glob('*/compile/*.json'))]
  names = [path.parts[-3] for path in sorted(folder.glob('*/compile/*.json'))]
  for name, make in (('programs', _programs), ('runs', _runs)):
    rows = [row for config, told in zip(names, found) for row in make(config, told)]
    with files.replacing(folder / f'{name}.csv') as temporary:
      pd.DataFrame(rows).to_csv(temporary, index=False)
  with files.replacing(folder / 'table.md') as temporary:
    temporary.write_text('\n'.join(lines(zip(names, found))) + '\n')
  print(f'{len(found)} runs: {folder / "programs.csv"}, {folder / "runs.csv"}')


def _programs(config, told):
  for row in told['programs']:
    yield {
      'config': config,
      'target': told['target'],
      'program': row['program'],
      'calls': f'{row["calls"]:,.0f}',
      'examples a chip': row['each'],
      'idle chips': row['idle'],
      'arguments MiB': round(row['arguments'] / MIB),
      'temporaries MiB': round(row['temporaries'] / MIB),
      'program MiB': round(row['code'] / MIB, 1),
      'GFLOP': f'{row["flops"] / 1e9:.4g}',
      'sums': row['collectives'],
      'in loops': row['in_loops'],
      'ms': f'{1000 * row["seconds"]["predicted"]:.3g}',
      'hours': f'{row["hours"]["predicted"]:.3g}',
      'fit a chip': row['largest'] or 'does not fit',
      'compiled in s': round(row['compiled_in']),
    }


def _runs(config, told):
  rows = told['programs']
  yield {
    'config': config,
    'target': told['target'],
    'programs': len(rows),
    'distinct': told['distinct'],
    'most memory MiB': round(
      max(row['needed'] or row['arguments'] + row['temporaries'] + row['code'] for row in rows)
      / MIB
    ),
    'do not fit': sum(bool(row['advice']) for row in rows),
    'roofline hours': f'{told["hours"]["roofline"]:.3g}',
    'predicted hours': f'{told["hours"]["predicted"]:.3g}',
    'studies %': round(100 * told['studies']),
  }


def lines(runs) -> list[str]:
  """A table of (config, what its stage stored) in Markdown."""
  found = [
    '| config | target | programs compiled | most HBM of a chip | hours at 30% of the peak, at all '
    'of it | docstring: hours at 10 TFLOP/s | not compiled |',
    '|---|---|---|---|---|---|---|',
  ]
  for config, told in runs:
    rows, left = told['programs'], told['left out']
    most = max(row['needed'] or row['arguments'] + row['temporaries'] + row['code'] for row in rows)
    hours = [f'{told["hours"][kind]:.3g}' for kind in ('predicted', 'roofline')]
    cells = (
      config,
      told['target'],
      f'{len(rows)} of {len(rows) + len(left)}',
      f'{most / MIB:,.0f} MiB' + (' (does not fit)' if any(row['advice'] for row in rows) else ''),
      ', '.join(hours) + (' (of these)' if left else ''),
      stated(config),
      ', '.join(left) or '-',
    )
    found.append(f'| {" | ".join(cells)} |')
  return found


def stated(config: str) -> str:
  """The hours of the preset paper in the docstring of a configuration, '' where it has none."""
  path = pathlib.Path(__file__).parents[3] / 'configs' / f'{config}.py'
  text = ast.get_docstring(ast.parse(path.read_text())) if path.is_file() else ''
  hours = re.search(r'(\d[\d.,]*) hours at 10 TFLOP/s', ' '.join((text or '').split()))
  return hours[1] if hours else ''


if __name__ == '__main__':
  main(files.path_of(sys.argv[1]))

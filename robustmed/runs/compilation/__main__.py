"""Tables of what `--stage compile` stored in a folder's workdirs: programs.csv and runs.csv in it,
and table.md for a page, made of both, where each run says what was not compiled.

python -m robustmed.runs.compilation FOLDER
"""

import ast
import pathlib
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from robustmed.process import files

MIB = 2**20
Row = Mapping[str, Any]


def main(folder: pathlib.Path) -> None:
  """Writes the three tables, sorted by experiment and target."""
  found = [(path.parts[-3], files.read_json(path)) for path in folder.glob('*/compile/*.json')]
  found.sort(key=lambda one: (one[0], one[1]['devices'], one[1]['target']))
  if not found:
    print(f'no compilations are stored in {folder}')
    return
  tables = {
    'programs': [row for config, told in found for row in program_rows(config, told)],
    'runs': [run_row(config, told) for config, told in found],
  }
  for name, rows in tables.items():
    with files.replacing(folder / f'{name}.csv') as temporary:
      pd.DataFrame(rows).to_csv(temporary, index=False)
  files.write_text(folder / 'table.md', '\n'.join(page(*map(rows_of, _paths(folder)))) + '\n')
  print(f'{len(found)} runs: {folder / "programs.csv"}, {folder / "runs.csv"}')


def _paths(folder: pathlib.Path) -> list[pathlib.Path]:
  return [folder / 'runs.csv', folder / 'programs.csv']


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a table that `main` wrote, as text."""
  return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict('records')


def program_rows(config: str, told: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """A row for each program that was compiled."""
  for row in told['programs']:
    held = row['needed'] or row['arguments'] + row['temporaries'] + row['code']
    yield {
      'config': config,
      'target': told['target'],
      'program': row['program'],
      'calls': round(row['calls']),
      'examples a chip': row['each'],
      'idle chips': row['idle'],
      'arguments MiB': round(row['arguments'] / MIB),
      'temporaries MiB': round(row['temporaries'] / MIB),
      'program MiB': round(row['code'] / MIB, 1),
      'together MiB': round(held / MIB),
      'of the memory %': f'{100 * held / told["memory"]:.2g}' if told['memory'] else '',
      'GFLOP': f'{row["flops"] / 1e9:.4g}',
      'sums': row['collectives'],
      'in loops': row['in_loops'],
      'ms': f'{1000 * row["seconds"]["predicted"]:.3g}',
      'hours': f'{row["hours"]["predicted"]:.3g}',
      'fit a chip': row['largest'] or 'does not fit',
      'compiled in CPU s': round(row.get('cpu') or row['compiled_in']),
      'quick': 'yes' if row.get('quick', told.get('quick')) else '',
      'too much': row['advice'],
    }


def run_row(config: str, told: dict[str, Any]) -> dict[str, Any]:
  """What the programs of a run come to, and which were not compiled."""
  rows = list(program_rows(config, told))
  return {
    'config': config,
    'target': told['target'],
    'programs': len(rows),
    'distinct': told['distinct'],
    'most memory MiB': max(row['together MiB'] for row in rows),
    'do not fit': sum(bool(row['too much']) for row in rows),
    'roofline hours': f'{told["hours"]["roofline"]:.3g}',
    'predicted hours': f'{told["hours"]["predicted"]:.3g}',
    'studies %': round(100 * told['studies']),
    'left out': ', '.join(told['left out']),
    'left out take CPU min': f'{_minutes(told):.2g}' if told['left out'] else '',
  }


def _minutes(told) -> float:
  """About how long one core compiles what was left out, by programs of its kind."""
  took: dict[str, list[float]] = {}
  for row in told['programs']:
    took.setdefault(row['kind'], []).append(row.get('cpu') or row['compiled_in'])
  every = statistics.mean(second for seconds in took.values() for second in seconds)
  kinds = [label.partition(' ')[0] for label in told['left out']]
  return sum(statistics.mean(took.get(kind, [every])) for kind in kinds) / 60


def page(runs: Sequence[Row], programs: Sequence[Row]) -> list[str]:
  """Both tables in Markdown."""
  found = _table(
    'config | target | program | examples a chip (idle chips) | MiB args, temps, code | of the '
    'memory | GFLOP | sums (in loops) | fit a chip | CPU time of the compilation',
    [
      (
        row['config'],
        row['target'],
        row['program'],
        row['examples a chip'] + (f' ({row["idle chips"]})' if row['idle chips'] != '0' else ''),
        '; '.join(
          f'{float(row[f"{part} MiB"]):,.0f}' for part in ('arguments', 'temporaries', 'program')
        ),
        f'{row["of the memory %"]}%',
        f'{float(row["GFLOP"]):,.0f}',
        f'{row["sums"]} ({row["in loops"]})',
        f'{int(row["fit a chip"]):,}' if row['fit a chip'].isdigit() else row['fit a chip'],
        f'{row["compiled in CPU s"]} s' + (' (quick)' if row['quick'] else ''),
      )
      for row in programs
    ],
  )
  found += ['', *(f'- {row["config"]}: {row["too much"]}' for row in programs if row['too much'])]
  return [*found, *([''] if found[-1] else []), *lines(runs)]


def lines(runs: Sequence[Row]) -> list[str]:
  """A table of runs in Markdown."""
  return _table(
    'config | target | programs compiled | most HBM of a chip | hours of these at 30% of the peak, '
    'at all of it | docstring: hours of the run at 10 TFLOP/s | not compiled | CPU time of those',
    [
      (
        row['config'],
        row['target'],
        f'{row["programs"]} of {int(row["programs"]) + len(_names(row))}',
        f'{int(row["most memory MiB"]):,} MiB'
        + (' (does not fit)' if int(row['do not fit']) else ''),
        f'{row["predicted hours"]}, {row["roofline hours"]}',
        stated(row['config']),
        _by_kind(_names(row)) or '-',
        f'about {float(row["left out take CPU min"]):.0f} min' if row['left out'] else '-',
      )
      for row in runs
    ],
  )


def _names(row: Row) -> list[str]:
  return row['left out'].split(', ') if row['left out'] else []


def _by_kind(labels: Sequence[str]) -> str:
  """The labels, each kind named once: 'train std, amat; attack pgd'."""
  kinds: dict[str, list[str]] = {}
  for label in labels:
    kind, _, name = label.partition(' ')
    kinds.setdefault(kind, []).append(name)
  return '; '.join(f'{kind} {", ".join(names)}' for kind, names in kinds.items())


def _table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
  number = head.count('|') + 1
  return [f'| {head} |', '|---' * number + '|', *(f'| {" | ".join(cells)} |' for cells in rows)]


def stated(config: str) -> str:
  """The hours of the preset paper in the docstring of a configuration, '' where it has none."""
  path = pathlib.Path(__file__).parents[3] / 'configs' / f'{config}.py'
  text = ast.get_docstring(ast.parse(path.read_text())) if path.is_file() else ''
  hours = re.search(r'(\d[\d.,]*) hours at 10 TFLOP/s', ' '.join((text or '').split()))
  return hours[1] if hours else ''


if __name__ == '__main__':
  main(files.path_of(sys.argv[1]))

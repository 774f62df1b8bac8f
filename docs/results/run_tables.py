"""Writes the CSV tables of a run into the folder of its page, and its line of runs.csv.

  python docs/results/run_tables.py runs/amat_real --page amat_hippocampus --run real \\
      --metric DICE --attack pgd --time '2 h of CPU time' --commit 1234567

`runs/amat_real` is a workdir whose report was written. Of it come

  RUN.csv           means of the metric, a line per arm, a column per level
  RUN_worst.csv     the same under the worst of all attacks, and by how much the attack overstates
  RUN_claims.csv    claims with their verdicts and numbers
  RUN_margins.csv   of AMAT: mean and largest margin after so many steps, of the first seed
  runs.csv          command, time, commit and the number of claims with each verdict

Then `python docs/results/make.py` makes the pages. `page.md` must show every table.
"""

import argparse
import json
import pathlib
import shlex
import sys

import pandas as pd

FOLDER = pathlib.Path(__file__).resolve().parent
CLEAN = 'none'
VERDICTS = ('holds', 'fails', 'undecided', 'measured', 'not run')


def means(summary: pd.DataFrame, *, metric: str, attack: str, digits: int = 3) -> pd.DataFrame:
  """A line per arm that was attacked, a column per level; 0 is clean."""
  rows = summary[(summary.metric == metric) & summary.attack.isin([CLEAN, attack])]
  table = rows.pivot_table(index='arm', columns='eps', values='mean', sort=False)
  table = table[sorted(table.columns)].dropna()
  return _named(table.map(lambda value: f'{value:.{digits}f}'))


def worst(found: pd.DataFrame, members: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
  """The worst of all attacks beside the attack of `own`, a line per arm and level."""
  lines, gaps = [], []
  for line in found.itertuples():
    level = f'{line.eps:g}'
    if line.arm not in own.index or level not in own:
      continue
    mine = members[(members.arm == line.arm) & ((members.eps - line.eps).abs() < 1e-9)]
    mine = mine.sort_values(['share', '_member'], ascending=[False, True])
    names = mine['_member'].replace(CLEAN, 'untouched image')
    by = ', '.join(f'{name} {share:.0%}' for name, share in zip(names, mine.share))
    single = float(own.loc[line.arm, level])
    gaps.append(single - line.mean)
    lines.append([line.arm, level, f'{single:.3f}', f'{line.mean:.3f}', '', by])
  sign = 1 if sum(gaps) >= 0 else -1  # of errors the worst is the largest
  for line, gap in zip(lines, gaps, strict=True):
    line[4] = f'{round(sign * gap, 3) + 0.0:+.3f}'  # no -0
  columns = ['arm', 'level', 'attack', 'worst', 'overstated by', 'found by']
  return pd.DataFrame(lines, columns=columns)


def margins(log: pd.DataFrame, *, lines: int = 8) -> pd.DataFrame:
  """Mean and largest of AMAT's margins over the training, at evenly spaced steps."""
  log = log.iloc[[round(place * (len(log) - 1) / lines) for place in range(lines + 1)]]
  log = log.drop_duplicates('step')
  shown = {name: log[name].map('{:.2f}'.format) for name in ('mean', 'max')}
  return pd.DataFrame({'step': log.step.map('{:g}'.format), **shown})


def neutral(command: str) -> str:
  """A command without its stage and the folders of the machine that it ran on."""
  words, last = [], ''
  for word in shlex.split(command):
    if '--stage' in (word, last):
      last = word
      continue
    name, mark, value = word.partition('=')
    if name in ('--config.data.dir', '--config.data.cache_dir'):
      word = f'{name}{mark}{pathlib.Path(value).name}'
    elif last == '--workdir':
      word = f'runs/{pathlib.Path(word).stem}'
    words.append(word)
    last = name
  return shlex.join(words)


def run_line(workdir: pathlib.Path, claims: pd.DataFrame) -> dict[str, str]:
  """What a run adds to runs.csv: its command and the number of claims with each verdict."""
  env = json.loads((workdir / 'env.json').read_text())
  counts = claims.verdict.value_counts()
  known = {name.replace(' ', '_'): str(counts.get(name, 0)) for name in VERDICTS}
  return {'command': neutral(env['command']), 'claims': str(len(claims)), **known}


def _named(table: pd.DataFrame) -> pd.DataFrame:
  table.columns = [f'{level:g}' for level in table.columns]
  return table


def write(workdir: pathlib.Path, *, page: str, run: str, metric: str, attack: str, **more) -> None:
  """Writes the tables of a workdir, and its line of runs.csv with `more` of its fields."""
  results, folder = workdir / 'results', FOLDER / page
  numbers = dict.fromkeys(('mean', 'std', 'low', 'high'), '')
  summary = pd.read_csv(results / 'summary.csv', keep_default_na=False, na_values=numbers)
  own = means(summary, metric=metric, attack=attack)
  own.to_csv(folder / f'{run}.csv', index_label='arm')
  if (results / 'worst.csv').is_file():
    found, members = (pd.read_csv(results / f'{name}.csv') for name in ('worst', 'worst_members'))
    worst(found, members, own).to_csv(folder / f'{run}_worst.csv', index=False)
  claims = pd.read_csv(workdir / 'report' / 'tables' / 'claims.csv')
  shown = claims[['statement', 'verdict', 'numbers']]
  shown.to_csv(folder / f'{run}_claims.csv', index=False)
  for path in sorted((workdir / 'logs').glob('amat.*.margins.csv'))[:1]:
    margins(pd.read_csv(path)).to_csv(folder / f'{run}_margins.csv', index=False)
  path = FOLDER / 'runs.csv'
  runs = pd.read_csv(path, dtype=str, keep_default_na=False)
  place = (runs.page == page) & (runs.run == run)
  if not place.any():
    raise SystemExit(f'{path}: no line of page {page} and run {run}; add one')
  line = run_line(workdir, claims) | {name: value for name, value in more.items() if value}
  for column, value in line.items():
    runs.loc[place, column] = value
  runs.to_csv(path, index=False)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description='Writes the tables of a run into its page.')
  parser.add_argument('workdir', type=pathlib.Path)
  for name in ('page', 'run', 'metric', 'attack'):
    parser.add_argument(f'--{name}', required=True)
  for name in ('time', 'commit'):
    parser.add_argument(f'--{name}', default='')
  write(**vars(parser.parse_args(argv)))


if __name__ == '__main__':
  sys.exit(main())

"""Makes the pages of docs/results, and the README's verdicts and speeds, from CSV files.

  python docs/results/make.py            writes what has changed
  python docs/results/make.py --check    writes nothing, exit code 1 where something would change

`runs.csv` has one line per run. Every folder with a `page.md` is a page, and the CSV files beside
it are its tables. In `page.md`

  {{runs}}                     the runs of this page: commands, time, commit, verdicts
  {{table NAME}}               NAME.csv as a table
  {{NAME[ROW, COLUMN]}}        one number of NAME.csv, by the name of its row (first column)
  {{runs[RUN, COLUMN]}}        one number of runs.csv, of a run of this page

so that no number is typed twice. In tables the columns `X` and `X ±` become 'mean ± deviation',
`X low` and `X high` become 'low to high'.
"""

import argparse
import pathlib
import re
import sys

import pandas as pd

FOLDER = pathlib.Path(__file__).resolve().parent
README = FOLDER.parents[1] / 'README.md'
VERDICTS = {
  'claims': 'claims',
  'holds': 'holds',
  'fails': 'fails',
  'undecided': 'undecided',
  'measured': 'measured',
  'not_run': 'not run',
}
NOT_COUNTED = 'not counted'


def read(path: pathlib.Path) -> pd.DataFrame:
  """A CSV file as text, so that every number is shown with the digits it was written with."""
  if not path.is_file():
    raise SystemExit(f'{path}: no such table')
  return pd.read_csv(path, dtype=str, keep_default_na=False)


def markdown(table: pd.DataFrame) -> str:
  """A table in Markdown; pairs of columns are joined as the module's docstring says."""
  shown = {}
  for name in table.columns:
    base, _, kind = name.rpartition(' ')
    if kind == '±':
      shown[base] = table[base] + ' ± ' + table[name]
    elif kind == 'low':
      shown[base] = table[name] + ' to ' + table[f'{base} high']
    elif kind != 'high' or f'{base} low' not in table:
      shown[name] = table[name]
  lines = [list(shown), ['---'] * len(shown), *zip(*shown.values())]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def cell(table: pd.DataFrame, row: str, column: str, *, name: str) -> str:
  """The text of one cell; the row is found by the first column."""
  found = table[table.iloc[:, 0] == row]
  if len(found) != 1 or column not in table:
    raise SystemExit(f'{name}[{row}, {column}]: not one cell')
  return found[column].iloc[0]


def counted(runs: pd.DataFrame) -> pd.DataFrame:
  """The runs whose claims were counted; a single count that is not known says so."""
  some = (runs[['holds', 'fails', 'undecided']] != '').any(axis=1)
  return runs[some].replace({name: {'': NOT_COUNTED} for name in VERDICTS})


def runs_of_page(runs: pd.DataFrame) -> str:
  """The part of a page about its runs: their commands, and what they took and decided."""
  commands = '\n'.join(f'{line.command}    # {line.run}' for line in runs.itertuples())
  columns = {'run': 'run', 'time': 'time', 'commit': 'commit'}
  if len(decided := counted(runs)):
    runs = decided.combine_first(runs).loc[runs.index]
    columns |= VERDICTS
  table = runs[list(columns)].rename(columns=columns).replace('', '-')
  return f'```bash\n{commands}\n```\n\n{markdown(table)}'


def page(name: str, runs: pd.DataFrame) -> str:
  """The Markdown of one page."""
  source = FOLDER / name / 'page.md'
  runs = runs[runs['page'] == name].drop(columns='page')
  tables = {path.stem: read(path) for path in sorted((FOLDER / name).glob('*.csv'))} | {
    'runs': runs
  }

  def fill(match):
    words = match[1]
    if words == 'runs':
      return runs_of_page(runs)
    if words.startswith('table '):
      return markdown(read(FOLDER / name / f'{words.removeprefix("table ")}.csv'))
    asked = re.fullmatch(r'(\w+)\[(.+), (.+)\]', words)
    if asked is None or asked[1] not in tables:
      raise SystemExit(f'{source}: {{{{{words}}}}} is neither a table nor a cell')
    return cell(tables[asked[1]], asked[2], asked[3], name=f'{source}: {asked[1]}')

  text = re.sub(r'\{\{(.*?)\}\}', fill, source.read_text('utf-8'))
  return (
    f'<!-- Made by docs/results/make.py from docs/results/{name}/; change it there. -->\n\n{text}'
  )


def titles() -> dict[str, str]:
  """Page -> its title, in the order of `runs.csv`."""
  names = dict.fromkeys(read(FOLDER / 'runs.csv')['page'])
  first = {name: (FOLDER / name / 'page.md').read_text('utf-8').splitlines()[0] for name in names}
  return {name: line.removeprefix('# ') for name, line in first.items()}


def verdicts(runs: pd.DataFrame) -> str:
  """The README's table: what every run decided, with a link to its page."""
  table = counted(runs)
  words = titles()
  table = table.assign(
    experiment=[f'[{words[name]}](docs/results/{name}.md)' for name in table['page']]
  )
  columns = {'experiment': 'experiment', 'run': 'run', 'time': 'time', **VERDICTS}
  return markdown(table[list(columns)].rename(columns=columns).replace('', '-'))


def speeds() -> str:
  """The README's line on the CPU: how many times as fast as PyTorch attacks are, and goals."""
  table = read(FOLDER / 'benchmark' / 'speed.csv')
  names = table['attack'].replace('', None).ffill().str.extract('`(.*)`')[0]
  found = []
  for name, rows in table.groupby(names, sort=False):
    times = ', '.join(f'{row.times} ({row.instructions})' for row in rows.itertuples())
    found.append(f'`{name}` {times}, goal {rows["goal"].iloc[0]}')
  return '; '.join(found) + '.'


def with_block(path: pathlib.Path, name: str, content: str, *, text: str = '') -> str:
  """The file's text with `content` between its markers `<!-- name -->` and `<!-- /name -->`.

  text: taken in place of the file's.
  """
  text, found = re.subn(
    rf'(<!-- {name}\b[^>]*-->\n).*?(\n<!-- /{name} -->)',
    lambda match: match[1] + content + match[2],
    text or path.read_text('utf-8'),
    flags=re.S,
  )
  if found != 1:
    raise SystemExit(f'{path}: wants one pair of markers <!-- {name} --> and <!-- /{name} -->')
  return text


def pages() -> dict[pathlib.Path, str]:
  """Every file that this script makes, or makes a part of, with the text it should have."""
  runs = read(FOLDER / 'runs.csv')
  made = {FOLDER / f'{name}.md': page(name, runs) for name in titles()}
  index = '\n'.join(f'- [{title}]({name}.md)' for name, title in titles().items())
  made[FOLDER / 'README.md'] = with_block(FOLDER / 'README.md', 'pages', index)
  made[README] = with_block(README, 'verdicts', verdicts(runs))
  made[README] = with_block(README, 'speeds', speeds(), text=made[README])
  return made


def main(argv: list[str] | None = None) -> int:
  """Writes the files, or with --check names those that differ; returns the exit code."""
  parser = argparse.ArgumentParser(description='Makes the pages of docs/results from CSV files.')
  parser.add_argument('--check', action='store_true', help='write nothing, fail on a difference')
  check = parser.parse_args(argv).check
  stale = {
    path: text
    for path, text in pages().items()
    if not path.is_file() or path.read_text('utf-8') != text
  }
  for path, text in stale.items():
    print(f'{path.relative_to(README.parent)}: {"differs" if check else "written"}')
    if not check:
      path.write_text(text, 'utf-8')
  return int(check and bool(stale))


if __name__ == '__main__':
  sys.exit(main())

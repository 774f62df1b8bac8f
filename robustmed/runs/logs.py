"""Training logs of a run: one CSV file per network, and one table of them all."""

import pandas as pd

from robustmed.evaluation import trials
from robustmed.process import files

FOLDER, TABLE = 'logs', 'train.csv'


def path(workdir: files.Path, arm: str, trial: trials.Trial) -> files.Path:
  """The log of one network."""
  return workdir / FOLDER / f'{arm}.{trial}.csv'


def merge(workdir: files.Path) -> None:
  """Writes logs/train.csv: the logs of all networks, with columns of the arm and the trial."""
  tables = []
  for file in sorted((workdir / FOLDER).glob('*.seed*[0-9].csv')):
    arm, seed = file.stem.rsplit('.seed', 1)
    table = files.read_with(file, pd.read_csv)
    keys = {'arm': arm, **trials.parse(f'seed{seed}').columns}
    for place, (name, value) in enumerate(keys.items()):
      table.insert(place, name, value)
    tables.append(table.rename(columns={'main/loss': 'loss'}))
  if not tables:
    return
  with files.replacing(workdir / FOLDER / TABLE) as temporary:
    pd.concat(tables, ignore_index=True).to_csv(temporary, index=False)

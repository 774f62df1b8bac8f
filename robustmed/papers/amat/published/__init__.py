"""The printed tables of Ma & Liang 2022 as frames."""

import math
import pathlib

import pandas as pd

from robustmed.report import spec

FOLDER = pathlib.Path(__file__).parent
_COLUMNS = {
  'heart': 'heart_s_per_epoch',
  'hippocampus': 'hippocampus_s_per_epoch',
  'prostate': 'prostate_s_per_epoch',
  'landmarks': 'landmark_s_per_epoch',
  'cells': 'bccd_s_per_epoch',
}


def costs(task: str) -> dict[str, float]:
  """Table 2 of Ma & Liang 2022: seconds per epoch of STD, SAT and AMAT; empty for other tasks."""
  table = pd.read_csv(FOLDER / 'table2.csv').set_index('training')
  column = _COLUMNS.get(task)
  return {} if column is None else {name: float(n) for name, n in table[column].items()}


def clean(task: str) -> float:
  """Table 1 of Ma & Liang 2022: clean TVDI of the standard network; nan for other tasks."""
  table = pd.read_csv(FOLDER / 'table1.csv').set_index('task')['tvdi_std_model']
  return float(table.get(task.capitalize(), math.nan))


def landmarks(*, attack: str, scale: float = 1.0) -> pd.DataFrame:
  """Table 3 of Ma & Liang 2022, MRE in mm of STD(Dice), here 'std', and STD(BCE), 'std_bce'.

  Columns are those of `spec.PAPER`; levels are multiplied by `scale`.
  """
  table = pd.read_csv(FOLDER / 'table3.csv').melt('arm', var_name='eps', value_name='mean')
  level = table['eps'].astype(float)
  table['attack'] = level.map(lambda eps: attack if eps else 'none')
  return table.assign(eps=[float(f'{eps * scale:.4g}') for eps in level], metric='MRE')[
    [*spec.PAPER]
  ]

"""The papers' published tables, stored once, in the shape that `spec.ReportSpec.paper` wants."""

import math
import pathlib
from collections.abc import Mapping

import pandas as pd

from robustmed.report import spec

FOLDER = pathlib.Path(__file__).parent
_SPINE_TABLES = (
  ('Error_reg', 'pgd_reg', 'error_reg_px'),
  ('DICE_reg', 'pgd_reg', 'dice_reg'),
  ('DICE_seg', 'pgd_seg', 'dice_seg'),
)


def spine(attacks: Mapping[str, str] | None = None) -> pd.DataFrame:
  """Tables 1 to 3 of Chen et al. 2021: 15 models, 7 levels, three metrics.

  Columns are those of `spec.PAPER`; level 0 has the attack 'none'. `attacks` renames the attacks.
  """
  attacks = dict(attacks or {})
  parts = []
  for number, (metric, attack, prefix) in enumerate(_SPINE_TABLES, start=1):
    table = pd.read_csv(FOLDER / f'spine_table{number}.csv')
    for eps in (0, 0.01, 0.03, 0.05, 0.07, 0.1, 0.2):
      part = pd.DataFrame({'arm': table['model'], 'mean': table[f'{prefix}@eps={eps:g}']})
      shown = 'none' if eps == 0 else attacks.get(attack, attack)
      parts.append(part.assign(attack=shown, eps=float(eps), metric=metric))
  return pd.concat(parts, ignore_index=True)[[*spec.PAPER]]


_AMAT_COLUMNS = {
  'heart': 'heart_s_per_epoch',
  'hippocampus': 'hippocampus_s_per_epoch',
  'prostate': 'prostate_s_per_epoch',
  'landmarks': 'landmark_s_per_epoch',
  'cells': 'bccd_s_per_epoch',
}


def amat_costs(task: str) -> dict[str, float]:
  """Table 2 of Ma & Liang 2022: seconds per epoch of STD, SAT and AMAT; empty for other tasks."""
  table = pd.read_csv(FOLDER / 'amat_table2.csv').set_index('training')
  column = _AMAT_COLUMNS.get(task)
  return {} if column is None else {name: float(n) for name, n in table[column].items()}


def amat_clean(task: str) -> float:
  """Table 1 of Ma & Liang 2022: clean TVDI of the standard network; nan for other tasks."""
  table = pd.read_csv(FOLDER / 'amat_table1.csv').set_index('task')['tvdi_std_model']
  return float(table.get(task.capitalize(), math.nan))

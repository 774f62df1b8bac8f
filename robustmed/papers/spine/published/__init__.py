"""The printed tables of Chen et al. 2021 as frames."""

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


def tables(attacks: Mapping[str, str] | None = None) -> pd.DataFrame:
  """Tables 1 to 3 of Chen et al. 2021: 15 models, 7 levels, three metrics.

  Columns are those of `spec.PAPER`; level 0 has the attack 'none'. `attacks` renames the attacks.
  """
  attacks = dict(attacks or {})
  parts = []
  for number, (metric, attack, prefix) in enumerate(_SPINE_TABLES, start=1):
    table = pd.read_csv(FOLDER / f'table{number}.csv')
    for eps in (0, 0.01, 0.03, 0.05, 0.07, 0.1, 0.2):
      part = pd.DataFrame({'arm': table['model'], 'mean': table[f'{prefix}@eps={eps:g}']})
      shown = 'none' if eps == 0 else attacks.get(attack, attack)
      parts.append(part.assign(attack=shown, eps=float(eps), metric=metric))
  return pd.concat(parts, ignore_index=True)[[*spec.PAPER]]

"""The printed tables of Liu et al. 2021 as frames."""

import pathlib

import pandas as pd

from robustmed.report import spec

FOLDER = pathlib.Path(__file__).parent
_REGIONS = {'Whole tumor': 'dice_wt', 'Tumor core': 'dice_tc', 'Enhancing tumor': 'dice_et'}
_ATTACKS = {'No attack': 'none', 'FGSM': 'fgsm', 'i-FGSM': 'ifgsm', 'ti-FGSM': 'tifgsm'}
_METRICS = {
  'dice_wt': 'dice_whole_tumor',
  'dice_tc': 'dice_tumor_core',
  'dice_et': 'dice_enhancing_tumor',
  'psnr': 'input_psnr',
  'ssim': 'input_ssim',
  'rmse': 'input_rmse',
}


def defenses(dimension: int) -> pd.DataFrame:
  """Tables 2 (3D) and 3 (2D) of Liu et al. 2021: Dice under FGSM by arm, region and level.

  Columns are those of `spec.PAPER` and std, star (the paper's asterisk) and p (nan: none printed).
  """
  table = pd.read_csv(FOLDER / f'table{ {3: 2, 2: 3}[dimension] }.csv')
  parts = []
  for eps in (0, 0.05, 0.1):
    cells = {name: table[f'dice_eps{eps:g}_{name}'] for name in ('mean', 'std', 'asterisk')}
    part = pd.DataFrame(cells).rename(columns={'asterisk': 'star'})
    part['p'] = table[f'p_eps{eps:g}'].to_numpy(float)
    part['arm'] = [
      _arm(defense, setting)
      for defense, setting in zip(table['defense'], table['parameter(T_or_eps)'])
    ]
    part['metric'] = table['region'].map(_REGIONS)
    parts.append(part.assign(attack='fgsm' if eps else 'none', eps=float(eps)))
  return pd.concat(parts, ignore_index=True)[[*spec.PAPER, 'std', 'star', 'p']]


def _arm(defense: str, setting: float) -> str:
  if defense == 'none':
    return 'std'
  return f'distil_{setting:.0f}' if defense == 'distillation' else f'at_{round(100 * setting):02d}'


def attacks() -> pd.DataFrame:
  """Table 1 of Liu et al. 2021: columns attack, metric, mean, std, star; nan for its dashes."""
  table = pd.read_csv(FOLDER / 'table1.csv')
  parts = []
  for metric, prefix in _METRICS.items():
    star = table.get(f'{prefix}_sig', pd.Series(0, index=table.index))
    cells = {'mean': table[f'{prefix}_mean'], 'std': table[f'{prefix}_std'], 'star': star}
    parts.append(
      pd.DataFrame({'attack': table['attack'].map(_ATTACKS), **cells}).assign(metric=metric)
    )
  return pd.concat(parts, ignore_index=True)

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


def synthesis() -> pd.DataFrame:
  """Table 1 of Chen et al. 2019: columns image, xi, Dice of the organs in per cent, p."""
  table = pd.read_csv(FOLDER / 'synthesis_table1.csv')
  table = table.rename(columns={'input_image': 'image', 'perceptibility_p': 'p'})
  return table.rename(columns=lambda name: name.removeprefix('dice_').removesuffix('_pct'))


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


_REGIONS = {'Whole tumor': 'dice_wt', 'Tumor core': 'dice_tc', 'Enhancing tumor': 'dice_et'}
_BRATS_ATTACKS = {'No attack': 'none', 'FGSM': 'fgsm', 'i-FGSM': 'ifgsm', 'ti-FGSM': 'tifgsm'}
_BRATS_METRICS = {
  'dice_wt': 'dice_whole_tumor',
  'dice_tc': 'dice_tumor_core',
  'dice_et': 'dice_enhancing_tumor',
  'psnr': 'input_psnr',
  'ssim': 'input_ssim',
  'rmse': 'input_rmse',
}


def brats(dimension: int) -> pd.DataFrame:
  """Tables 2 (3D) and 3 (2D) of Liu et al. 2021: Dice under FGSM by arm, region and level.

  Columns are those of `spec.PAPER` and std, star (the paper's asterisk) and p (nan: none printed).
  """
  table = pd.read_csv(FOLDER / f'brats_table{ {3: 2, 2: 3}[dimension] }.csv')
  parts = []
  for eps in (0, 0.05, 0.1):
    cells = {name: table[f'dice_eps{eps:g}_{name}'] for name in ('mean', 'std', 'asterisk')}
    part = pd.DataFrame(cells).rename(columns={'asterisk': 'star'})
    part['p'] = table[f'p_eps{eps:g}'].to_numpy(float)
    part['arm'] = [
      _brats_arm(defense, setting)
      for defense, setting in zip(table['defense'], table['parameter(T_or_eps)'])
    ]
    part['metric'] = table['region'].map(_REGIONS)
    parts.append(part.assign(attack='fgsm' if eps else 'none', eps=float(eps)))
  return pd.concat(parts, ignore_index=True)[[*spec.PAPER, 'std', 'star', 'p']]


def _brats_arm(defense: str, setting: float) -> str:
  if defense == 'none':
    return 'std'
  return f'distil_{setting:.0f}' if defense == 'distillation' else f'at_{round(100 * setting):02d}'


def brats_attacks() -> pd.DataFrame:
  """Table 1 of Liu et al. 2021: columns attack, metric, mean, std, star; nan for its dashes."""
  table = pd.read_csv(FOLDER / 'brats_table1.csv')
  parts = []
  for metric, prefix in _BRATS_METRICS.items():
    star = table.get(f'{prefix}_sig', pd.Series(0, index=table.index))
    cells = {'mean': table[f'{prefix}_mean'], 'std': table[f'{prefix}_std'], 'star': star}
    parts.append(
      pd.DataFrame({'attack': table['attack'].map(_BRATS_ATTACKS), **cells}).assign(metric=metric)
    )
  return pd.concat(parts, ignore_index=True)


def amat_landmarks(*, attack: str, scale: float = 1.0) -> pd.DataFrame:
  """Table 3 of Ma & Liang 2022, MRE in mm of STD(Dice), here 'std', and STD(BCE), 'std_bce'.

  Columns are those of `spec.PAPER`; levels are multiplied by `scale`.
  """
  table = pd.read_csv(FOLDER / 'amat_table3.csv').melt('arm', var_name='eps', value_name='mean')
  level = table['eps'].astype(float)
  table['attack'] = level.map(lambda eps: attack if eps else 'none')
  return table.assign(eps=[float(f'{eps * scale:.4g}') for eps in level], metric='MRE')[
    [*spec.PAPER]
  ]


_NODULE_ARMS = {
  'baseline-DeepLung': 'deeplung',
  'baseline-ce': 'ce',
  'baseline-beta': 'beta',
  'baseline-beta-finetune': 'beta_finetune',
  'beta+syn (random)': 'syn_random',
  'beta+syn': 'syn',
  'beta+poisson': 'poisson',
  'beta+poisson+syn': 'poisson_syn',
  'beta+perturb': 'perturb',
  'beta+perturb+syn': 'perturb_syn',
}
# Columns of Tables 4 to 6 -> (attack, level as printed).
_NODULE_STRESS = {
  4: {'random_nodules': 'random', 'pgd_nodules': 'codes'},
  5: {
    'uniform_0.0': 'none',
    'uniform_0.3': 'uniform 0.3',
    'uniform_0.6': 'uniform 0.6',
    'uniform_0.9': 'uniform 0.9',
    'poisson_x50': 'poisson 50',
    'poisson_x5': 'poisson 5',
    'adversarial': 'positives',
  },
  6: {
    'uniform_noise_patch': 'plain_noise',
    'pgd_noise_patch': 'noise_pgd',
    'negative_patch': 'clean_negatives',
    'pgd_negative_patch': 'negatives',
  },
}


def nodule_arms() -> dict[str, str]:
  """Our arm -> the method's name in Liu et al. 2020 (nodules)."""
  return {arm: method for method, arm in _NODULE_ARMS.items()}


def nodule_counts() -> pd.DataFrame:
  """Table 1: columns quantity, in_house_benchmark, nlst_benchmark."""
  return pd.read_csv(FOLDER / 'nodules_table1.csv')


def nodule_networks() -> pd.DataFrame:
  """Table 2: columns network, params_thousand, mac_giga, side."""
  return pd.read_csv(FOLDER / 'nodules_table2.csv')


def nodule_froc() -> pd.DataFrame:
  """Table 3 in per cent: columns arm, benchmark, cpm, low, high and the rates as text."""
  table = pd.read_csv(FOLDER / 'nodules_table3.csv', keep_default_na=False)
  names = {'cpm_pct': 'cpm', 'cpm_ci95_low': 'low', 'cpm_ci95_high': 'high'}
  names |= {
    name: name.removeprefix('sens_pct@').removesuffix('fp')
    for name in table.columns
    if name.startswith('sens_pct@')
  }
  table = table.rename(columns=names).assign(arm=table['method'].map(_NODULE_ARMS))
  return table[['arm', 'benchmark', *names.values()]]


def nodule_stress(number: int) -> pd.DataFrame:
  """Tables 4 to 6, confidences: columns arm, column, mean, std; a column names attack and level."""
  table = pd.read_csv(FOLDER / f'nodules_table{number}.csv')
  parts = [
    pd.DataFrame(
      {
        'arm': table['method'].map(_NODULE_ARMS),
        'column': column,
        'mean': table[f'{prefix}_mean'],
        'std': table[f'{prefix}_std'],
      }
    )
    for prefix, column in _NODULE_STRESS[number].items()
  ]
  return pd.concat(parts, ignore_index=True)

"""The printed tables of Liu et al. 2020 as frames."""

import pathlib

import pandas as pd

FOLDER = pathlib.Path(__file__).parent
_ARMS = {
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
_STRESS = {
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


def arms() -> dict[str, str]:
  """Our arm -> the method's name in Liu et al. 2020 (nodules)."""
  return {arm: method for method, arm in _ARMS.items()}


def counts() -> pd.DataFrame:
  """Table 1: columns quantity, in_house_benchmark, nlst_benchmark."""
  return pd.read_csv(FOLDER / 'table1.csv')


def networks() -> pd.DataFrame:
  """Table 2: columns network, params_thousand, mac_giga, side."""
  return pd.read_csv(FOLDER / 'table2.csv')


def froc() -> pd.DataFrame:
  """Table 3 in per cent: columns arm, benchmark, cpm, low, high and the rates as text."""
  table = pd.read_csv(FOLDER / 'table3.csv', keep_default_na=False)
  names = {'cpm_pct': 'cpm', 'cpm_ci95_low': 'low', 'cpm_ci95_high': 'high'}
  names |= {
    name: name.removeprefix('sens_pct@').removesuffix('fp')
    for name in table.columns
    if name.startswith('sens_pct@')
  }
  table = table.rename(columns=names).assign(arm=table['method'].map(_ARMS))
  return table[['arm', 'benchmark', *names.values()]]


def stress(number: int) -> pd.DataFrame:
  """Tables 4 to 6, confidences: columns arm, column, mean, std; a column names attack and level."""
  table = pd.read_csv(FOLDER / f'table{number}.csv')
  parts = [
    pd.DataFrame(
      {
        'arm': table['method'].map(_ARMS),
        'column': column,
        'mean': table[f'{prefix}_mean'],
        'std': table[f'{prefix}_std'],
      }
    )
    for prefix, column in _STRESS[number].items()
  ]
  return pd.concat(parts, ignore_index=True)

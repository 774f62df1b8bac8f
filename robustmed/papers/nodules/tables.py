"""The tables of the study of nodules as frames, the paper's numbers beside or below ours."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from robustmed.evaluation import statistics
from robustmed.metrics import detection, froc
from robustmed.papers.nodules import published as papers
from robustmed.papers.nodules import scan_kinds
from robustmed.papers.nodules import scans as nodules_froc
from robustmed.report import tables

DASH = '–'
ABSENT = 'not in this run'
RATES = tuple(f'{rate:g}' for rate in froc.RATES)
COLUMNS = {
  4: ('random', 'codes'),
  5: ('none', 'uniform 0.3', 'uniform 0.6', 'uniform 0.9', 'poisson 50', 'poisson 5', 'positives'),
  6: ('plain_noise', 'noise_pgd', 'clean_negatives', 'negatives'),
}
HEADS = {
  'random': 'random nodules',
  'codes': 'PGD nodules',
  'none': 'nodules',
  'positives': 'PGD nodules (patches)',
  'plain_noise': 'uniform noise',
  'noise_pgd': 'PGD noise',
  'clean_negatives': 'negatives',
  'negatives': 'PGD negatives',
}
# Submissions of candidates -> the networks whose they are.
KINDS = {nodules_froc.FOUND: 'all', nodules_froc.HEAT: 'heat maps', nodules_froc.BOXES: 'boxes'}
# What the paper does not have.
SYNTHETIC = {'random': 'random', 'codes': 'searched'}
MORE = ('uniform_wide 0.3', 'uniform_wide 0.6', 'uniform_wide 0.9', 'poisson 1')
_COUNTED = {
  'ct_scans': 'CT scans',
  'ct_scans_with_nodules': 'CT scans with nodules',
  'solid_nodules': 'solid nodules',
  'fully_calcified_nodules': 'fully calcified nodules',
  'part_solid_nodules': 'part-solid nodules',
  'ground_glass_nodules': 'ground-glass nodules',
  'total_nodules_ge_6mm': 'all nodules that count',
}
_KINDS = {
  'solid_nodules': 'solid',
  'fully_calcified_nodules': 'calcified',
  'part_solid_nodules': 'part_solid',
  'ground_glass_nodules': 'ground_glass',
}


def counts(nodules: pd.DataFrame, *, scans: int, min_diameter: float) -> pd.DataFrame:
  """Table 1; `nodules` are those of the test scans: seriesuid, diameter_mm, kind."""
  large = nodules[nodules['diameter_mm'] >= min_diameter]
  ours = {
    'ct_scans': scans,
    'ct_scans_with_nodules': large['seriesuid'].nunique(),
    'total_nodules_ge_6mm': len(large),
    **{name: int((large['kind'] == kind).sum()) for name, kind in _KINDS.items()},
  }
  published = papers.counts().set_index('quantity')
  lines = [
    {
      'quantity': shown,
      'here': ours[name],
      'in-house (paper)': int(published.loc[name, 'in_house_benchmark']),
      'NLST (paper)': int(published.loc[name, 'nlst_benchmark']),
    }
    for name, shown in _COUNTED.items()
  ]
  unknown = int((large['kind'] == 'unknown').sum())
  if unknown:
    lines.insert(-1, {'quantity': 'of unknown kind', 'here': unknown})
  return pd.DataFrame(lines)


def networks(ours: Mapping[str, tuple[int, int, int]]) -> pd.DataFrame:
  """Table 2; ours: the paper's row -> (parameters, multiply-adds, side of the input)."""
  published = papers.networks().set_index('network')
  lines = []
  for name, (parameters, multiply_adds, side) in ours.items():
    paper = published.loc[name]
    lines.append(
      {
        'network': name,
        'parameters': f'{parameters / 1000:.2f}k',
        'G multiply-adds': f'{multiply_adds / 1e9:.3f}',
        'input': f'{side}^3',
        'parameters (paper)': f'{paper["params_thousand"]:g}k',
        'G multiply-adds (paper)': f'{paper["mac_giga"]:g}',
        'input (paper)': f'{int(paper["side"])}^3',
      }
    )
  return pd.DataFrame(lines)


def detection_table(
  scored: scan_kinds.Submissions, arms: Mapping[str, str], *, resamples: int
) -> pd.DataFrame:
  """Table 3 in per cent: CPM with its interval, sensitivities, both benchmarks of the paper below.

  Of several seeds each has its line; an arm without a submission is said to be absent.
  """
  published = papers.froc()
  lines = []
  for arm, shown in arms.items():
    mine = sorted(key for key in scored if key[0] == arm)
    for _, seed in mine:
      found = froc.summary(scored[arm, seed], resamples=resamples)
      name = shown if len(mine) == 1 else f'{shown}, seed {seed}'
      values = dict(zip(RATES, map(_per_cent, found.sensitivity.value)))
      lines.append({'method': name, 'CPM': _interval(*(100 * x for x in found.cpm)), **values})
    if not mine:
      lines.append({'method': shown, 'CPM': ABSENT})
    for _, row in published[published['arm'] == arm].iterrows():
      name = f'{shown} ({"in-house" if row["benchmark"] == "in_house" else "NLST"}, paper)'
      values = {rate: f'{row[rate]:.2f}' for rate in RATES}
      interval = _interval(row['cpm'], row['low'], row['high'])
      lines.append({'method': name, 'CPM': interval, **values})
  return pd.DataFrame(lines, columns=['method', 'CPM', *RATES]).fillna(DASH)


def _per_cent(value):
  return f'{100 * value:.2f}'


def _interval(value, low, high):
  return f'{value:.2f}' if np.isnan(low) else f'{value:.2f} ({low:.2f}-{high:.2f})'


def differences(
  scored: scan_kinds.Submissions,
  arms: Mapping[str, str],
  *,
  baseline: str,
  resamples: int,
) -> pd.DataFrame:
  """Every network against the baseline on the same draws of scans, Holm's correction over all."""
  lines = []
  for (arm, seed), one in sorted(scored.items()):
    two = scored.get((baseline, seed))
    if arm not in arms or arm == baseline or two is None:
      continue
    found = froc.compare(one, two, resamples=resamples)
    lines.append(
      {
        'method': arms[arm],
        'seed': seed,
        'difference of the CPM (%)': f'{100 * found.value:+.2f}',
        '95 % interval': f'{100 * found.low:+.2f} to {100 * found.high:+.2f}',
        'p': found.p_value,
      }
    )
  table = pd.DataFrame(lines)
  if len(table):
    table['p (Holm)'] = [tables.probability(p) for p in statistics.holm(table['p'])]
    table['p'] = [tables.probability(p) for p in table['p']]
  return table


def candidates(scored: scan_kinds.Submissions) -> pd.DataFrame:
  """How many of the nodules the candidate networks found at all."""
  lines = []
  for (arm, seed), one in sorted(scored.items()):
    if arm in KINDS:
      count = one.counts
      lines.append(
        {
          'networks': KINDS[arm],
          'seed': seed,
          'nodules': count['nodules'],
          'with a candidate': count['true positives'],
          'sensitivity': f'{count["true positives"] / max(1, count["nodules"]):.3f}',
          'candidates per scan': f'{count["marks"] / count["scans"]:.1f}',
        }
      )
  return pd.DataFrame(lines)


# Stress tests -------------------------------------------------------------------------------------


def column_of(stress: pd.DataFrame) -> pd.Series:
  """The name of a row's column in the tables: the attack, with its level where it has several."""
  level = stress['eps'].map(lambda eps: f' {eps:g}')
  several = stress['attack'].isin(['uniform', 'uniform_wide', 'poisson'])
  return stress['attack'] + level.where(several, '')


def stressed(
  stress: pd.DataFrame,
  arms: Mapping[str, str],
  columns: Sequence[str],
  *,
  number: int = 0,
  metric: str = 'confidence',
) -> pd.DataFrame:
  """Mean ± standard deviation over patches, by method and column; with the `number` of a table of
  the paper its cells follow, without it columns that nobody met are left out."""
  named = stress.assign(column=column_of(stress))
  columns = [name for name in columns if number or name in set(named['column'])]
  if not columns:
    return pd.DataFrame()
  groups = named.groupby(['arm', 'column'])[metric].agg(['mean', 'std'])
  published = papers.stress(number).set_index(['arm', 'column']) if number else None
  lines = []
  for arm, shown in arms.items():
    if arm in set(named['arm']):
      lines.append({'method': shown, **_cells(groups, arm, columns)})
    if published is not None and arm in published.index.get_level_values('arm'):
      lines.append({'method': shown + tables.PAPER_MARK, **_cells(published, arm, columns)})
  return pd.DataFrame(lines)


def _cells(table, arm, columns):
  return {
    HEADS.get(name, name): _spread(*table.loc[(arm, name), ['mean', 'std']])
    if (arm, name) in table.index
    else DASH
    for name in columns
  }


def _spread(mean, std):
  if not np.isfinite(mean):
    return DASH
  return f'{mean:.2f} ± {0.0 if not np.isfinite(std) else std:.2f}'


def white_box(stress: pd.DataFrame, arms: Mapping[str, str]) -> pd.DataFrame:
  """Confidence under patches searched on the baseline and on the network itself, side by side."""
  kinds = [name for name in ('codes', 'positives', 'noise_pgd', 'negatives')
           if (stress['attack'] == f'own_{name}').any()]  # fmt: skip
  if not kinds:
    return pd.DataFrame()
  columns = [name for kind in kinds for name in (kind, f'own_{kind}')]
  found = stressed(stress, arms, columns)
  shown = {f'own_{kind}': f'{HEADS[kind]}, its own' for kind in kinds}
  return found.rename(columns=shown)


def uncertainties(stress: pd.DataFrame, arms: Mapping[str, str]) -> pd.DataFrame:
  """AUROC of 1 - the certainty 2 / S: which share of pairs of a patch and a stressed one it orders.

  Nodules and negatives as they are count as patches. A value of 1/2 is a guess.
  """
  if 'uncertainty' not in stress.columns:
    return pd.DataFrame()
  known = stress[np.isfinite(stress['uncertainty'])]
  named, lines = known.assign(column=column_of(known)), []
  clean = ('none', 'clean_negatives')
  for arm, shown in arms.items():
    part = named[named['arm'] == arm]
    negative = part[part['attack'].isin(clean)]
    line = {'method': shown}
    for column in ('poisson 5', 'positives', 'plain_noise', 'noise_pgd', 'negatives'):
      positive = part[part['column'] == column]
      if len(negative) and len(positive):
        found = detection.auroc_interval(
          negative['uncertainty'].to_numpy(),
          positive['uncertainty'].to_numpy(),
          negative_groups=negative['group'].to_numpy(),
          positive_groups=positive['group'].to_numpy(),
          shared='noise' not in column,  # what begins with no scan has none
        )
        line[HEADS.get(column, column)] = f'{found[0]:.2f} ({found[1]:.2f}-{found[2]:.2f})'
    if len(line) > 1:
      lines.append(line)
  return pd.DataFrame(lines)


def synthetic(made: pd.DataFrame) -> pd.DataFrame:
  """Size, density and border of the training nodules, and of the random and searched nodules with
  numbers that both have."""
  lines = []
  for seed, part in made.groupby('seed'):
    kept = {name: part[part['attack'] == name].set_index('index') for name in SYNTHETIC}
    both = kept['random'].index.intersection(kept['codes'].index)
    if both.empty:
      continue
    shown = {'training nodules': part[part['attack'] == 'real']} if 'border' in part else {}
    shown |= {f'{said} codes': kept[name].loc[both] for name, said in SYNTHETIC.items()}
    for name, rows in shown.items():
      heads = {'diameter': ('diameter (mm)', 1), 'hu': ('mean HU', 0)}
      cells = {
        head: f'{rows[key].mean():.{digits}f} ± {rows[key].std():.{digits}f}'
        for key, (head, digits) in heads.items()
      }
      if 'border' in rows:
        cells['in the border'] = f'{100 * rows["border"].mean():.1f} %'
      lines.append({'seed': seed, 'nodules': name, **cells, 'number': len(rows)})
  return pd.DataFrame(lines)

"""From rows of slices to rows of volumes, from many attacks to the worst, and to a verdict."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustmed.evaluation import hypotheses, statistics
from robustmed.metrics import regions

WORST = 'worst'  # the attack of rows that hold the worst of several attacks
CELL = ['arm', 'attack', 'eps', 'seed']
VERDICTS = ('holds', 'partly masked', 'masked', 'no gain')
SHOWN = ('fgsm', 'ifgsm')  # attacks that know nothing of temperature
ALPHA, MOST, FEW = 0.05, 0.5, 0.1
RULE = (
  'Gains are mean differences to `std`, paired by subject, each with a one-sided test of the mean '
  'and Holm over the defenses. The gain shown is the larger of those under FGSM and i-FGSM, which '
  'know nothing of temperature. **no gain**: neither it nor the gain under the worst attack is '
  f'significant (p < {ALPHA:g}). **holds**: the gain under the worst attack is significant and at '
  f'least {MOST:.0%} of the gain shown. **masked**: it is not significant, or below {FEW:.0%} of '
  'the gain shown. **partly masked**: in between.'
)


def volumes(rows: pd.DataFrame) -> pd.DataFrame:
  """One row per network, cell and volume from the rows of its slices.

  Dice from the summed counts, RMSE over all voxels and PSNR from that, the largest distance, the
  mean of everything else; a volume's index is its group.
  """
  rows = rows.sort_values([*CELL, 'group', 'index'], kind='stable')
  number = rows.groupby([*CELL, 'group'], sort=False).ngroup().to_numpy()
  first = rows.iloc[np.unique(number, return_index=True)[1]]
  made = first[[*CELL, 'group']].reset_index(drop=True)
  made['index'] = made['group']
  scores = regions.volume_dice({name: rows[name].to_numpy() for name in _counts(rows)}, number)
  mean = lambda values: np.bincount(number, values) / np.bincount(number)
  for name in rows.columns:
    if name in made.columns or name in _counts(rows):
      continue
    values = rows[name].to_numpy(np.float64)
    if name in scores:
      made[name] = scores[name]
    elif name == 'rmse':
      made[name] = np.sqrt(mean(values**2))
    elif name == '_distance':
      made[name] = pd.Series(values).groupby(number).max().to_numpy()
    elif name != 'psnr':
      made[name] = mean(values)
  if 'rmse' in made.columns:
    with np.errstate(divide='ignore'):
      made['psnr'] = -20 * np.log10(made['rmse'])
  keys = [*CELL, 'index', 'group']
  return made[[*keys, *[name for name in made.columns if name not in keys]]]


def _counts(rows: pd.DataFrame) -> list[str]:
  return [name for name in rows.columns if name.startswith(('_both_', '_size_'))]


def worst(
  rows: pd.DataFrame, *, attacks: Sequence[str], eps: float, metrics: Sequence[str]
) -> pd.DataFrame:
  """One row per network and subject: of each metric the smallest value under any of the attacks."""
  kept = rows[rows['attack'].isin([*attacks]) & np.isclose(rows['eps'], eps)]
  keys = ['arm', 'seed', 'group', 'index']
  least = kept.groupby(keys, as_index=False)[[*metrics]].min()
  return least.assign(attack=WORST, eps=float(eps))


def verdicts(
  rows: pd.DataFrame,
  *,
  arms: Sequence[str],
  attacks: Sequence[str],
  eps: float,
  metric: str,
  reference: str = 'std',
  shown: Sequence[str] = SHOWN,
) -> pd.DataFrame:
  """One line per arm with rows: the largest of the gains under the attacks `shown` (column 'by'
  names it), the gain under the worst of `attacks`, and a verdict by `RULE`."""
  frame = pd.concat(
    [rows, worst(rows, attacks=attacks, eps=eps, metrics=[metric])], ignore_index=True
  )
  frame = statistics.prepare(frame, metrics=[metric])
  lines = []
  for arm in arms:
    gains = {
      attack: _gain(frame, arm, reference, attack, eps, metric) for attack in (*shown, WORST)
    }
    gains = {attack: gain for attack, gain in gains.items() if gain.n}
    if arm == reference or WORST not in gains or len(gains) < 2:
      continue
    by = max(gains.keys() - {WORST}, key=lambda attack: (gains[attack].mean, attack))
    means = [
      statistics.select(frame, arm=arm, attack=attack, eps=at)[metric].mean()
      for attack, at in ((statistics.CLEAN, 0.0), (by, eps), (WORST, eps))
    ]
    cells = (gains[by], gains[WORST])
    lines.append((arm, by, *means, *(cell.mean for cell in cells), *map(_p, cells)))
  columns = ['arm', 'by', 'clean', 'shown', WORST, 'gain_shown', 'gain_worst']
  columns += ['p_shown', 'p_worst']
  table = pd.DataFrame(lines, columns=columns)
  for name in ('p_shown', 'p_worst'):
    table[name] = statistics.holm(table[name].to_numpy(float))
  table['kept'] = table['gain_worst'] / table['gain_shown'].where(table['gain_shown'] > 0)
  table['verdict'] = [verdict_of(line) for line in table.to_dict('records')]
  return table


def verdict_of(line) -> str:
  """`RULE`, for a line with gains and their corrected p values."""
  shown = line['gain_shown'] > 0 and line['p_shown'] < ALPHA
  kept = line['gain_worst'] > 0 and line['p_worst'] < ALPHA
  if not shown:
    return 'holds' if kept else 'no gain'
  share = line['gain_worst'] / line['gain_shown']
  if not kept or share < FEW:
    return 'masked'
  return 'holds' if share >= MOST else 'partly masked'


def _gain(frame, arm, reference, attack, eps, metric) -> statistics.Difference:
  first, second = (
    statistics.select(frame, arm=name, attack=attack, eps=eps) for name in (arm, reference)
  )
  return statistics.paired_difference(first, second, metric=metric)


def _p(gain: statistics.Difference) -> float:
  return float(hypotheses.mean_test(gain.by_group, low=0.0).p)

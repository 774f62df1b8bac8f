"""From rows of slices to rows of volumes, of many attacks to the lowest Dice, and to verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustmed.evaluation import hypotheses, statistics
from robustmed.metrics import regions

LOWEST = 'lowest'  # the attack of rows that hold the lowest values under several attacks
CELL = ['arm', 'attack', 'eps', 'seed']
VERDICTS = ('holds', 'partly', 'gone', 'masked', 'no gain shown')
SHOWN = 'fgsm'  # the paper's attack on its defenses
ALPHA, LITTLE, MOST = 0.05, 1 / 3, 2 / 3
RULE = (
  'The gain of a defense is its Dice minus that of `std` under the same attack, by subject. The '
  'gain shown is that under FGSM, the attack of the paper; the gain left is that of the lowest '
  'Dice of a subject under one attack at this level, each region for itself. (The section "Worst '
  'of all attacks" may be lower: it also mixes attacks slice by slice, and counts lower levels.) '
  f'Every test is one-sided, of the mean over subjects, at p < {ALPHA:g} with Holm over the '
  'defenses. **no gain shown**: the gain shown is not above 0. **holds**: the gain left is above '
  'two thirds of the gain shown. **gone**: it is below a third. **masked**: gone, and besides an '
  'attack that temperature does not blind (scaled logits, margin, images made for another network, '
  'no gradient) lowers the Dice more than the gradient of the loss does in as many steps, and by '
  'more than it does on `std`; a gain that merely yields to more steps is weak, not masked. '
  '**partly**: none of these.'
)
# Attacks that temperature does not blind, and those by the loss that the network was trained with.
_AWARE, _LOSS, _GRADIENTS = ('scaled', 'margin'), 'dice', ('fgsm', 'ifgsm', 'pgd')


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


def lowest(
  rows: pd.DataFrame, *, attacks: Sequence[str], eps: float, metrics: Sequence[str]
) -> pd.DataFrame:
  """One row per network and subject: of each metric the smallest value under any of the attacks."""
  kept = rows[rows['attack'].isin([*attacks]) & np.isclose(rows['eps'], eps)]
  keys = ['arm', 'seed', 'group', 'index']
  least = kept.groupby(keys, as_index=False)[[*metrics]].min()
  return least.assign(attack=LOWEST, eps=float(eps))


def equal_steps(attacks: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
  """Pairs of config.evaluate.attacks that take equally many steps: one that temperature does not
  blind, one that follows the gradient of the network's own loss."""
  steps = lambda one: one.get('num_steps', 1) * one.get('restarts', 1)
  blind = lambda one: one['name'] in _GRADIENTS and one.get('objective') == _LOSS
  aware = lambda one: one.get('objective') in _AWARE or one['name'] == 'square'
  away = lambda one: bool(one.get('source'))
  return tuple(
    (name, other)
    for name, one in attacks.items()
    if aware(one) or away(one)
    for other, own in attacks.items()
    if blind(own) and not away(own) and steps(one) == steps(own)
  )


def verdicts(
  rows: pd.DataFrame,
  *,
  arms: Sequence[str],
  attacks: Sequence[str],
  eps: float,
  metric: str,
  rivals: Sequence[tuple[str, str]],
  reference: str = 'std',
) -> pd.DataFrame:
  """One line per arm with rows: the gains under `SHOWN` and of the lowest values under `attacks`,
  and a verdict by `RULE`; `rivals` are those of `equal_steps`, column 'by' names the best."""
  frame = pd.concat(
    [rows, lowest(rows, attacks=attacks, eps=eps, metrics=[metric])], ignore_index=True
  )
  frame = statistics.prepare(frame, metrics=[metric])
  known = set(frame['arm'])
  lines = []
  for arm in arms:
    if arm == reference or arm not in known or reference not in known:
      continue
    gain = lambda attack, weight, arm=arm: [
      (weight, (arm, attack)),
      (-weight, (reference, attack)),
    ]
    tested = lambda terms, **bounds: _tested(frame, terms, eps, metric, **bounds)
    shown, left = tested(gain(SHOWN, 1.0), low=0.0), tested(gain(LOWEST, 1.0), low=0.0)
    if shown is None or left is None:
      continue
    gone = tested(gain(LOWEST, 1.0) + gain(SHOWN, -LITTLE), high=0.0)
    holds = tested(gain(LOWEST, 1.0) + gain(SHOWN, -MOST), low=0.0)
    by, aware = _aware(tested, arm, reference, rivals)
    means = [
      statistics.select(frame, arm=arm, attack=attack, eps=at)[metric].mean()
      for attack, at in ((statistics.CLEAN, 0.0), (SHOWN, eps), (LOWEST, eps))
    ]
    found = (shown, left, gone, holds)
    lines.append(
      (arm, *means, shown.estimate, left.estimate, *(float(one.p) for one in found), by, aware)
    )
  p = ['p_shown', 'p_left', 'p_gone', 'p_holds']
  columns = ['arm', 'clean', 'shown', LOWEST, 'gain_shown', 'gain_left', *p, 'by', 'p_aware']
  table = pd.DataFrame(lines, columns=columns)
  for name in (*p, 'p_aware'):
    table[name] = statistics.holm(table[name].to_numpy(float))
  table['kept'] = table['gain_left'] / table['gain_shown'].where(table['gain_shown'] > 0)
  table['verdict'] = [verdict_of(line) for line in table.to_dict('records')]
  return table


def verdict_of(line) -> str:
  """`RULE`, for a line with gains and their corrected p values."""
  if not (line['gain_shown'] > 0 and line['p_shown'] < ALPHA):
    return 'no gain shown'
  if line['p_holds'] < ALPHA:
    return 'holds'
  if line['p_gone'] < ALPHA:
    return 'masked' if line['p_aware'] < ALPHA else 'gone'
  return 'partly'


def _aware(tested, arm, reference, rivals) -> tuple[str, float]:
  """The rival with the smallest p, and that times their number; '' and nan without any.

  Where the reference did not meet the rival, which for images made on the reference it does not,
  that the arm suffers more from it than from its own gradient is all that is asked.
  """
  found = {}
  for name, own in rivals:
    ours = [(1.0, (arm, own)), (-1.0, (arm, name))]
    alone = tested(ours, low=0.0)
    if alone is None:
      continue
    more = tested([*ours, (-1.0, (reference, own)), (1.0, (reference, name))], low=0.0)
    found[name] = max(float(one.p) for one in (alone, more) if one is not None)
  if not found:
    return '', float('nan')
  best = min(found, key=found.__getitem__)
  return best, min(1.0, len(found) * found[best])


def _tested(frame, terms, eps, metric, **bounds) -> hypotheses.Finding | None:
  """The mean over subjects of a weighted sum of cells; None where one has no rows."""
  parts = [
    (weight, statistics.select(frame, arm=arm, attack=attack, eps=eps))
    for weight, (arm, attack) in terms
  ]
  if any(part.empty for _, part in parts):
    return None
  both = statistics.contrast(parts, metric=metric)
  if not len(both):
    return None
  means = statistics.group_means(both['value'].to_numpy(), both['group'].to_numpy())
  return hypotheses.mean_test(means, **bounds)

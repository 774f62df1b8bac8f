"""Checks of a robustness result: signs in the rows of a broken or a fooled attack.

Columns besides the metric, each optional (a check without its columns is reported as `skipped`):
`_value` and `_start` the attack's objective at the result and at the clean point, `_distance` from
the centre of the ball, `_zero_grad` the share of gradient entries that are exactly zero,
`_saturated` the share of outputs that are exactly 0 or 1, `_output.*` and `_target.*` what
`movement` reads.

A difference counts when its 99 % group bootstrap interval, paired by example, lies wholly on one
side. It is a failure if it also exceeds 1 % of the quantity's range over the levels of that arm,
else a warning: a thresholded metric may change a little against its objective.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed.evaluation import movement, statistics, trials
from robustmed.evaluation.checks.check import Check

LEVEL = 0.99
TRIFLE = 0.01  # share of the range over the levels that a failure exceeds
ZERO_GRADIENT = 0.99  # share of zero entries from which a gradient is useless
# Of the deviation of an output over that of its target. Below 0.1 the network keeps nine tenths of
# the error of a constant that has not seen the image, below 0.25 three quarters (see `movement`).
STILL, SLUGGISH = 0.1, 0.25
DISTANCE_RTOL, DISTANCE_ATOL = 1e-4, 1e-6  # float32 rounding of x - centre


class _Grid(NamedTuple):
  """The rows of one arm, with the columns that the checks use."""

  arm: str
  rows: pd.DataFrame
  attack: str  # the main attack
  harm: str  # a column that grows with damage
  metric: str

  def cell(self, attack: str, eps: float) -> pd.DataFrame:
    return statistics.select(self.rows, arm=self.arm, attack=attack, eps=eps)

  def levels(self, attack: str) -> list[float]:
    return sorted(self.rows.loc[self.rows['attack'] == attack, 'eps'].unique().tolist())

  def has(self, column: str, attack: str | None = None) -> bool:
    rows = self.rows if attack is None else self.rows[self.rows['attack'] == attack]
    return column in rows.columns and bool(np.isfinite(rows[column].astype(float)).any())


def run(
  rows: pd.DataFrame,
  *,
  metric: str,
  higher_is_better: bool,
  main: str = 'pgd_seg',
  one_step: str = 'fgsm',
  noise: str = 'noise',
  undefended: str = 'std',
) -> list[Check]:
  """Every check for every arm, in a fixed order; `metric` is the one that `main` attacks.

  `main` is the strongest gradient attack, `one_step` a single step and `noise` no gradient at all,
  at the same levels.
  """
  rows = statistics.prepare(rows, metrics=[metric])
  rows['_harm'] = -rows[metric] if higher_is_better else rows[metric]
  arms = rows['arm'].unique().tolist()
  useless = {arm: _useless_gradients(rows, arm=arm, attack=main) for arm in arms}
  found = []
  for arm in arms:
    grid = _Grid(arm, rows[rows['arm'] == arm], main, '_harm', metric)
    arm_checks = [
      ('zero gradients', *_zero_gradients(grid, useless=useless, undefended=undefended)),
      ('more budget, more harm', *_monotone(grid, column='_harm', label=metric)),
      ('more budget, larger objective', *_monotone(grid, column='_value', label='the objective')),
      ('many steps beat one', *_stronger(grid, weaker=one_step, must_win=False)),
      ('gradients beat noise', *_stronger(grid, weaker=noise, must_win=True)),
      ('saturated outputs', *_saturated(grid)),
      ('inside the ball', *_inside(grid)),
      ('objective above its start', *_above_start(grid, noise=noise)),
      ('defined values', *_defined(grid)),
      ('outputs move with the image', *_moves(grid)),
    ]
    found += [Check(name, arm, status, detail) for name, status, detail in arm_checks]
  return found


def _useless_gradients(rows: pd.DataFrame, *, arm: str, attack: str) -> float:
  part = rows[(rows['arm'] == arm) & (rows['attack'] == attack)]
  if '_zero_grad' not in part.columns:
    return math.nan
  share = part['_zero_grad'].to_numpy(np.float64)
  share = share[np.isfinite(share)]
  return float((share >= ZERO_GRADIENT).mean()) if len(share) else math.nan


def _zero_gradients(grid: _Grid, *, useless: dict[str, float], undefended: str):
  """A defense that masks gradients has more examples without a gradient than `undefended`."""
  here = useless[grid.arm]
  if math.isnan(here):
    return 'skipped', f'{grid.attack}: no column _zero_grad'
  reference = useless.get(undefended, math.nan)
  detail = f'{grid.attack}: {here:.1%} of the attacked examples have (almost) no gradient'
  if not math.isnan(reference) and grid.arm != undefended:
    detail += f' ({undefended}: {reference:.1%})'
    here_only = here - reference
  else:
    here_only = here
  if here_only > 0.5:
    return 'fail', detail
  return ('warn' if here > 0.05 else 'pass'), detail


def _monotone(grid: _Grid, *, column: str, label: str):
  """A larger ball contains the smaller one, so the attack must not get weaker."""
  levels = [eps for eps in grid.levels(grid.attack) if eps > 0]
  if not grid.has(column, grid.attack):
    return 'skipped', f'{grid.attack}: no column {column} or no rows'
  if not grid.cell(grid.attack, 0.0).empty and column == grid.harm:
    levels = [0.0, *levels]
  if len(levels) < 2:
    return 'skipped', f'{grid.attack}: fewer than two levels'
  attack = grid.attack
  gains = [
    (f'{a:g} -> {b:g}', _compare(grid, attack, a, attack, b, column=column))
    for a, b in itertools.pairwise(levels)
  ]
  return _status(
    gains,
    scale=_range(grid, column),
    good=f'{grid.attack}: {label} never gets better for the defender over {len(levels)} levels',
    bad=f'{grid.attack}: more budget helps the defender in {label}',
  )


def _stronger(grid: _Grid, *, weaker: str, must_win: bool):
  """The main attack does at least as much harm as a weaker one at every common level."""
  common = sorted(set(grid.levels(grid.attack)) & set(grid.levels(weaker)) - {0.0})
  if not common:
    return 'skipped', f'{grid.attack} and {weaker} share no level'
  gains = [
    (f'{eps:g}', _compare(grid, weaker, eps, grid.attack, eps, column=grid.harm)) for eps in common
  ]
  status, detail = _status(
    gains,
    scale=_range(grid, grid.harm),
    good=f'{grid.attack} harms {grid.metric} at least as much as {weaker} at {len(common)} levels',
    bad=f'{weaker} harms {grid.metric} more than {grid.attack}',
  )
  largest = gains[-1][1]
  if status == 'pass' and must_win and not _clearly_positive(largest):
    return 'warn', (
      f'at {common[-1]:g}, {grid.attack} does not clearly harm {grid.metric} more than {weaker} '
      f'(by {_shown(largest)})'
    )
  return status, detail


def _saturated(grid: _Grid):
  """Outputs that are exactly 0 or 1 in float32 have no gradient left to follow."""
  if not grid.has('_saturated', grid.attack):
    return 'skipped', f'{grid.attack}: no column _saturated'
  share = grid.rows.loc[grid.rows['attack'] == grid.attack, '_saturated'].mean()
  status = 'fail' if share >= 0.99 else 'warn' if share > 0.5 else 'pass'
  return status, f'{grid.attack}: {share:.1%} of the outputs are exactly 0 or 1'


def _inside(grid: _Grid):
  """No attack may leave its ball."""
  if not grid.has('_distance'):
    return 'skipped', 'no column _distance'
  rows = grid.rows[(grid.rows['eps'] > 0) & np.isfinite(grid.rows['_distance'].astype(float))]
  excess = rows['_distance'] - rows['eps'] * (1 + DISTANCE_RTOL) - DISTANCE_ATOL
  outside = rows[excess > 0]
  if outside.empty:
    return 'pass', f'all {len(rows)} attacked examples'
  line = outside.loc[excess[excess > 0].idxmax()]
  return 'fail', (
    f'{len(outside)} of {len(rows)} attacked examples; the worst: {line["attack"]} at '
    f'{line["eps"]:g} went {line["_distance"]:.6g} far'
  )


def _above_start(grid: _Grid, *, noise: str):
  """An attack must not end at a lower objective than the clean image (higher if it minimises)."""
  if not grid.has('_gain'):
    return 'skipped', 'no column _gain'
  rows = grid.rows[(grid.rows['eps'] > 0) & (grid.rows['attack'] != noise)]
  if '_distance' in rows.columns:  # corruptions have none, and follow no objective
    rows = rows[np.isfinite(rows['_distance'].astype(float))]
  gain = rows['_gain'].astype(float)
  known = np.isfinite(gain)
  rows, gain = rows[known], gain[known]
  if rows.empty:
    return 'skipped', 'no gradient attack'
  lower = gain < -1e-5 * np.maximum(1.0, rows['_start'].abs())
  means = gain.groupby([rows['attack'], rows['eps']]).mean()
  shares = lower.groupby([rows['attack'], rows['eps']]).mean()
  sunk = means[(means < 0) & (shares > 0)]
  if not sunk.empty:
    (attack, eps), by = sunk.idxmin(), -sunk.min()
    status = 'fail' if grid.attack in sunk.index.get_level_values(0) else 'warn'
    return status, f'on average the objective falls, most under {attack} at {eps:g} (by {by:.4g})'
  (attack, eps), share = shares.idxmax(), shares.max()
  detail = f'{lower.mean():.1%} of the attacked examples end lower than they started'
  if share > 0.05:
    return 'warn', f'{detail}, most of them under {attack} at {eps:g} ({share:.1%})'
  return 'pass', detail


def _defined(grid: _Grid):
  """Values that are not finite are left out of every mean, which can flatter an arm."""
  unknown = ~np.isfinite(grid.rows[grid.metric].astype(float))
  detail = f'{int(unknown.sum())} of {len(unknown)} values of {grid.metric} are not finite'
  return ('warn' if unknown.any() else 'pass'), detail


def _moves(grid: _Grid):
  """A network that ignores its input gives the same output for every clean image."""
  clean = grid.rows[grid.rows['attack'] == statistics.CLEAN]
  networks = [part for _, part in clean.groupby(trials.names(clean))]
  found: dict[str, float] = {}
  for name, share in (pair for part in networks for pair in movement.shares(part).items()):
    found[name] = min(share, found.get(name, math.inf))
  if not found:
    return 'skipped', f'no column {movement.OUTPUT}* of clean images'
  shown = ', '.join(f'{name} {share:.1%}' for name, share in found.items())
  detail = f'deviation from image to image, of that of the targets: {shown}'
  slow = [name for name, share in found.items() if share < SLUGGISH]
  still = [name for name in slow if found[name] < STILL]
  if still:
    return 'fail', f'{" and ".join(still)} (nearly) the same for every image; {detail}'
  if slow:
    return 'warn', f'{" and ".join(slow)} hardly moves; {detail}'
  return 'pass', detail


def _compare(grid, attack_a, eps_a, attack_b, eps_b, *, column) -> statistics.Difference:
  """How much more of `column` the second cell has than the first."""
  cells = grid.cell(attack_b, eps_b), grid.cell(attack_a, eps_a)
  return statistics.paired_difference(*cells, metric=column, level=LEVEL)


def _range(grid: _Grid, column: str) -> float:
  attacks = [grid.attack, statistics.CLEAN]
  means = grid.rows[grid.rows['attack'].isin(attacks)].groupby('eps')[column].mean()
  return float(means.max() - means.min()) if len(means) else 0.0


def _status(gains, *, scale: float, good: str, bad: str) -> tuple[str, str]:
  """(status, detail) of gains [(where, Difference)], which should all be at least zero."""
  against = [(where, gain) for where, gain in gains if _clearly_negative(gain)]
  if not against:
    return 'pass', good
  status = 'fail' if any(-gain.mean > TRIFLE * scale for _, gain in against) else 'warn'
  shown = ', '.join(f'at {where} by {_shown(gain, sign=-1)}' for where, gain in against)
  return status, f'{bad}: {shown}'


def _clearly_negative(gain: statistics.Difference) -> bool:
  """Whether the interval lies below zero; with one group there is none and the mean decides."""
  return gain.high < 0 if math.isfinite(gain.high) else gain.mean < 0


def _clearly_positive(gain: statistics.Difference) -> bool:
  return gain.low > 0 if math.isfinite(gain.low) else gain.mean > 0


def _shown(gain: statistics.Difference, *, sign: int = 1) -> str:
  low, high = sorted((sign * gain.low, sign * gain.high))
  return f'{sign * gain.mean:.3g} [{low:.3g}, {high:.3g}]'

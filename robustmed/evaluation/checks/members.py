"""Checks of the worst of all attacks of a run, against each attack."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustmed.evaluation import statistics
from robustmed.evaluation.checks.check import Check

SHORT = 0.01  # share of a mean by which a member may stay below another attack
_LEVEL = 0.99  # of intervals
_ROUNDING = 1e-6


def of_worst(
  rows: pd.DataFrame,
  worst: pd.DataFrame,
  *,
  attacks: Sequence[str],
  pairs: Sequence[tuple[str, str, str]],
  metric: str,
  higher_is_better: bool,
) -> list[Check]:
  """Returns two checks for every arm: the worst is never weaker, members reach plain attacks.

  rows: of the results, with the metric; worst: rows of `statistics.worst` over `attacks`. As it is
  put together of these rows, the first check is one of that step, not of what the attacks find.
  pairs: (member, plain attack on the same objective with no more gradients, column): the member's
  mean of the column must reach that of the other less 1 % of the other's: of the objective
  ('_value'), or of the harm in the metric, attacked less clean. A member that has a pair of the
  metric chooses by it, so its objective is compared where the metric of both is the same.
  """
  sign = -1.0 if higher_is_better else 1.0
  rows = statistics.prepare(rows, metrics=[metric])
  found = []
  for arm in worst['arm'].unique():
    own, ours = rows[rows['arm'] == arm], worst[worst['arm'] == arm]
    status, detail = _never_weaker(own, ours, attacks=attacks, metric=metric, sign=sign)
    found.append(Check('the worst is never weaker', arm, status, detail))
    reached = _reached(own, arm, pairs=pairs, metric=metric, sign=sign)
    found.append(Check('members reach plain attacks', arm, *reached))
  return found


def _never_weaker(rows, worst, *, attacks, metric, sign):
  """By example: no attack among its candidates harms more than the worst of them."""
  keys = [name for name in ('seed', 'fold', 'index', 'eps') if name in rows.columns]
  rows = rows[rows['attack'].isin(attacks) & np.isfinite(rows[metric].astype(float))]
  level = worst['eps'].map(statistics.level)
  both = rows.merge(worst.assign(eps=level), on=keys, suffixes=('', '_worst'))
  if both.empty:
    return 'skipped', 'no example under one of the attacks'
  excess = sign * (both[metric] - both[f'{metric}_worst'])
  weaker = ~(excess <= _ROUNDING)
  names = ', '.join(name for name in attacks if name in set(rows['attack']))
  if not weaker.any():
    return 'pass', (
      f'{metric} of all {len(both)} examples and levels, against {names}, from whose results the '
      'worst is put together'
    )
  line = both.loc[excess.fillna(np.inf).where(weaker, -np.inf).idxmax()]
  return 'fail', (
    f'{int(weaker.sum())} of {len(both)} are harmed more by one attack than by the worst, most '
    f'under {line["attack"]} at {line["eps"]:g}: {metric} {line[metric]:.6g} against '
    f'{line[f"{metric}_worst"]:.6g}'
  )


def _reached(rows, arm, *, pairs, metric, sign):
  """A member that stays below a plain attack with as many gradients searches badly."""
  bad, known, flat = [], [], []
  judged = {(member, plain) for member, plain, column in pairs if column == metric}
  for member, plain, column in pairs:
    if column not in rows.columns:
      continue
    climb = sign if column == metric else 1.0
    climbed = rows.assign(_climbed=climb * rows[column].astype(float))
    clean = statistics.select(climbed, arm=arm, attack=statistics.CLEAN, eps=0.0)
    levels = [set(rows.loc[rows['attack'] == name, 'eps']) for name in (member, plain)]
    for eps in sorted(levels[0] & levels[1]):
      first, second = (
        statistics.select(climbed, arm=arm, attack=name, eps=eps) for name in (member, plain)
      )
      if column != metric and (member, plain) in judged:
        first, second = _tied(first, second, metric)
      gain = statistics.paired_difference(first, second, metric='_climbed', level=_LEVEL)
      if not gain.n:
        continue
      scale = abs(_scale(second, clean, harm=column == metric))
      if not scale > 0:
        flat.append(f'{member} / {plain} at {eps:g}')
        continue
      known.append(f'{member} / {plain}')
      if gain.mean < -SHORT * scale:
        sure = gain.high < 0 or not np.isfinite(gain.high)
        bad.append((sure, f'{member} below {plain} at {eps:g} by {-gain.mean / scale:.1%}'))
  if not known and flat:
    return 'skipped', f'the plain attack has no effect: {", ".join(dict.fromkeys(flat))}'
  if not known:
    return 'skipped', 'no member shares its objective with a plain attack of no more gradients'
  if bad:
    return ('fail' if any(sure for sure, _ in bad) else 'warn'), ', '.join(text for _, text in bad)
  return 'pass', f'{", ".join(dict.fromkeys(known))}: at least its mean less {SHORT:.0%}'


def _scale(plain, clean, *, harm) -> float:
  """The mean of what a plain attack climbed, or what it harmed; nan where no example is known."""
  if harm:
    both = statistics.pair(plain, clean, metric='_climbed')
    return float((both['first'] - both['second']).mean())
  return float(plain['_climbed'].replace([np.inf, -np.inf], np.nan).mean())


def _tied(first, second, metric):
  """The rows of two cells whose metric is the same in both, or unknown."""
  keys = [name for name in ('seed', 'fold', 'index') if name in first.columns]
  one, two = (cell.set_index(keys)[metric].astype(float) for cell in (first, second))
  one, two = one.align(two, join='inner')
  same = one.index[(one == two) | (one.isna() & two.isna())]
  return [cell[cell.set_index(keys).index.isin(same)] for cell in (first, second)]

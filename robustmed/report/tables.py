"""Tables of the report: numbers for the CSV files, short strings for the page."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from robustmed.evaluation import checks, statistics
from robustmed.report import spec as spec_lib

PAPER_MARK, FAILED_MARK = ' (paper)', ' (check failed)'
_SEVERITY = ('fail', 'warn', 'skipped', 'pass')


def number(value: float) -> str:
  """Three decimals below 10, four digits above; unknown is a dash."""
  if value is None or not math.isfinite(value):
    return '–'
  return f'{value:.3f}' if abs(value) < 10 else f'{value:#.4g}'


def probability(p: float) -> str:
  """A p value with three decimals; unknown is a dash."""
  if not math.isfinite(p):
    return '–'
  return '< 0.001' if p < 0.001 else f'{p:.3f}'


def levels(summary: pd.DataFrame, *, attack: str) -> list[float]:
  """The levels at which an attack was run, 0 (clean) first where there are clean rows."""
  used = summary[summary['attack'].isin([attack, statistics.CLEAN])]
  return sorted(used['eps'].unique().tolist())


def curve(summary: pd.DataFrame, *, arm: str, attack: str, metric: str) -> pd.DataFrame:
  """The cells of one arm under one attack in the order of the levels, clean first."""
  kept = summary[
    (summary['arm'] == arm)
    & (summary['metric'] == metric)
    & summary['attack'].isin([attack, statistics.CLEAN])
  ]
  return kept.sort_values('eps', ignore_index=True)


def published(paper, *, arm: str, attack: str, metric: str) -> dict[float, float]:
  """An arm's published means by level, clean included; empty without any."""
  if paper is None:
    return {}
  kept = paper[
    (paper['arm'] == arm)
    & (paper['metric'] == metric)
    & paper['attack'].isin([attack, statistics.CLEAN])
  ]
  return {statistics.level(eps): float(mean) for eps, mean in zip(kept['eps'], kept['mean'])}


def pivot(
  summary: pd.DataFrame,
  *,
  metric: str,
  attack: str,
  arms: Sequence[str],
  paper: pd.DataFrame | None = None,
  show: bool = False,
  labels: Mapping[str, str] | None = None,
  failed: Collection[str] = (),
) -> pd.DataFrame:
  """Rows are arms, columns are levels as text ('0' is clean), cells are means.

  An arm's published values follow it as '<arm> (paper)'. With `show` the cells are strings that
  carry the interval and `labels` renames the arms. Our own rows of the arms in `failed` are marked.
  """
  columns = levels(summary, attack=attack)
  labels = labels or {}
  lines = []
  for arm in arms:
    cells = curve(summary, arm=arm, attack=attack, metric=metric).set_index('eps')
    shown = labels.get(arm, arm)
    mark = FAILED_MARK if arm in failed else ''
    lines.append([shown + mark, *(_cell(cells, eps, show=show) for eps in columns)])
    reported = published(paper, arm=arm, attack=attack, metric=metric)
    if set(reported) - {0.0}:
      values = [reported.get(eps, math.nan) for eps in columns]
      lines.append([shown + PAPER_MARK, *(map(number, values) if show else values)])
  heads = ['0 (clean)' if show and eps == 0 else f'{eps:g}' for eps in columns]
  return pd.DataFrame(lines, columns=['arm', *heads])


def averages(summary: pd.DataFrame, *, metric: str, attack: str) -> pd.DataFrame:
  """`pivot` of all arms with a last column, the plain mean over the levels."""
  frame = pivot(summary, metric=metric, attack=attack, arms=[*dict.fromkeys(summary['arm'])])
  return frame.assign(average=frame.drop(columns='arm').mean(axis=1))


def check_frame(found: Sequence[checks.Check]) -> pd.DataFrame:
  """All checks, the most severe first."""
  ordered = sorted(found, key=lambda check: _SEVERITY.index(check.status))
  return pd.DataFrame(ordered, columns=[*checks.Check._fields])


def shown_claims(decided: pd.DataFrame) -> pd.DataFrame:
  """The claims table as it is printed: verdict early, short p values."""
  shown = decided[['statement', 'place', 'verdict', 'numbers', 'p', 'p_holm', 'test']].copy()
  for column in ('p', 'p_holm'):
    shown[column] = [probability(p) for p in shown[column]]
  return shown.rename(columns={'p_holm': 'p (Holm)'})


def flatten(tree: Mapping, *, prefix: str = '') -> list[tuple[str, str]]:
  """A nested mapping as (dotted name, value) pairs in its own order."""
  lines = []
  for name, value in tree.items():
    dotted = f'{prefix}{name}'
    if isinstance(value, Mapping) and value:
      lines += flatten(value, prefix=f'{dotted}.')
    else:
      lines.append((dotted, str(value)))
  return lines


def arms(rows: pd.DataFrame, styles: Sequence[spec_lib.Arm]) -> tuple[spec_lib.Arm, ...]:
  """The arms that have rows, styled ones first and in the order given."""
  present = rows['arm'].unique().tolist()
  styled = [style for style in styles if style.name in present]
  named = {style.name for style in styled}
  return (*styled, *(spec_lib.Arm(name) for name in present if name not in named))


def _cell(cells: pd.DataFrame, eps: float, *, show: bool):
  if eps not in cells.index:
    return '–' if show else math.nan
  line = cells.loc[eps]
  if not show:
    return float(line['mean'])
  if not math.isfinite(line['low']):
    return number(line['mean'])
  return f'{number(line["mean"])} [{number(line["low"])}, {number(line["high"])}]'


def worst(
  found: pd.DataFrame, members: pd.DataFrame, *, summary: pd.DataFrame, attack: str
) -> pd.DataFrame:
  """One line per arm and level: the mean under `attack`, that under the worst one of each example
  with its interval, and which attacks these are."""
  metric = found['metric'].iloc[0]
  own = summary[(summary['attack'] == attack) & (summary['metric'] == metric)]
  said = {statistics.CLEAN: 'untouched image'}
  own = {(line.arm, statistics.level(line.eps)): line.mean for line in own.itertuples(index=False)}
  lines = []
  for line in found.itertuples(index=False):
    eps = statistics.level(line.eps)
    here = members[(members['arm'] == line.arm) & np.isclose(members['eps'], line.eps)]
    here = here.sort_values(['share', '_member'], ascending=[False, True])
    lines.append(
      {
        'arm': line.arm,
        'level': eps,
        attack: own.get((line.arm, eps), np.nan),
        'worst': line.mean,
        'low': line.low,
        'high': line.high,
        'found by': ', '.join(
          f'{said.get(m, m)} {s:.0%}' for m, s in zip(here['_member'], here['share'])
        ),
      }
    )
  return pd.DataFrame(lines)


def stored(lines: pd.DataFrame) -> pd.DataFrame:
  """One line per arm, attack and level: means of the metric of images as attacked and as stored,
  the largest distance after storing, and the images that are in the ball; nan and '-' where that
  cannot be said."""
  found = []
  for (arm, attack, eps), here in lines.groupby(['arm', 'attack', 'eps'], sort=True):
    inside = here['inside'].dropna()
    found.append(
      {
        'arm': arm,
        'attack': attack,
        'level': eps,
        'images': len(here),
        'attacked': here['attacked'].mean(),
        'stored': here['stored'].mean(),
        'distance': pd.to_numeric(here['distance']).max(),
        'in the ball': f'{int(inside.sum())} of {len(inside)}' if len(inside) else '-',
      }
    )
  return pd.DataFrame(found)

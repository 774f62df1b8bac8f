"""The tables of the study of gliomas as frames: the paper's three with its numbers beside, the
adaptive column, diagnostics, paired tests."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from robustmed.evaluation import claims, paired, statistics
from robustmed.papers.brats import claims as brats_claims
from robustmed.papers.brats import published as papers
from robustmed.papers.brats import rows as brats_rows
from robustmed.report import tables

HEADS = {'dice_wt': 'whole tumour', 'dice_tc': 'core', 'dice_et': 'enhancing'}
QUALITY = {'psnr': 'PSNR', 'ssim': 'SSIM', 'rmse': 'RMSE'}
ATTACKS = {'none': 'No attack', **brats_claims.ATTACKS}
CORRUPTED = ('motion', 'rician', 'bias_field')
CONTROLS = ('noise',)
DASH = '–'


def adaptive(rows: pd.DataFrame) -> list[str]:
  """The attacks of which the lowest Dice counts: all that stay in the ball and want harm."""
  left = {statistics.CLEAN, *CORRUPTED, *CONTROLS}
  return [name for name in dict.fromkeys(rows['attack']) if name not in left]


def attacks(rows: pd.DataFrame, *, eps: float) -> pd.DataFrame:
  """Table 1: the undefended network under the three attacks, ours and the paper's."""
  found = paired.table(
    [
      paired.Comparison(claims.Cell('std', name, eps), claims.Cell('std'), metric)
      for metric in HEADS
      for name in brats_claims.ATTACKS
    ],
    rows,
    family='3 attacks x 3 regions',
  )
  stars = set(
    found.loc[found['p_holm'] < claims.ALPHA, ['first', 'metric']].itertuples(index=False)
  )
  published = papers.attacks().set_index(['attack', 'metric'])
  lines = []
  for name, shown in ATTACKS.items():
    cell = statistics.select(rows, arm='std', attack=name, eps=0.0 if name == 'none' else eps)
    line, paper = {'attack': shown}, {'attack': shown + tables.PAPER_MARK}
    for metric, head in {**HEADS, **QUALITY}.items():
      star = (str(claims.Cell('std', name, eps)), metric) in stars
      line[head] = spread(cell[metric], star=star)
      theirs = published.loc[(name, metric)]
      paper[head] = _shown(theirs['mean'], theirs['std'], bool(theirs['star']))
    lines += [line, paper]
  return pd.DataFrame(lines)


def defenses(
  rows: pd.DataFrame, *, arms: Mapping[str, str], dimension: int, levels: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Tables 2 (3D) and 3 (2D): Dice under FGSM by region and defense, with the paper's below, and
  all the tests behind it.

  Holm's correction runs over the paper's defenses (63 tests for its seven), and over the others by
  themselves.
  """
  levels = (0.0, *levels)
  published = papers.defenses(dimension)
  known = set(published['arm'])
  families = {
    'of the paper': [name for name in arms if name in known and name != 'std'],
    'beside them': [name for name in arms if name not in known],
  }
  found = pd.concat(
    [
      paired.table(
        paired.against(names, 'std', metrics=tuple(HEADS), attack='fgsm', levels=levels),
        rows,
        family=f'{len(names)} defense{"s" if len(names) > 1 else ""} {what} x {len(HEADS)} regions '
        f'x {len(levels)} levels',
      )
      for what, names in families.items()
      if names
    ],
    ignore_index=True,
  )
  tests = found.set_index(['first', 'metric'])
  lines = []
  for metric, region in HEADS.items():
    for arm, shown in arms.items():
      line = {'region': region, 'defense': shown}
      for eps in levels:
        cell = statistics.select(rows, arm=arm, attack='fgsm', eps=eps)
        key = str(claims.Cell(arm, 'fgsm', eps)), metric
        test = tests.loc[key] if key in tests.index else None
        star = test is not None and test['p_holm'] < claims.ALPHA
        line[f'Dice {eps:g}'] = spread(cell[metric], star=bool(star))
        line[f'p (Holm) {eps:g}'] = DASH if test is None else tables.probability(test['p_holm'])
      lines.append(line)
      lines += _published(published, arm, metric, region, shown, levels)
  return pd.DataFrame(lines), found


def _published(published, arm, metric, region, shown, levels):
  mine = published[(published['arm'] == arm) & (published['metric'] == metric)]
  if mine.empty:
    return
  line = {'region': region, 'defense': shown + tables.PAPER_MARK}
  for eps in levels:
    cell = mine[np.isclose(mine['eps'], eps)]
    known = cell.iloc[0] if len(cell) else {'mean': np.nan, 'std': np.nan, 'star': 0, 'p': np.nan}
    line[f'Dice {eps:g}'] = _shown(known['mean'], known['std'], bool(known['star']))
    line[f'p (Holm) {eps:g}'] = f'{tables.probability(known["p"])} (raw)'
    if not np.isfinite(known['p']):
      line[f'p (Holm) {eps:g}'] = DASH
  yield line


def stronger(
  rows: pd.DataFrame, *, arms: Mapping[str, str], eps: float, metric: str
) -> pd.DataFrame:
  """The adaptive column: mean Dice of every arm, clean, under each attack, and the lowest
  of each subject."""
  names = adaptive(rows)
  lines = []
  least = brats_rows.lowest(rows, attacks=names, eps=eps, metrics=[metric])
  for arm, shown in arms.items():
    clean = statistics.select(rows, arm=arm, attack='none', eps=0.0)
    line = {'arm': shown, 'clean': clean[metric].mean()}
    for name in (*names, *CONTROLS):
      cell = statistics.select(rows, arm=arm, attack=name, eps=eps)
      line[name] = cell[metric].mean() if len(cell) else np.nan
    line['lowest per subject'] = least.loc[least['arm'] == arm, metric].mean()
    lines.append(line)
  return pd.DataFrame(lines)


def diagnostics(rows: pd.DataFrame, *, arms: Mapping[str, str], eps: float) -> pd.DataFrame:
  """Signs of masking on clean images, and how far FGSM really goes."""
  lines = []
  for arm, shown in arms.items():
    clean = statistics.select(rows, arm=arm, attack='none', eps=0.0)
    attacked = statistics.select(rows, arm=arm, attack='fgsm', eps=eps)
    lines.append(
      {
        'arm': shown,
        'zero gradients': clean['_zero_grad'].mean(),
        'saturated pixels': clean['_saturated'].mean(),
        'logit margin': clean['_logit_scale'].mean(),
        f'RMSE of FGSM at {eps:g}': attacked['rmse'].mean() if len(attacked) else np.nan,
      }
    )
  return pd.DataFrame(lines)


def rivals(
  rows: pd.DataFrame, *, distilled: Sequence[str], trained: Sequence[str], levels: Sequence[float]
) -> pd.DataFrame:
  """Distillation against adversarial training, paired, on clean images, under FGSM and by the
  lowest Dice of each subject."""
  names = adaptive(rows)
  frame, wanted = [rows], []
  for eps in levels:
    if eps == brats_claims.EPS:
      frame.append(brats_rows.lowest(rows, attacks=names, eps=eps, metrics=list(HEADS)))
    cells = [('fgsm', eps)] + ([(brats_rows.LOWEST, eps)] if eps == brats_claims.EPS else [])
    for attack, at in cells:
      wanted += [
        paired.Comparison(claims.Cell(one, attack, at), claims.Cell(two, attack, at), metric)
        for metric in HEADS
        for one in distilled
        for two in trained
      ]
  whole = pd.concat(frame, ignore_index=True)
  return paired.table(wanted, whole, family='distillation against adversarial training')


def printed(table: pd.DataFrame) -> pd.DataFrame:
  """A table of `evaluation.paired` with short numbers."""
  shown = table[['metric', 'first', 'second', 'difference', 'effect', 'groups']].copy()
  for column in ('p', 'p_holm', 'p_bonferroni'):
    shown[column] = [tables.probability(p) for p in table[column]]
  shown['family'] = table['family']
  return shown


def artefacts(rows: pd.DataFrame, *, arms: Mapping[str, str], metric: str) -> pd.DataFrame:
  """Mean Dice by artefact of acquisition and severity; empty where none was run."""
  lines = []
  for kind in CORRUPTED:
    for eps in sorted(rows.loc[rows['attack'] == kind, 'eps'].unique()):
      line = {'artefact': kind, 'severity': f'{eps:g}'}
      for arm, shown in arms.items():
        cell = statistics.select(rows, arm=arm, attack=kind, eps=eps)
        line[shown] = cell[metric].mean() if len(cell) else np.nan
      lines.append(line)
  return pd.DataFrame(lines)


def spread(values: pd.Series, *, star: bool = False) -> str:
  """mean ± standard deviation over subjects, as the paper prints it."""
  known = values.to_numpy(float)
  known = known[np.isfinite(known)]
  if not len(known):
    return DASH
  return _shown(known.mean(), known.std(ddof=1) if len(known) > 1 else 0.0, star)


def _shown(mean, std, star) -> str:
  if not np.isfinite(mean):
    return DASH
  digits = 2 if mean > 10 else 3
  return f'{mean:.{digits}f} ± {std:.{digits}f}{"*" if star else ""}'

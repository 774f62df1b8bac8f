"""The text of the report: a verdict in plain words, and how to read the rest of the page."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustmed.evaluation import checks, claims, statistics
from robustmed.report import figures, provenance, ranking, tables
from robustmed.report import inputs as inputs_lib
from robustmed.report import spec as spec_lib

NOT_AIMED = ' (this attack does not aim at it, so it shows no robustness)'
_VALUE = '_value.'  # begins the columns of objectives
MOST_NAMED = 5  # arms in the verdict; of more the extremes alone
HARDLY_TRAINED = 0.5  # of a clean metric between 0 and 1, below which little can be lost


def verdict(
  held: inputs_lib.Inputs,
  *,
  spec: spec_lib.ReportSpec,
  arms: Sequence[spec_lib.Arm],
  decided: pd.DataFrame,
) -> str:
  """One paragraph: the main finding in numbers, the claims, and what the checks allow."""
  sentences = [
    *_finding(held, spec=spec, arms=arms, decided=decided),
    _claims(decided),
    _checks(held.checks),
    unseen_attacks(held.config.get('config', {})),
  ]
  return ' '.join(sentence for sentence in sentences if sentence)


def state(held: inputs_lib.Inputs, decided: pd.DataFrame) -> str:
  """The colour of the verdict: 'bad' with a failed check, 'good' if all holds and passes."""
  statuses = {check.status for check in held.checks}
  if 'fail' in statuses:
    return 'bad'
  clean = set(decided['verdict']) <= {'holds'} and statuses <= {'pass', 'skipped'}
  return 'good' if clean and statuses else 'open'


def how_to_read(held: inputs_lib.Inputs, *, spec: spec_lib.ReportSpec) -> str:
  """What the numbers, brackets, verdicts and checks mean, with the sizes of this run."""
  rows = held.rows
  seeds = rows['seed'].nunique()
  count = rows[['group', 'index']].drop_duplicates().shape[0]
  groups = rows['group'].nunique()
  units = f' Levels are given in: {spec.level_units}' if spec.level_units else ''
  if units and spec.attack_units:
    own = '; '.join(f'`{name}`: {unit}' for name, unit in spec.attack_units.items())
    units += f'; those of artefacts have units of their own ({own})'
  units += '.' * bool(units)
  trained = (
    f', {seeds} training runs (seeds) per arm' if seeds > 1 else ', one training run per arm'
  )
  if 'fold' in rows.columns:
    trained += f' in each of {rows["fold"].nunique()} folds, which test every group once'
  elif seeds == 1 and held.training is None:  # nothing was trained here
    trained = ''
  lines = [
    f'- An **arm** is {spec.arms_are}. An **attack** changes the image, by at most '
    f'its **level**, so that the network errs; level 0 is the untouched image.{units}',
    f'- Every number is a mean over the test examples: {count} in {groups} groups (patients, '
    f'volumes or scans){trained}. An example run under several seeds counts once.',
    '- Brackets and shaded bands are 95 % intervals from resampling whole groups (those of a claim '
    'are the limits of its own test). They say how '
    'much another set of patients could change the mean, not how much another training could.',
    '- A **claim** holds when its number lies where it says and the test, corrected for '
    f'all claims (Holm), gives p below {claims.ALPHA:g}; it fails when the opposite is that '
    'certain; otherwise these data leave it undecided. With several seeds it must do so in each. '
    'Differences are decided on the mean over groups, levels on the median; a time or cost of one '
    'training is measured, not tested.',
    '- **Checks** look for attacks that are broken or fooled. Where one fails, the arm may look '
    'more robust than it is.',
  ]
  if computed := provenance.precision(held.config.get('config', {}), held.env):
    lines.append(f'- {computed}')
  smallest = 0.5**groups
  if spec.claims and smallest * len(spec.claims) >= claims.ALPHA:
    lines.append(
      f'- With {groups} groups no p value can be below {smallest:.3g}, so that few or no claims '
      'can be decided; use more groups.'
    )
  unknown = int(sum((~np.isfinite(rows[name].astype(float))).sum() for name in held.metrics))
  if unknown:
    lines.append(f'- {unknown} metric values are not defined; means and n leave them out.')
  return '\n'.join(lines)


def over_folds(rows: pd.DataFrame) -> str:
  """For which networks the results of a run over all folds hold, and what F is."""
  number = rows['fold'].nunique()
  return (
    f'Every arm was trained {number} times for each seed, each time without the groups of one '
    'fold, and tested on those. Means, intervals and verdicts are over all groups and are '
    'conditional on these networks: they say what other patients could change, not what networks '
    'trained on other patients, or once more, would give. F compares the variance between the '
    'means of folds with that of groups within a fold (one-way analysis of variance, p not '
    'corrected for the number of lines). A small p says that the networks of some folds do better '
    'than those of others; a large one does not say that they are alike.'
  )


def check_notes(found: Sequence[checks.Check], *, status: str) -> str:
  """One line for each check of that status."""
  lines = [f'- **{c.name}** ({c.arm}): {c.detail}' for c in found if c.status == status]
  return '\n'.join(lines)


def failed_arms(found: Sequence[checks.Check]) -> set[str]:
  """The arms with a failed check."""
  return {check.arm for check in found if check.status == 'fail'}


def headline(
  summary: pd.DataFrame, *, panel: spec_lib.Panel, arms: Sequence[spec_lib.Arm], wanted
) -> float | None:
  """The level of the verdict: the wanted one, else the one at which the arms' means differ most."""
  levels = [eps for eps in tables.levels(summary, attack=panel.attack) if eps > 0]
  if wanted is not None and statistics.level(wanted) in levels:
    return statistics.level(wanted)
  if not levels:
    return None
  means = {eps: [_mean(summary, panel, arm, eps) for arm in arms] for eps in levels}
  known = {eps: [m for m in values if np.isfinite(m)] for eps, values in means.items()}
  return max(levels, key=lambda eps: max(known[eps], default=0) - min(known[eps], default=0))


def _finding(held, *, spec, arms, decided) -> list[str]:
  if not spec.panels:
    return []
  panel = spec.panels[0]
  eps = headline(held.summary, panel=panel, arms=arms, wanted=spec.headline_eps)
  if eps is None:
    return [f'The attack `{panel.attack}` was not run.']
  known = [
    (arm, _mean(held.summary, panel, arm, 0.0), _mean(held.summary, panel, arm, eps))
    for arm in arms
  ]
  known = [line for line in known if np.isfinite(line[2])]
  if not known:
    return [f'`{panel.metric}` has no values under `{panel.attack}` at {eps:g}.']
  parts = [
    f'**{tables.number(after)}** for {arm.shown} (clean {tables.number(before)})'
    for arm, before, after in known
  ]
  better = 'higher is better' if panel.higher_is_better else 'lower is better'
  said = _list(parts)
  if len(known) > MOST_NAMED:
    ends = sorted(range(len(known)), key=lambda place: known[place][2])
    said = f'between {parts[ends[0]]} and {parts[ends[-1]]}, of {len(known)} arms'
  sentences = [
    f'Under the attack `{panel.attack}` at level {eps:g}, `{panel.metric}` ({better}) is {said}.'
  ]
  if len(known) > 1:
    how = {'panel': panel, 'eps': eps, 'decided': decided, 'failed': failed_arms(held.checks)}
    sentences.append(ranking.sentence(known, held.rows, **how))
  if panel.higher_is_better and panel.limits == (0.0, 1.0):
    poor = [arm.shown for arm, before, _ in known if before < HARDLY_TRAINED]
    if poor:
      sentences.append(
        f'A clean `{panel.metric}` below {HARDLY_TRAINED:g} ({_list(poor)}) is that of a network '
        'that is hardly trained: what it withstands says little.'
      )
  return [*sentences, *_under_worst(held, known, panel=panel, eps=eps)]


def _under_worst(held, known, *, panel, eps) -> list[str]:
  """The same figures under the worst of all attacks, where that was computed of this metric."""
  if held.worst is None:
    return []
  found = [
    (arm, before, _mean(held.worst, dataclasses.replace(panel, attack=statistics.WORST), arm, eps))
    for arm, before, _ in known
  ]
  found = [line for line in found if np.isfinite(line[2])]
  if not found:
    return []
  parts = [f'**{tables.number(worst)}** for {arm.shown}' for arm, _, worst in found]
  said = _list(parts)
  if len(found) > MOST_NAMED:
    ends = sorted(range(len(found)), key=lambda place: found[place][2])
    said = f'between {parts[ends[0]]} and {parts[ends[-1]]}'
  sentences = [f'Under the worst of the attacks in the same ball it is {said}.']
  pick = functools.partial(max if panel.higher_is_better else min, key=lambda line: line[2])
  best, failed = pick(found)[0], failed_arms(held.checks)
  if len(found) > 1 and best != pick(known)[0] and best.name not in failed:
    sentences.append(f'Against all of them the best figure is that of {best.shown} (not tested).')
  return sentences


def _claims(decided: pd.DataFrame) -> str:
  if decided.empty:
    return ''
  found = Counter(decided['verdict'])
  words = {
    'holds': 'hold',
    'fails': 'fail',
    'undecided': 'are undecided',
    'measured': 'are measured without a test',
    'not run': 'were not run',
  }
  single = {
    'holds': 'holds',
    'fails': 'fails',
    'undecided': 'is undecided',
    'measured': 'is measured without a test',
    'not run': 'was not run',
  }
  parts = [
    f'{found[name]} {single[name] if found[name] == 1 else words[name]}'
    for name in claims.VERDICTS
    if found[name]
  ]
  return f'Of the {len(decided)} claims tested here, {_list(parts)}.'


def _checks(found: Sequence[checks.Check]) -> str:
  if not found:
    return 'No believability checks were found, so treat every figure with caution.'
  count = Counter(check.status for check in found)
  run = len(found) - count['skipped']
  parts = [f'Of {run} believability checks, {count["pass"]} passed']
  if count['warn']:
    parts.append(f'{count["warn"]} gave a warning')
  if count['fail']:
    parts.append(f'{count["fail"]} **failed**')
  text = f'{_list(parts)}.'
  if count['skipped']:
    text += f' {count["skipped"]} could not be run.'
  failed = sorted(failed_arms(found))
  if failed:
    text += f' Do not trust the figures of {_list(failed)} until the failed checks are explained.'
  return text


def other_attacks(
  held: inputs_lib.Inputs, *, spec: spec_lib.ReportSpec, arms: Sequence[spec_lib.Arm]
) -> dict[str, pd.DataFrame]:
  """The first panel's metric, as printed, under each attack that has no panel."""
  shown = {statistics.CLEAN, *(panel.attack for panel in spec.panels)}
  labels, failed = {arm.name: arm.shown for arm in arms}, failed_arms(held.checks)
  cells = {'arms': list(labels), 'labels': labels, 'failed': failed, 'show': True}
  return {
    attack: tables.pivot(held.summary, metric=spec.panels[0].metric, attack=attack, **cells)
    for attack in dict.fromkeys(held.summary['attack'] if spec.panels else ())
    if attack not in shown
  }


def example_captions(
  held: inputs_lib.Inputs,
  *,
  spec: spec_lib.ReportSpec,
  attack: str,
  eps: float,
  arms: Sequence[spec_lib.Arm],
) -> dict[tuple[str, bool], str]:
  """The drawn example's metrics: clean under the clean image, attacked under the attacked one."""
  names = dict.fromkeys(p.metric for p in spec.panels if p.attack == attack)
  captions = {}
  picked = figures.example_index(held.examples, attack=attack, eps=eps, arms=arms)
  for arm, index in picked.items():
    mine = held.rows[(held.rows['arm'] == arm) & (held.rows['index'] == index)]
    for attacked in (False, True):
      level = eps if attacked else 0.0
      line = mine[(mine['eps'] == level) & (mine['attack'].eq(attack) | (level == 0))]
      if len(line):
        values = [f'{name} {tables.number(line.iloc[0][name])}' for name in names]
        captions[arm, attacked] = '\n'.join(values)
  return captions


def stored(lines: pd.DataFrame, *, chosen: bool) -> str:
  """How attacked images became those of the files; chosen: by a search in a ball that is known."""
  kept = 'The files in `results/worst` hold whole numbers. '
  if not chosen:
    return (
      f'{kept}Each pixel of an attacked image went to the number beside it that is nearer to the '
      'untouched image, since the ball is not known in the units of the image: no other numbers '
      'were tried, and a search could find worse ones.'
    )
  by = ' and the '.join(measured(metric) for metric in dict.fromkeys(lines['metric']))
  return (
    f'{kept}Each pixel of an attacked image went to the number below or above it, within the ball, '
    f'chosen by the {by} of the image that is read back.'
  )


def measured(metric: str) -> str:
  """A metric, or an objective that stands in for one, in words."""
  return f'objective {metric.removeprefix(_VALUE)}' if metric.startswith(_VALUE) else metric


def unseen_attacks(config: Mapping[str, Any]) -> str:
  """Which kinds of attacks were not run, so that no check can tell what they would find."""
  chosen = config.get('evaluate', {})
  kinds = {options.get('name') for options in chosen.get('attacks', {}).values()}
  if not kinds & {'pgd', 'ifgsm', 'fgsm', 'apgd'} or chosen.get('budget'):
    return ''
  wanted = {'apgd': 'that chooses its own steps (`apgd`)', 'square': 'without gradients (`square`)'}
  absent = [words for name, words in wanted.items() if name not in kinds]
  if not absent:
    return ''
  return f'No attack {" and none ".join(absent)} was run: checks do not see what it would find.'


def _mean(summary, panel, arm, eps) -> float:
  cells = tables.curve(summary, arm=arm.name, attack=panel.attack, metric=panel.metric)
  kept = cells.loc[cells['eps'] == eps, 'mean']
  return float(kept.iloc[0]) if len(kept) else float('nan')


def _list(parts: Sequence[str]) -> str:
  if len(parts) <= 1:
    return ''.join(parts)
  return f'{", ".join(parts[:-1])} and {parts[-1]}'

"""Attacks at several levels in one call, for notebooks: a table of what a network withstands."""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import errors
from robustmed.attacks import inputs, objectives
from robustmed.attacks.apgd import apgd
from robustmed.attacks.ensemble import units
from robustmed.attacks.ensemble.budgets import BUDGETS
from robustmed.attacks.pgd import pgd
from robustmed.attacks.square import square
from robustmed.ops import contracts
from robustmed.types import Array, Attack, PyTree

NONE, WORST = 'none', 'worst'


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """What `evaluate` found.

  frame: one row per attack, level and example: attack ('none': the image itself, 'worst': the worst
  of all, but not of artefacts), eps, index, value (the metric), objective, distance, and the flags
  of `types.Flags`; `worst` has in `by` and `by_eps` the attack and level that found it, a lower one
  too. settings: what each attack does, in words.
  """

  frame: pd.DataFrame
  higher_is_better: bool
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def means(self) -> pd.DataFrame:
    """The mean of the metric, a row per attack and a column per level."""
    shown = self.frame.pivot_table(index='attack', columns='eps', values='value', sort=False)
    return shown[sorted(shown)]

  def plot(self, axes=None):
    """Draws the mean against the level, a line per attack, and returns the axes of matplotlib."""
    from matplotlib import figure

    axes = figure.Figure(figsize=(6, 4), layout='constrained').subplots() if axes is None else axes
    means = self.means
    for name in means.index.drop(NONE):
      line = means.loc[name].fillna({0.0: means.loc[NONE, 0.0]}).dropna()
      thick = {'linewidth': 2.5, 'color': 'black'} if name == WORST else {}
      axes.plot(line.index, line.to_numpy(), marker='o', label=name, **thick)
    better = 'higher' if self.higher_is_better else 'lower'
    axes.set_xlabel('level of the attack')
    axes.set_ylabel(f'mean of the metric ({better} is better)')
    axes.legend()
    return axes

  def report(self, folder: str | os.PathLike) -> pathlib.Path:
    """Writes report.md, curve.png, means.csv and examples.csv; returns the path of the first."""
    folder = pathlib.Path(folder)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      self.frame.to_csv(folder / 'examples.csv', index=False, float_format='%.6g')
      self.means.to_csv(folder / 'means.csv', float_format='%.6g')
      self.plot().figure.savefig(folder / 'curve.png', dpi=100)
      path = folder / 'report.md'
      path.write_text(self._text(), encoding='utf-8')
    except OSError as error:
      raise errors.UserError(f'cannot write the report to {folder}: {error.strerror}') from None
    return path

  def _text(self) -> str:
    means = self.means
    lines = [
      '# What a network withstands',
      '',
      'Mean of the metric by the level of the attack:',
      '',
    ]
    lines += [
      f'| attack | {" | ".join(f"{eps:g}" for eps in means)} |',
      '|---|' + '---|' * len(means.T),
    ]
    for name, line in means.iterrows():
      cells = ['' if np.isnan(value) else f'{value:.4g}' for value in line]
      lines.append(f'| {name} | {" | ".join(cells)} |')
    lines += ['', '![mean by level](curve.png)', '']
    lines += [f'- {name}: {said}.' for name, said in self.settings.items()]
    attacked = self.frame[~self.frame['attack'].isin((NONE, WORST))]
    for flag, said in _FLAGS.items():
      if count := int(attacked[flag].sum()):
        names = ', '.join(sorted(set(attacked.loc[attacked[flag].astype(bool), 'attack'])))
        lines.append(f'- {count} of {len(attacked)} attacked images: {said} ({names}).')
    lines += [
      f'- {self.frame["index"].nunique()} examples. Attacks give upper bounds: a stronger one can '
      'only lower what is left.',
      '',
    ]
    return '\n'.join(lines)


_FLAGS = {
  'no_gradient': 'no gradient was ever other than 0',
  'not_finite': 'the objective was not finite',
  'not_moved': 'the image did not move',
}


def evaluate(
  network: Callable[..., PyTree],
  data,
  *,
  objective: Callable[..., Array],
  levels: Sequence[float] | float,
  metric: Callable[..., Array] | None = None,
  higher_is_better: bool = True,
  attacks: str | Mapping[str, Any] = 'quick',
  variables: PyTree = None,
  seed: int = 0,
  progress: bool = True,
  **threat,
) -> Table:
  """Returns the table of a network under attacks at several levels, and the worst of them.

  network: images [b, ...] -> outputs; with `variables` (variables, images) -> outputs. data:
  (images, target), or several such batches. objective: (outputs, target) -> [b], larger is worse,
  what attacks climb; metric: (outputs, target) -> [b], None: the objective, lower is better.
  attacks: {name: attack or (attack, objective)}, all with the same norm, bounds and region, or a
  budget, 'quick', 'standard' or 'thorough', of PGD, APGD and Square with `threat` (norm, bounds);
  a larger budget has the attacks of the smaller ones too. With select='monitor' an attack's iterate
  is chosen by the metric. An example's randomness depends on its place in the data alone.
  """
  chosen = _attacks(attacks, objective, threat)
  candidates = _of_one_ball(chosen)
  levels = [levels] if isinstance(levels, int | float) else levels
  levels = sorted({float(eps) for eps in levels})
  if not levels or not all(0 < eps < float('inf') for eps in levels):
    raise errors.UserError(f'levels must be numbers above 0, not {levels}')
  if metric is None:
    metric, higher_is_better = objective, False
  predict = network if variables is not None else lambda _, image: network(image)
  batches, first = [], 0
  for image, target in _batches(data):
    batches.append((first, inputs.image(image), units.checked(target, len(image))))
    first += len(image)
  if not first:
    raise errors.UserError('there are no examples to attack')
  units.warn_of_units([attack for attack, _ in chosen.values()], [x for _, x, _ in batches], levels)
  shown = _Progress(len(batches) * (1 + len(chosen) * len(levels)), progress)
  key, rows = jax.random.key(seed), []
  judge = jax.jit(lambda v, x, target: _scores(predict(v, x), target, metric, objective))
  for start, image, target in batches:
    rows.append(_rows(start, NONE, 0.0, *judge(variables, image, target)))
    shown.update('the images themselves')
  for number, (name, (attack, own)) in enumerate(chosen.items()):
    run = _program(predict, attack, own, metric, higher_is_better)
    mine = jax.random.fold_in(key, number)
    for start, image, target in batches:
      keys = jax.vmap(jax.random.fold_in, (None, 0))(mine, start + jnp.arange(len(image)))
      for eps in levels:
        result = run(variables, image, target, jnp.float32(eps), keys)
        value, climbed = judge(variables, result.x, target)
        told = {'distance': result.distance, **(result.flags._asdict() if result.flags else {})}
        rows.append(_rows(start, name, eps, value, climbed, **told))
        shown.update(f'{name} at {eps:g}')
  shown.close()
  frame = pd.concat(rows, ignore_index=True)
  flags = [flag for flag in _FLAGS if flag in frame]
  frame[flags] = frame[flags].fillna(False).astype(bool)
  settings = {name: units.in_words(attack) for name, (attack, _) in chosen.items()}
  return Table(_with_worst(frame, candidates, levels, higher_is_better), higher_is_better, settings)


def _attacks(given, objective, threat) -> dict[str, tuple[Attack, Callable[..., Array]]]:
  if isinstance(given, str):
    given = _of_budget(given, threat)
  elif threat:
    raise errors.UserError(
      f'{", ".join(threat)}: settings belong to each attack where attacks are given'
    )
  pairs = {name: one if isinstance(one, tuple) else (one, objective) for name, one in given.items()}
  if not pairs or {NONE, WORST} & set(pairs):
    raise errors.UserError(f"attacks needs entries, other than 'none' and 'worst', not {[*pairs]}")
  return pairs


def _of_budget(name, threat) -> dict[str, Attack]:
  """Those of the smaller budgets first, so that they draw what they draw there."""
  budget = errors.lookup(BUDGETS, name, kind='budget of attacks')
  found = _of_budget(budget.contains, threat) if budget.contains else {}
  after = f'_{budget.steps}' if found else ''
  how = {'num_steps': budget.steps, 'restarts': budget.restarts, **threat}
  found[f'pgd{after}'] = pgd(relative_step=2.5 / budget.steps, select='best', **how)
  found[f'apgd{after}'] = apgd(**how)
  if budget.queries:
    start = 'stripes' if threat.get('norm', 'linf') == 'linf' else 'uniform'
    how = {'num_steps': budget.queries, 'select': 'best', 'start': start, **threat}
    found[f'square_{budget.queries}'] = square(**how)
  return found


def _of_one_ball(chosen) -> set[str]:
  """Returns the attacks whose images have a worst in common; artefacts have no ball."""
  threats = {name: getattr(attack, 'threat', None) for name, (attack, _) in chosen.items()}
  balls = {name: threat.ball for name, threat in threats.items() if threat is not None}
  known = {name: ball for name, ball in balls.items() if ball is not None}
  if len(set(known.values())) > 1:
    first = next(iter(known))
    other = next(name for name in known if known[name] != known[first])
    raise errors.UserError(
      f'{first} and {other} differ in norm, bounds or region, so a level of one is none of the '
      'other and they have no worst in common; call evaluate once for each'
    )
  return set(chosen) - set(balls) | set(known)


def _batches(data) -> Iterable[tuple[Any, PyTree]]:
  if isinstance(data, tuple) and len(data) == 2:
    return [data]
  if isinstance(data, Mapping):
    return [(data['image'], data['target'])]
  return [(one['image'], one['target']) if isinstance(one, Mapping) else one for one in data]


def _scores(outputs, target, metric, objective):
  told = {'progress': 1.0} if objectives.takes_progress(objective) else {}
  value, climbed = metric(outputs, target), objective(outputs, target, **told)
  size = len(jax.tree.leaves(outputs)[0])
  value = contracts.per_example(value, size, what='the metric', dtype=None)
  return value.astype(jnp.float32), contracts.per_example(climbed, size, what='the objective')


def _program(predict, attack, objective, metric, higher_is_better):
  @jax.jit
  def run(variables, image, target, eps, keys):
    outputs = objectives.Shared(lambda x: predict(variables, x))
    bound = objectives.bind(outputs, _of_batch(objective), {'target': target})
    sign = -1.0 if higher_is_better else 1.0
    monitor = lambda x: sign * jnp.asarray(metric(outputs(x), target), jnp.float32)
    more = {'monitor': monitor} if getattr(attack, 'judged', False) else {}
    return attack(bound, image, eps=eps, key=keys, **more)

  return run


def _of_batch(objective):
  """The objective (outputs, target[, progress]) as one of (outputs, batch[, progress])."""
  if objectives.takes_progress(objective):
    return lambda outputs, batch, progress: objective(outputs, batch['target'], progress)
  return lambda outputs, batch: objective(outputs, batch['target'])


def _rows(start, attack, eps, value, climbed, **told) -> pd.DataFrame:
  columns = {'value': value, 'objective': climbed, **told}
  table = pd.DataFrame({name: np.asarray(column) for name, column in columns.items()})
  table.insert(0, 'attack', attack)
  table.insert(1, 'eps', eps)
  table.insert(2, 'index', start + np.arange(len(table)))
  return table


def _with_worst(frame, candidates, levels, higher_is_better) -> pd.DataFrame:
  """The frame and, for each level and example, the worst row of candidates up to that level."""
  if not candidates:
    return frame
  badness = frame['value'] * (-1 if higher_is_better else 1)
  ranked = frame.assign(_bad=badness.fillna(-np.inf))
  ranked = ranked[ranked['attack'].isin({NONE, *candidates})]
  found = [frame]
  for eps in levels:
    inside = ranked[ranked['eps'] <= eps]
    line = inside.loc[inside.groupby('index')['_bad'].idxmax()].drop(columns='_bad')
    found.append(line.assign(by=line['attack'], by_eps=line['eps'], attack=WORST, eps=eps))
  return pd.concat(found, ignore_index=True)


class _Progress:
  """One line on stderr that says how far the work is and how long the rest takes."""

  def __init__(self, total: int, shown: bool):
    self._total, self._done, self._shown = total, 0, shown
    self._begun = time.monotonic()

  def update(self, what: str) -> None:
    self._done += 1
    if self._shown:
      left = (time.monotonic() - self._begun) / self._done * (self._total - self._done)
      bar = ('#' * (24 * self._done // self._total)).ljust(24, '.')
      text = f'\r{bar} {self._done}/{self._total}, {left:.0f} s left  {what}'
      print(text.ljust(79), end='', file=sys.stderr, flush=True)

  def close(self) -> None:
    if self._shown:
      print(file=sys.stderr)

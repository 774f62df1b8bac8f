"""The members of an ensemble of each budget, as plain data."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from robustmed import errors
from robustmed.attacks.fgsm import ifgsm
from robustmed.attacks.pgd import pgd

# (attack, objective) in the order in which members run. A task takes those whose objective it has.
_ORDER = (
  # label maps and classes
  ('apgd', 'ce'),
  ('apgd', 'dice'),
  ('apgd', 'masked_ce'),
  ('apgd', 'margin'),
  # one number, as of a nodule or a point
  ('apgd', 'confidence'),
  ('apgd', 'bce'),
  # all networks that have it
  ('apgd', 'loss'),
  # landmarks
  ('apgd', 'heat'),
  ('apgd', 'radial'),
  ('apgd', 'shift'),
  ('apgd', 'offset'),
  # boxes: objectness, hide, mistake, invent, move
  ('apgd', 'obj'),
  ('apgd', 'hide'),
  ('apgd', 'cls'),
  ('apgd', 'plant'),
  ('apgd', 'found'),
  ('apgd', 'score'),
  ('apgd', 'box'),
  # a mask and its contour: the mask, mean and squared distance, the polygon's Dice
  ('apgd', 'seg'),
  ('apgd', 'train_reg'),
  ('apgd', 'reg'),
  ('apgd', 'polygon_dice'),
  ('apgd', 'train_seg'),
  # more of label maps
  ('apgd', 'balanced_ce'),
  ('apgd', 'erase'),
  ('sea', 'masked_ce'),
  ('sea', 'balanced_ce'),
  ('sea', 'js'),
  ('pgd', 'segpgd'),
  ('pgd', 'cospgd'),
  # at the border of the right label
  ('fmn', 'margin'),
)
_FIRST = 3  # members of the quick budget
_CLIMBING = {'pgd': pgd, 'ifgsm': ifgsm}  # attacks that may hand over the last of several steps
_LARGER = ('fmn',)  # attacks of larger budgets alone
_THREAT = ('norm', 'bounds', 'region', 'max_change')


class Budget(NamedTuple):
  steps: int  # of gradient attacks
  restarts: int
  queries: int  # of Square; 0: without it
  members: int | None  # None: all
  contains: str | None  # the budget whose members run first


BUDGETS = {
  'quick': Budget(10, 1, 0, _FIRST, None),
  'standard': Budget(40, 1, 200, None, 'quick'),
  'thorough': Budget(100, 3, 2000, None, 'standard'),
}


def settings_of(names: Sequence[str], budget: str, **threat) -> dict[str, dict[str, Any]]:
  """Returns {name: settings of an attack and its objective} for a task with these objectives.

  A larger budget begins with the members of the smaller one, by name, so that it finds whatever
  that one finds. threat: norm, bounds, ... of all.
  """
  chosen = errors.lookup(BUDGETS, budget, kind='budget of attacks')
  found = settings_of(names, chosen.contains, **threat) if chosen.contains else {}
  known = [(attack, name) for attack, name in _ORDER if name in names]
  if not known:
    raise errors.UserError(f'no attack of an ensemble has one of the objectives {", ".join(names)}')
  if not chosen.contains:
    known = [(attack, name) for attack, name in known if attack not in _LARGER]
  steps = {'num_steps': chosen.steps, 'restarts': chosen.restarts}
  for attack, name in known[: chosen.members]:
    settings = {'name': attack, **steps, 'objective': name}
    if attack == 'fmn' and chosen.restarts > 1:
      settings['random_start'] = True
    found[f'{attack}_{name}_{chosen.steps}'] = {**settings, 'select': 'monitor', **threat}
  if chosen.queries:
    settings = {'name': 'square', 'num_steps': chosen.queries, 'objective': known[0][1]}
    if threat.get('norm', 'linf') == 'linf':
      settings['start'] = 'stripes'
    found[f'square_{chosen.queries}'] = {**settings, 'select': 'monitor', **threat}
  return found


def added_to(
  own: Mapping[str, Mapping[str, Any]],
  names: Sequence[str],
  budget: str,
  *,
  source: str = '',
  main: str = '',
  changing: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
  """Returns the attacks of an experiment and, after them, what a budget adds ('': nothing).

  own: {name: settings}. Added are the best iterate of each attack that takes steps and the members
  of `settings_of`, with norm, bounds, region and max_change of the attack `main` ('': the first);
  from 'standard' on also the first one that takes steps, made against the arm `source`, if any, and
  shown to the others. The best iterate is NAME_best, or NAME_best_iterate where an attack of other
  settings has that name; it is by the objective, by the metric where the objective is one of
  `changing`, whose values follow the steps.
  """
  found = {name: dict(settings) for name, settings in own.items()}
  if not budget:
    return found
  threat = own[main] if main in own else next(iter(own.values()))
  kept = {name: value for name, value in threat.items() if name in _THREAT}
  members = settings_of(names, budget, **kept)
  climbing = {name: fields for name, fields in found.items() if _climbs(fields)}
  for name, fields in climbing.items():
    select = 'monitor' if fields.get('objective') in changing else 'best'
    best = {**fields, 'select': select, 'score_last': True}
    if any(_filled(best) == _filled(other) for other in found.values()):
      continue
    free = f'{name}_best' if f'{name}_best' not in found else f'{name}_best_iterate'
    if free in found:
      raise errors.UserError(
        f'evaluate.budget adds an attack {free!r}; give the one of that name another'
      )
    found[free] = best
  known = any(fields.get('source') for fields in own.values())
  if climbing and source and not known and BUDGETS[budget].contains:
    found.setdefault('transfer', {**next(iter(climbing.values())), 'source': source})
  return {**found, **members}


def _filled(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of an attack that takes steps, with those that it does not name."""
  maker = _CLIMBING.get(fields['name'])
  known = inspect.signature(maker).parameters if maker else {}
  return {**{name: one.default for name, one in known.items()}, **fields}


def _climbs(fields: Mapping[str, Any]) -> bool:
  """Whether an attack takes several steps up its objective in the ball, and hands over the last."""
  plain = not (fields.get('source') or fields.get('space') or fields.get('minimise'))
  several = fields['name'] in _CLIMBING and fields.get('num_steps', 2) > 1
  return plain and several and fields.get('select', 'last') == 'last'

"""The members of an ensemble of each budget, as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from robustmed import errors

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
)
_FIRST = 3  # members of the quick budget


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
  steps = {'num_steps': chosen.steps, 'restarts': chosen.restarts}
  for attack, name in known[: chosen.members]:
    settings = {'name': attack, **steps, 'objective': name}
    found[f'{attack}_{name}_{chosen.steps}'] = {**settings, 'select': 'monitor', **threat}
  if chosen.queries:
    settings = {'name': 'square', 'num_steps': chosen.queries, 'objective': known[0][1]}
    found[f'square_{chosen.queries}'] = {**settings, 'select': 'monitor', **threat}
  return found


def added_to(
  own: Mapping[str, Mapping[str, Any]],
  names: Sequence[str],
  budget: str,
  *,
  source: str = '',
) -> dict[str, dict[str, Any]]:
  """Returns the attacks of an experiment and, after them, what a budget adds ('': nothing).

  own: {name: settings}. Added are the best iterate of each attack that takes steps (NAME_best) and
  the members of `settings_of`, with norm, bounds and region of the first; from 'standard' on also
  the first one made against the arm `source`, if any, and shown to the others.
  """
  found = {name: dict(settings) for name, settings in own.items()}
  if not budget:
    return found
  members = settings_of(names, budget, **_threat(next(iter(own.values()))))
  climbing = {name: fields for name, fields in found.items() if _climbs(fields)}
  for name, fields in climbing.items():
    best = {**fields, 'select': 'best', 'score_last': True}
    if best not in found.values():
      found.setdefault(f'{name}_best', best)
  known = any(fields.get('source') for fields in own.values())
  if climbing and source and not known and BUDGETS[budget].contains:
    found.setdefault('transfer', {**next(iter(climbing.values())), 'source': source})
  return {**found, **members}


def _threat(fields: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in fields.items() if name in ('norm', 'bounds', 'region')}


def _climbs(fields: Mapping[str, Any]) -> bool:
  """Whether an attack takes several steps up its objective in the ball, and hands over the last."""
  plain = not (fields.get('source') or fields.get('space') or fields.get('minimise'))
  several = fields['name'] in ('pgd', 'ifgsm') and fields.get('num_steps', 2) > 1
  return plain and several and fields.get('select', 'last') == 'last'

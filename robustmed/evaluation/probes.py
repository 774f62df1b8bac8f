"""The attacks of a grid from plain data."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from robustmed import attacks, errors, types
from robustmed.attacks import ensemble, objectives, physical
from robustmed.evaluation import grid
from robustmed.ops import corruptions

_LARGEST = 1e9  # of attack levels, in any units


def settings(
  task: types.Task, config: ml_collections.ConfigDict, *, main: str = ''
) -> dict[str, dict[str, Any]]:
  """Returns the attacks of config.evaluate and what its budget adds to them, as plain data.

  See `attacks.ensemble.added_to`. The budget's transfer is from the first of several arms.
  """
  changing = [name for name, one in task.objectives.items() if objectives.takes_progress(one)]
  own = {name: options.to_dict() for name, options in config.evaluate.attacks.items()}
  budget, arms = config.evaluate.get('budget', ''), tuple(config.get('arms', ()))
  source = arms[0] if len(arms) > 1 else ''
  names = tuple(task.objectives)
  return ensemble.added_to(own, names, budget, source=source, main=main, changing=changing)


def make(
  task: types.Task, config: ml_collections.ConfigDict, *, main: str = ''
) -> dict[str, grid.Probe]:
  """Returns the probes of config.evaluate: its attacks, those of its budget, its corruptions.

  An attack is plain data with 'objective' and optionally 'levels', 'source', the arm that is
  attacked (all other arms are evaluated on its images), and 'space', a transform of
  `attacks.physical` in place of the task's space. A corruption has the severities of its entry and
  the first attack's bounds.
  """
  probes = {}
  for name, fields in settings(task, config, main=main).items():
    objective = fields.pop('objective')
    climbed = errors.lookup(task.objectives, objective, kind='objective')
    levels = fields.pop('levels', None)
    levels = _levels(config.evaluate.levels if levels is None else levels)
    space = physical.space_from(fields.pop('space', None), task) or task.space
    if source := fields.pop('source', ''):
      errors.lookup(config.arms, source, kind=f'arm that attack {name!r} takes its images from')
    attack = make_attack(fields)
    if getattr(attack, 'select', None) == 'best' and objectives.takes_progress(climbed):
      raise errors.UserError(
        f'attack {name!r}: values of the objective {objective!r} at two steps cannot be compared, '
        "so select='best' knows no best one; take 'monitor' or 'last'"
      )
    probes[name] = grid.Probe(attack, objective, levels, source, space)
  for kind in config.evaluate.get('corruptions', ()):
    levels = errors.lookup(corruptions.CORRUPTIONS, kind, kind='corruption').levels
    first = next(iter(config.evaluate.attacks.values()))
    attack = attacks.corruption(kind=kind, bounds=first.get('bounds'))
    probes[kind] = grid.Probe(attack, first.objective, levels, space=task.space)
  return probes


def severities(probes: Mapping[str, grid.Probe]) -> dict[str, str]:
  """Returns the unit of the levels of each artefact among the probes, in words."""
  kinds = {
    name: getattr(getattr(probe.attack, 'threat', None), 'kind', '')
    for name, probe in probes.items()
  }
  return {name: corruptions.CORRUPTIONS[kind].unit for name, kind in kinds.items() if kind}


def make_attack(options: Mapping[str, Any]) -> types.Attack:
  """Returns an attack from plain data: {'name', its settings}."""
  return attacks.make(options['name'], **{k: v for k, v in options.items() if k != 'name'})


def _levels(given) -> tuple[float, ...]:
  """Returns attack levels as a sorted tuple without duplicates, all above 0 and at most 1e9."""
  try:
    levels = tuple(sorted({float(eps) for eps in given}))
  except (TypeError, ValueError):
    raise errors.UserError(f'attack levels must be numbers, not {given!r}') from None
  if not levels or not all(0 < eps <= _LARGEST for eps in levels):
    raise errors.UserError(f'attack levels must be above 0 and at most {_LARGEST:g}, not {given!r}')
  return levels

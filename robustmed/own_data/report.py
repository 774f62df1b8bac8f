"""The page of a training on the user's own images."""

import ml_collections

from robustmed import types
from robustmed.evaluation import claims
from robustmed.own_data import choices
from robustmed.report import spec

_PLACE = 'asked of your data'
_LABELS = {
  'std': 'std (clean images)',
  'adv': 'adv (attacked images)',
  'amat': 'amat (a margin per image)',
}


def claims_of(config: ml_collections.ConfigDict, part) -> tuple[claims.Claim, ...]:
  """Returns what is asked of the data: whether training on attacked images helps, at what cost.

  At report.picture_eps under the main attack, paired by patient.
  """
  at = {'metric': part.METRIC, 'attack': 'pgd', 'eps': config.report.picture_eps}
  clean = {'metric': part.METRIC, 'attack': 'none', 'eps': 0.0}

  def better(one, other, where):
    first, second = (one, other) if part.HIGHER_IS_BETTER else (other, one)
    return claims.greater(first, second, **where)

  asked = (
    ('Attacked images in training help under attack', better('adv', 'std', at)),
    ('A margin for each image helps under attack', better('amat', 'std', at)),
    ('A margin for each image helps more than one level for all', better('amat', 'adv', at)),
    ('Attacked images in training cost clean accuracy', better('std', 'adv', clean)),
  )
  return tuple(claims.Claim(statement, _PLACE, test) for statement, test in asked)


def spec_of(
  config: ml_collections.ConfigDict, chosen: choices.Choices, part, task: types.Task
) -> spec.ReportSpec:
  """Returns panels, arms, claims and text of the page."""
  name = chosen.fields.get('dir') or 'synthetic volumes'
  return spec.ReportSpec(
    title=f'Networks trained on {name.rstrip("/").rpartition("/")[2]}, under attack',
    description=(
      'Each network was trained on the same images in another way and is then evaluated under the '
      f'same attacks. {chosen.lines[0]}.',
    ),
    panels=part.panels(chosen),
    level_units=task.units,
    arms=tuple(spec.Arm(arm, _LABELS.get(arm, arm)) for arm in config.arms),
    claims=claims_of(config, part),
    notes=(*chosen.lines[1:], *part.notes(chosen)),
    headline_eps=config.report.picture_eps,
    classes=chosen.study.classes,
  )

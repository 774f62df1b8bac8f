"""The page of a training on the user's own images."""

import ml_collections

from robustmed import types
from robustmed.papers.own_data import choices
from robustmed.report import spec

_LABELS = {
  'std': 'std (clean images)',
  'adv': 'adv (attacked images)',
  'amat': 'amat (a margin per image)',
}


def spec_of(
  config: ml_collections.ConfigDict, chosen: choices.Choices, part, task: types.Task
) -> spec.ReportSpec:
  """Returns panels, arms and text of the page; it has no claims, since there is no paper."""
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
    notes=(*chosen.lines[1:], *part.notes(chosen)),
    headline_eps=config.report.picture_eps,
  )

"""Quickstart: one small network on synthetic disks, trained three ways, attacked at every level."""

import ml_collections

from robustmed import data
from robustmed.evaluation import claims
from robustmed.papers.spine import claims as spine_claims
from robustmed.papers.spine import disks
from robustmed.report import spec
from robustmed.runs import experiment

PLACE = 'Chen et al. 2021, Tables 1-3'


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of a quickstart configuration; touches no data."""
  task = disks.make_task(config)
  return experiment.Experiment(
    task=task,
    arms=_arms(task, config),
    data=experiment.Data(
      sizes=lambda: data.sizes(disks.source_config(config)),
      load=lambda: data.load(disks.source_config(config)),
      augment=disks.make_augment(config),
      groups=lambda: data.groups(disks.source_config(config)),
      shapes=lambda: data.shapes(disks.source_config(config)),
    ),
    grid=experiment.Grid(
      experiment.make_probes(task, config, main='pgd_seg'),
      'pgd_seg',
      checks={
        'metric': 'DICE_seg',
        'higher_is_better': True,
        'main': 'pgd_seg',
        'one_step': 'fgsm',
        'noise': 'noise',
        'undefended': 'std',
      },
    ),
    report=lambda workdir: report_spec(task, config),
    claims=lambda: report_spec(task, config).claims,
    artifacts=experiment.Artifacts(disks.write_example, disks.pictures),
  )


def _arms(task, config: ml_collections.ConfigDict) -> dict[str, experiment.Arm]:
  arms = experiment.make_arms(task, config)
  if config.get('mean_contour', False):  # older workdirs have none
    for name, arm in arms.items():
      if not arm.init_from:
        made = arm.prepared._replace(variables=disks.from_mean_contour)
        arms[name] = arm._replace(prepared=made)
  return arms


def report_spec(task, config: ml_collections.ConfigDict) -> spec.ReportSpec:
  """Panels, claims and text of the quickstart's report."""
  eps = config.report.picture_eps
  at = {'metric': 'DICE_seg', 'attack': 'pgd_seg', 'eps': eps}
  clean = {'metric': 'DICE_seg', 'attack': 'none', 'eps': 0.0}
  half = {'threshold': spine_claims.COLLAPSE, 'reason': spine_claims.COLLAPSE_REASON}
  return spec.ReportSpec(
    title='Quickstart: a disk-segmentation network under attack',
    description=(
      'One small network finds a lumbar disk in an MR-like image: its mask and its 176-point '
      'contour. It was trained three ways: std on clean images, rand with random noise added, adv '
      'on images attacked during training. All networks are then evaluated under the same attacks.',
      f'Data: {config.data.source} at {config.data.side}x{config.data.side}.',
    ),
    panels=(
      spec.Panel('DICE_seg', 'pgd_seg', True, 'Dice of the segmentation', (0.0, 1.0)),
      spec.Panel('DICE_reg', 'pgd_seg', True, 'Dice of the contour', (0.0, 1.0), aimed=False),
      spec.Panel('Error_reg', 'pgd_seg', False, 'Contour error (pixels)', aimed=False),
    ),
    level_units=task.units,
    arms=(
      spec.Arm('std', 'std (clean images)'),
      spec.Arm('rand', 'rand (random noise)'),
      spec.Arm('adv', 'adv (attacked images)'),
    ),
    claims=(
      claims.Claim('The standard network collapses', PLACE, claims.below('std', **half, **at)),
      claims.Claim(
        'Adversarial training keeps the segmentation', PLACE, claims.above('adv', **half, **at)
      ),
      claims.Claim(
        'Random noise in training does not help',
        PLACE,
        claims.close(
          'rand',
          'std',
          tolerance=spine_claims.NO_HELP,
          reason=spine_claims.NO_HELP_REASON,
          **at,
          above_only=True,
        ),
      ),
      claims.Claim(
        'Adversarial training helps more than random noise',
        PLACE,
        claims.greater('adv', 'rand', **at),
      ),
      claims.Claim(
        'Adversarial training costs clean accuracy', PLACE, claims.greater('std', 'adv', **clean)
      ),
    ),
    headline_eps=eps,
  )

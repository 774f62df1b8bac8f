"""The disk-shape study: Chen et al. 2021, 'Adversarial robustness study of convolutional neural
network for lumbar disk shape reconstruction from MR images'."""

import functools
from collections.abc import Collection

import jax
import ml_collections

from robustmed import data, errors, types
from robustmed.data.spine import ood as ood_images
from robustmed.evaluation import grid, trials
from robustmed.papers.spine import claims, disks, evaluation, ood, report
from robustmed.papers.spine import mismatch as disk_mismatch
from robustmed.runs import experiment

OOD_PARTS = 'ood_parts'  # in results/


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of a configuration of configs/spine.py; touches no data."""
  task = disks.make_task(config)
  # One per choice of fields, so that arms that share it share its compiled programs.
  tasks = functools.cache(lambda fields: disks.make_task(config, dict(fields)))
  augments = functools.cache(lambda fields: disks.make_augment(config, dict(fields)))
  arms = experiment.make_arms(
    task,
    _read(config),
    make_task=lambda fields: tasks(tuple(sorted(fields.items()))),
    make_augment=lambda fields: augments(tuple(sorted(fields.items()))),
  )
  _check_ood(config)
  return experiment.Experiment(
    task=task,
    arms=arms,
    data=experiment.Data(
      sizes=lambda: data.sizes(disks.source_config(config)),
      load=lambda: _source(config),
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
        'undefended': 'P10_std',
      },
    ),
    report=lambda folder: report.spec_of(config, task, folder),
    claims=lambda: claims.of_paper(config),
    artifacts=experiment.Artifacts(disks.write_example, disks.pictures),
    studies=(
      experiment.Study(
        'attacks from outside',
        functools.partial(evaluate, config),
        functools.partial(ood_cells, config),
      ),
    ),
  )


def _read(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The configuration with its arms as config.reading wants them, in the names of the task."""
  reading = config.reading
  config = experiment.editable(config)
  for arm in config.arms.values():
    chosen = arm.get('attack_objectives', reading.attack_objectives)
    errors.lookup(dict.fromkeys(('code', 'paper')), chosen, kind='reading of the objectives')
    prefix = 'train_' if chosen == 'code' else ''
    if not reading.warm_start:
      arm.init_from = ''
    if 'objectives' not in arm.defense:
      continue
    weights = {f'{prefix}{name}': weight for name, weight in arm.defense.objectives.items()}
    arm.defense.objectives = ml_collections.ConfigDict(weights)
    if not reading.eps_ramp:
      arm.defense.ramp_levels = 0
  return config


def _source(config):
  """The data; a folder of OOD images that is not usable is found out here, not after hours."""
  if config.ood.images:
    STARTS['ct'](config, 1)
  return data.load(disks.source_config(config))


# Attacks from outside ----------------------------------------------------------------------


def ood_settings(config: ml_collections.ConfigDict) -> dict[str, ood.Setting]:
  """config.ood.attacks: an attack's plain data, and 'eps', 'mismatch' and 'start'."""
  settings = {}
  for name, options in config.ood.attacks.items():
    fields = options.to_dict()
    eps, mismatch, start = (fields.pop(field) for field in ('eps', 'mismatch', 'start'))
    errors.lookup(disk_mismatch.MISMATCHES, mismatch, kind='mismatch')
    errors.lookup(STARTS, start, kind='kind of OOD image')
    settings[name] = ood.Setting(experiment.make_attack(fields), float(eps), mismatch, start)
  return settings


STARTS = {
  'ct': lambda config, count: ood_images.load_images(
    config.ood.images,
    side=config.data.side,
    count=max(1, min(count, config.ood.ct_slices)),
    seed=config.ood.seed,
  ),
  'noise': lambda config, count: ood_images.noise_images(
    side=config.data.side, count=count, seed=config.ood.seed
  ),
}


def target(side: int) -> ood.Target:
  return ood.Target(
    own=disk_mismatch.own,
    agreement=functools.partial(disk_mismatch.agreement, side=side),
    score=disk_mismatch.score,
    mismatches=disk_mismatch.MISMATCHES,
    change=lambda change, batch: {
      'object_dice': disk_mismatch.object_dice(change, batch['target']['mask'])
    },
  )


def _check_ood(config) -> None:
  settings = ood_settings(config)
  for arm, names in config.ood.arms.items():
    errors.lookup(config.arms, arm, kind='arm of ood.arms')
    for name in names:
      errors.lookup(settings, name, kind=f'OOD attack of arm {arm!r}')
      maps = config.arms[arm].get('model', {}).get('num_maps', config.model.num_maps)
      if settings[name].mismatch in disk_mismatch.DETECTING and maps < 2:
        raise errors.UserError(
          f'OOD attack {name!r} fools a reconstruction, which arm {arm!r} has not: give the arm '
          'model.num_maps=2 or leave the attack out of ood.arms'
        )


def _chosen(config, indices):
  return indices[:: max(1, len(indices) // config.ood.count)][: config.ood.count]


def ood_cells(
  config: ml_collections.ConfigDict, arm: str, trial: trials.Trial, finished: Collection[str]
) -> dict[str, types.Cost]:
  """The cost of every attack from outside that an arm meets, by its file in results/."""
  del finished
  size = data.sizes(disks.source_config(config)).get('test', 0)
  count = len(_chosen(config, range(size)))
  settings, cells = ood_settings(config), {}
  scored = types.Cost(forwards=2 * count, passes=0)  # what is wanted, and what comes out
  names = config.ood.arms.get(arm, ())
  for name in ([ood.IND] if names else []) + [
    ood.START + start for start in dict.fromkeys(settings[name].start for name in names)
  ]:
    cells[f'{OOD_PARTS}/{grid.Cell(arm, trial, name, 0.0).file}'] = scored
  for name in names:
    cell, attack = grid.Cell(arm, trial, name, settings[name].eps), settings[name].attack
    cells[f'{OOD_PARTS}/{cell.file}'] = types.Cost(
      gradients=count * attack.num_gradients,
      forwards=count * (attack.num_forwards + 1) + scored.forwards,
      passes=0,
    )
  return cells


def evaluate(config: ml_collections.ConfigDict, context, models, rows) -> None:
  """After the grid: attacks from outside, then the arrays that the paper's figures need."""
  indices = sorted(rows['index'].unique())
  starts = {name: make(config, len(indices)) for name, make in STARTS.items()}
  settings = ood_settings(config)
  key = jax.random.fold_in(jax.random.key(config.seed), 0x00D)
  evaluators, chosen = {}, []
  for model in context.everyone:
    if model.arm not in config.ood.arms:
      continue
    task = context.exp.task_of(model.arm)
    if id(task) not in evaluators:
      evaluators[id(task)] = ood.Evaluator(task, target(config.data.side), settings, key=key)
    chosen.append(ood.Model(model, evaluators[id(task)], tuple(config.ood.arms[model.arm])))
  wanted = _chosen(config, indices)
  few = lambda indices: ood.chosen(context.batches, indices, size=config.evaluate.batch_size)
  asked = {(model.arm, model.seed) for model in models}
  due = [one for one in chosen if (one.model.arm, one.model.seed) in asked]
  parts = context.results / OOD_PARTS
  if due:
    ood.run(due, batches=few(wanted), starts=starts, folder=parts, stopper=context.stopper)
    found = ood.gather(ood.finished(chosen, folder=parts), folder=parts)
    evaluation.save_rows(context.results, found)
  evaluation.save_facts(config, context)
  evaluation.save_strips(config, context, models, few(wanted[:1]), index=wanted[0])
  evaluation.save_ood_pictures(context, due, few(wanted[:1]), starts)

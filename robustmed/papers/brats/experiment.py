"""Liu et al. 2021, 'Robustifying Deep Networks for Medical Image Segmentation': gliomas in MR, the
FGSM family, distillation and adversarial training, in volumes and in slices."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from robustmed import data, errors, models, tasks, types
from robustmed.data import label_noise
from robustmed.data.brain import brain_augment, brains, brats_files
from robustmed.evaluation import trials
from robustmed.papers.brats import evaluation, pairing, report
from robustmed.papers.brats import rows as brats_rows
from robustmed.runs import costs, experiment

STUDENT_KEY = 1  # of all students, so that temperatures are compared; teachers have the run's
READINGS = {
  'distillation': ('literal', 'logit_gain'),
  'updates': ('in_turn', 'together'),
  'epochs': ('equal', 'paper'),
}


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of a configuration of configs/brats2d.py or brats3d.py; touches no data, but
  looks into the folder of real data, if there is one, for the number of series."""
  errors.lookup(pairing.PLANES, config.dimension, kind='number of dimensions')
  report.other_run(config)  # a mistake there would else be told after the training
  task = make_task(config)
  arms = experiment.make_arms(
    task,
    read(config),
    make_task=functools.partial(make_task, config, base=task),
    make_augment=lambda fields: make_augment(config, fields),
  )
  own = config.evaluate.attacks
  main = next((name for name in (*evaluation.SHOWN, *own) if name in own), 'fgsm')
  probes = experiment.make_probes(task, config, main=main)
  subjects = brats_rows.volumes if config.dimension == 2 else lambda rows: rows
  return experiment.Experiment(
    task=task,
    arms=arms,
    data=experiment.Data(
      sizes=lambda: data.sizes(source_config(config)),
      load=lambda: data.load(source_config(config)),
      augment=make_augment(config),
      groups=lambda: data.groups(source_config(config)),
      shapes=lambda: data.shapes(source_config(config)),
    ),
    grid=experiment.Grid(
      probes,
      main,
      subjects=subjects,
      checks={
        'metric': 'dice_wt',
        'higher_is_better': True,
        'main': 'ifgsm',
        'one_step': 'fgsm',
        'noise': 'noise',
        'undefended': 'std',
      },
    ),
    report=lambda folder: report.spec_of(config, task, folder),
    claims=lambda: report.make_claims(config),
    artifacts=experiment.Artifacts(evaluation.write_example),
    studies=(
      experiment.Study(
        'curves over iterations, pictures and volumes',
        functools.partial(evaluation.evaluate, config),
        functools.partial(study_cells, config),
      ),
    ),
  )


def make_task(
  config: ml_collections.ConfigDict,
  fields: Mapping[str, Any] | None = None,
  *,
  base: types.Task | None = None,
) -> types.Task:
  """The task of config.model with `fields` on top.

  Of a network that differs from that of `base` in its logit gain alone only `init` is its own, as
  the gain lies with the weights: both share all programs.
  """
  options = {**config.model.to_dict(), **(fields or {})}
  make = errors.lookup(models.MODELS, options.pop('name'), kind='model')
  dtype = errors.lookup(
    {'float32': None, 'bfloat16': jnp.bfloat16}, options.pop('dtype'), kind='model dtype'
  )
  channels = _channels(config)
  module = make(rank=config.dimension, channels=channels, dtype=dtype, **options)
  shape = (config.data.side,) * config.dimension + (channels,)
  task = tasks.TASKS['brats'](module, image_shape=shape, terms=tuple(config.loss))
  if base is not None and set(fields or {}) <= {'logit_gain'}:
    return base._replace(init=task.init)
  return task


def _channels(config) -> int:
  if config.data.source == 'brats' and config.data.dir:
    return brats_files.channels(data.fields_of(source_config(config)))
  return len(brains.SERIES)


def source_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of config.data that the chosen source knows."""
  return {'planes': pairing.PLANES[config.dimension], **data.source_config(config.data.to_dict())}


def make_augment(
  config: ml_collections.ConfigDict, fields: Mapping[str, Any] | None = None
) -> Callable[[Any], Callable[..., Any] | None]:
  """source -> (keys, batch) -> batch: wrong labels first, if any, then the movements."""
  options = {**config.augment.to_dict(), **(fields or {})}
  kind, share, radius = (options.pop(f'wrong_{name}') for name in ('labels', 'share', 'radius'))
  move = brain_augment.make(**options)
  if not kind:
    return lambda source: move
  spoil = label_noise.wrong_labels(kind=kind, share=share, seed=config.seed, radius=radius)

  def both(keys, batch):
    return move(keys, spoil(keys, batch))

  return lambda source: both


def read(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The configuration with its arms as config.reading wants them.

  Slices train on one Dice for the whole batch (`coupled`): most of them hold no tumour. All
  teachers draw alike, as std does, and all students draw alike, so that arms of different
  temperature differ in nothing else.
  """
  reading = config.reading
  for name, known in READINGS.items():
    errors.lookup(dict.fromkeys(known), reading[name], kind=f'reading of {name}')
  config = experiment.editable(config)
  for arm in config.arms.values():
    defense = arm.defense
    defense.coupled = config.dimension == 2
    if defense.name in ('adversarial', 'noise'):
      defense.in_turn = reading.updates == 'in_turn'
    if defense.name == 'distillation' and defense.get('stage', 'student') == 'student':
      arm.key = STUDENT_KEY
    if defense.name == 'standard' and reading.epochs == 'paper' and config.dimension == 3:
      rules = config.train.optimisers.to_dict()
      rules['main']['lr'] /= 5
      arm.train = ml_collections.ConfigDict(
        {'steps': max(1, config.train.steps // 4), 'optimisers': rules}
      )
  if reading.distillation == 'logit_gain':
    _multiply(config.arms)
  return config


def _multiply(arms) -> None:
  """Gives distilled arms the gain of their temperature, and trains one of those alike but for it.

  T cancels from a loss that divides by it what the network has multiplied by it, so such arms would
  be the same training over again.
  """
  given, trained = {name: arm.to_dict() for name, arm in arms.items()}, {}

  def without_temperature(name):
    fields = {**given.get(name, {})}
    teacher = fields.pop('teacher_from', '')
    fields['defense'] = {k: v for k, v in fields.get('defense', {}).items() if k != 'temperature'}
    return fields, teacher

  for name, arm in arms.items():
    if arm.defense.name != 'distillation':
      continue
    arm.model = ml_collections.ConfigDict({'logit_gain': float(arm.defense.temperature)})
    arm.defense.update({'rise': 0.0, 'full_gradient': False})
    own, teacher = without_temperature(name)
    other = trained.setdefault(repr((own, without_temperature(teacher)[0])), name)
    if other != name:
      arm.copy_of, arm.teacher_from = other, ''


def study_cells(
  config: ml_collections.ConfigDict, arm: str, trial: trials.Trial, finished: Collection[str]
) -> dict[str, types.Cost]:
  """The cost of the curves against the number of iterations, by file in results/."""
  del finished
  if arm not in config.evaluate.iteration_arms or not config.evaluate.iterations:
    return {}
  size = data.sizes(source_config(config)).get('test', 0)
  count, steps = costs.padded(size, config.evaluate.batch_size), config.evaluate.iterations
  each = types.Cost(gradients=count * steps, forwards=count, passes=0)
  names = evaluation.curve_attacks(config)
  return {evaluation.curve_file(arm, trial, name): each for name in names}

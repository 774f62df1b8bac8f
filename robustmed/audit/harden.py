"""A trained network, trained on with the user's labelled images, audited before and after."""

import dataclasses
import functools
import math

import ml_collections

from robustmed import errors, types
from robustmed.audit import experiment as audit
from robustmed.audit import handback, label_maps, page, setup
from robustmed.data.labelled import augment, study
from robustmed.evaluation import claims, trials
from robustmed.networks import training
from robustmed.own_data import segmentation
from robustmed.process import console, files
from robustmed.report import spec
from robustmed.runs import experiment
from robustmed.training import checkpoints

LOADED = 'loaded'  # the arm of the network as it came
_LARGEST = {2: 256, 3: 80}  # side of a patch, where data.patch is ()
_MOST_STRATA = 16
_PLACE = 'asked of your data'
_LABELS = {
  LOADED: 'as it came',
  'std': 'trained on, clean images',
  'noise': 'trained on, random noise',
  'adv': 'trained on, attacked images',
  'amat': 'trained on, a margin per image',
}


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of configs/harden.py; reads network and folder, and prints what it chose.

  Levels that are left open are filled into `config`.
  """
  if config.seeds != 1:
    raise errors.UserError('config.seeds: every arm is trained once; run again with another seed')
  made = _with_patch(setup.make(config), config)
  one = next(iter(made.audited.values()))
  split = training.split(one.network, freeze=config.harden.freeze)
  audit.choose(config, made)
  for line in training.lines(one.network, split):
    console.say(line)
  task = _task(made, split)
  trained = experiment.make_arms(task, _filled(config, made, task))
  if LOADED in trained:
    raise errors.UserError(f'config.arms: {LOADED!r} is the name of the network as it came')
  loaded = experiment.Arm(
    name=LOADED,
    defense=experiment.make_defense(task, {'name': 'standard'}),
    train={'steps': 0, 'batch_size': 1},
    network=experiment.Network(variables=lambda: split.variables),
  )
  arms = {LOADED: loaded, **trained}
  probes = audit.probes_of(task, config, made)
  augmentation = _augmentation(config)
  return experiment.Experiment(
    task=task,
    arms=arms,
    data=experiment.Data(
      sizes=lambda: setup.sizes(made),
      load=functools.lru_cache(maxsize=1)(lambda: setup.load(made, setup.tasks(made))),
      augment=lambda source: augmentation,
      groups=lambda: setup.groups(made),
      check=functools.partial(_check, made),
    ),
    grid=audit.grid_of(probes, made, undefended=LOADED, inspected=(LOADED,)),
    report=lambda folder: _page(folder, made, split, config, probes, task),
    claims=lambda: _claims(config),
    artifacts=experiment.Artifacts(
      made.part.write_example(made, study.facts_of(made.study)),
      made.part.pictures,
      made.part.lattice_of(made, study.facts_of(made.study)),
    ),
    studies=(
      *audit.studies_of(probes, config, made),
      experiment.Study(
        handback.FOLDER,
        lambda context, models, rows: handback.write(
          one, split, context, context.everyone, untrained=LOADED
        ),
      ),
    ),
  )


def _with_patch(made: setup.Setup, config) -> setup.Setup:
  """The setup with the patch of training: data.patch, the network's window, or the whole image."""
  if len(made.audited) > 1:
    raise errors.UserError('config.networks: one network is hardened at a time (config.network)')
  if made.part is not label_maps:
    raise errors.UserError(
      f'{made.study.folder.root} has {made.study.folder.kind}; networks are hardened on label maps'
    )
  seen = next(iter(made.audited.values())).described.input
  order = ['zyx'[-made.study.axes :].index(letter) for letter in seen.letters]
  steps = made.fields['multiple']
  if seen.window:
    patch = tuple(seen.window[order.index(axis)] for axis in range(len(order)))
  elif config.data.patch:
    patch = tuple(config.data.patch)
    if len(patch) != len(steps) or any(n < 1 or n % step for n, step in zip(patch, steps)):
      raise errors.UserError(f'data.patch {patch} must be multiples of {steps}')
  else:
    largest = _LARGEST[made.study.axes]
    fits = lambda n, step: n if n <= largest else max(step, largest // step * step)
    patch = tuple(fits(n, step) for n, step in zip(made.study.window, steps))
  fields = {**made.fields, 'patch': patch}
  return made._replace(fields=fields, study=setup.study_of(fields))


def _task(made: setup.Setup, split: training.Split) -> types.Task:
  """The task of the network with its variables as those that are trained and those that are not."""
  base = next(iter(setup.tasks(made).values()))
  predict = lambda variables, image: base.predict({'params': split.join(variables)}, image)
  rest = lambda variables: {name: variables[name] for name in variables if name != 'params'}
  return base._replace(
    init=lambda key: split.variables,
    predict=predict,
    forward=lambda variables, image, key: (predict(variables, image), rest(variables)),
    image_shape=(*made.fields['patch'], made.study.channels),
  )


def _filled(config, made: setup.Setup, task: types.Task) -> ml_collections.ConfigDict:
  """The configuration with eps of the arms where it is 0, in the units of the levels."""
  config = experiment.editable(config)
  levels = made.threat.levels
  eps = config.harden.eps or levels[len(levels) // 2]
  if not 0 < eps < math.inf:
    raise errors.UserError(f'harden.eps must be a number above 0, not {eps}')
  for arm in config.arms.values():
    defense = arm.defense
    if defense.name in ('adversarial', 'noise'):
      defense.eps = defense.get('eps') or eps
    if defense.name == 'amat':
      defense.step = defense.get('step') or eps / 4
      defense.max_margin = defense.get('max_margin') or 2 * eps
      defense.strata = task.strata is not None and len(task.strata.names) <= _MOST_STRATA
      defense.epoch_steps = max(1, config.train.optimisers.main.steps_per_epoch)
  if not config.train.batch_size:
    config.train.batch_size = 2 if made.study.axes == 3 else 8
  return config


def _augmentation(config):
  options = config.augment.to_dict()
  makers = {'plain': augment.make, 'none': lambda mirror: None}
  return errors.lookup(makers, options.pop('name'), kind='augmentation')(**options)


def _check(made: setup.Setup, arms, untrained, workdir) -> None:
  """Raises a `UserError` if there are networks to train and nothing to train them on."""
  del arms, workdir
  if untrained and not setup.sizes(made)['train']:
    raise errors.UserError(
      f'{made.study.folder.root}: all cases are test cases, so {", ".join(sorted(untrained))} '
      'cannot be trained; set data.split to fraction'
    )


def _claims(config) -> tuple[claims.Claim, ...]:
  """What is asked: does each training help under attack, more than training on alone, at what cost.

  At report.picture_eps under the main attack, paired by patient.
  """
  at = {'metric': segmentation.METRIC, 'attack': audit.MAIN, 'eps': config.report.picture_eps}
  clean = {'metric': segmentation.METRIC, 'attack': 'none', 'eps': 0.0}
  found = []
  for arm in config.arms:
    others = (LOADED,) if arm == 'std' else (LOADED, 'std')
    for other in others:
      if other == LOADED or other in config.arms:
        statement = f'{arm} withstands an attack of {at["eps"]:g} better than {other}'
        found.append(claims.Claim(statement, _PLACE, claims.greater(arm, other, **at)))
    if arm != 'std':
      test = claims.greater(LOADED, arm, **clean)
      found.append(claims.Claim(f'{arm} costs Dice on untouched images', _PLACE, test))
  return tuple(found)


def _page(folder, made: setup.Setup, split, config, probes, task) -> spec.ReportSpec:
  """What the page of an audit has, of all networks; with it report/audit.json, report/card.md."""
  folder, one = files.path_of(folder), next(iter(made.audited.values()))
  audited = {LOADED: one}
  first = trials.listed(1, 0)[0]
  for arm in config.arms:
    path = handback.place(folder / 'results', one, arm, first)
    stored = folder / 'checkpoints' / arm / first.folder / 'variables'
    if path.exists():
      trained = split.join(checkpoints.load_variables(stored, task))
      network = one.network._replace(
        name=path.name, variables=trained, digest=handback.digest(path)
      )
      audited[arm] = one._replace(network=network, lines=())
  found = page.write(folder, made._replace(audited=audited), config, probes)
  return dataclasses.replace(
    found,
    title=f'{one.network.name}, trained on and audited before and after',
    arms=tuple(spec.Arm(arm, _LABELS.get(arm, arm)) for arm in audited),
    claims=_claims(config),
  )

"""Adaptive-margin adversarial training: Ma & Liang 2022, 'Adaptive Adversarial Training to Improve
Adversarial Robustness of DNNs for Medical Image Segmentation and Detection'."""

import functools
import pathlib

import ml_collections

from robustmed import data, errors
from robustmed.data.decathlon import folds
from robustmed.defenses import thresholds
from robustmed.models import weights
from robustmed.papers.amat import landmarks, objects, parts, report, segmentation
from robustmed.runs import experiment

# What differs between kinds of tasks: networks, data, pictures, files, studies.
PARTS = {
  'landmarks': landmarks,
  'objects': objects,
  'segmentation': segmentation,
}
SCRATCH = 'scratch'


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of a configuration of configs/amat_*.py; touches no data."""
  part = errors.lookup(PARTS, config.part, kind='part of amat')
  task = part.make_task(config)
  probes = experiment.make_probes(task, config, main='pgd')
  pretrained = _pretrained(config)
  arms = experiment.make_arms(task, read(config, part))
  return experiment.Experiment(
    task=task,
    arms={name: _initialised(arm, pretrained) for name, arm in arms.items()},
    data=_data(config, part),
    grid=experiment.Grid(
      probes,
      'pgd',
      checks={
        'metric': part.METRIC,
        'higher_is_better': part.HIGHER_IS_BETTER,
        'main': 'pgd',
        'one_step': 'one_step',
        'noise': 'noise',
        'undefended': 'std',
      },
    ),
    report=lambda folder: report.spec_of(config, part, task, folder),
    claims=lambda: report.make_claims(config, part, levels=probes['pgd'].levels),
    artifacts=experiment.Artifacts(
      part.write_example, part.pictures, getattr(part, 'lattice_of', None)
    ),
    studies=part.studies(config, probes['pgd'].attack),
  )


def _data(config, part) -> experiment.Data:
  one = functools.partial(_data_of, config, part, part.make_augment(config))
  if 'folds' not in config.data:
    return one()
  if config.data.folds:
    folds.check({'fold': 0, 'folds': config.data.folds})
    return experiment.over_folds([one(fold) for fold in range(config.data.folds)])
  joined = experiment.editable(config)
  joined.data.folds = folds.FOLDS
  setting = f'config.data.folds={folds.FOLDS}'
  return one()._replace(larger={setting: lambda: _data(joined, part).groups()})


def _data_of(config, part, augment, *fold: int) -> experiment.Data:
  fields = functools.partial(parts.source_config, config, *fold)
  return experiment.Data(
    sizes=lambda: data.sizes(fields()),
    load=lambda: part.load(config, *fold),
    augment=augment,
    groups=lambda: data.groups(fields()),
    shapes=lambda: part.shapes(config, fields()),
  )


def _initialised(arm: experiment.Arm, pretrained) -> experiment.Arm:
  """The arm with pretrained initial weights, if there are any and it has no warm start."""
  if pretrained is None or arm.init_from:
    return arm
  return arm._replace(prepared=arm.prepared._replace(variables=lambda finished: pretrained))


def _pretrained(config):
  """Returns random variables -> those with the weights of config.model.init; None: scratch."""
  path = config.model.get('init', SCRATCH)
  if path in ('', SCRATCH):
    return None
  weights.check(pathlib.Path(path).expanduser())  # else a bad file is an error in training
  return functools.partial(weights.load, path, model=config.model.name)


def read(config: ml_collections.ConfigDict, part) -> ml_collections.ConfigDict:
  """Returns the configuration with config.reading applied to its arms."""
  reading = config.reading
  kind = parts.criterion(config, part.CRITERIA)
  errors.lookup(thresholds.ESTIMATORS, reading.estimator, kind='estimator of thresholds')
  config = experiment.editable(config)
  for arm in config.arms.values():
    flag, names = part.COUPLED
    if arm.defense.name in names and reading[flag] and not arm.defense.get('objective', ''):
      arm.defense.coupled = True
    if 'attack' in arm.defense and 'attack_bn' in reading:
      arm.defense.attack_bn = reading.attack_bn
    if arm.defense.name != 'amat':
      continue
    arm.defense.update(
      {
        'criterion': reading.criterion,
        'terms': kind.terms,
        'strata': kind.strata,
        'tested': reading.test,
        'when': reading.when,
        'refine': reading.refine,
        'epoch_steps': config.train.optimisers.main.steps_per_epoch,
      }
    )
    if not reading.cap:
      arm.defense.max_margin = None
    arm.thresholds = {'estimator': reading.estimator}
    if reading.estimator != 'max':  # which has no deviations
      arm.thresholds.k = reading.deviations
    if kind.stratum is not None:
      arm.thresholds.stratum = kind.stratum
    if kind.clean_terms:
      arm.thresholds.terms = kind.clean_terms
  return config

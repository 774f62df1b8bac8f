"""Two moons: Liu et al. 2020, Fig. 7, in six panels, each an arm of its own."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import ml_collections

from robustmed import data, errors, types
from robustmed.metrics import losses
from robustmed.models import members
from robustmed.papers.two_moons import arms, moons, report
from robustmed.process import files
from robustmed.runs import experiment
from robustmed.tasks import networks


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of a configuration of configs/two_moons.py; draws nothing."""
  moons.check(config.data)
  task = make_task(config)
  return experiment.Experiment(
    task=task,
    arms=arms.make(config, task),
    data=experiment.Data(
      sizes=lambda: moons.sizes(config.data),
      load=functools.cache(lambda: make_source(config)),
      groups=lambda: config.data.replicates,
    ),
    grid=experiment.Grid(
      experiment.make_probes(task, config, main='pgd'),
      'pgd',
      checks={
        'metric': 'p_true',
        'higher_is_better': True,
        'main': 'pgd',
        'one_step': 'one_step',
        'noise': 'noise',
        'undefended': next(iter(config.arms)),
      },
    ),
    report=functools.partial(report.spec_of, config, task),
    claims=lambda: report.make_claims(config),
    artifacts=experiment.Artifacts(write_example),
    studies=(experiment.Study('the planes of the panels', functools.partial(report.keep, config)),),
  )


def make_source(config: ml_collections.ConfigDict) -> data.Source:
  """The points of the configuration's seed."""
  splits = moons.splits(config.data, seed=config.seed)
  return data.Source(**splits, info={'name': 'two_moons'})


def make_task(config: ml_collections.ConfigDict) -> types.Task:
  """p(positive) = sigmoid(logit) of a point, by the network of its replicate.

  Metrics: p_true, the probability of the true class (what is far away is no positive); accuracy on
  held-out points of the moons; tail and far, p(positive) of the held-out positives in the second
  half of their arc and of points far from both moons, nan for all others.
  """
  errors.lookup(dict.fromkeys(('mlp',)), config.model.name, kind='model')
  module = members.Classifier(config.data.replicates, tuple(config.model.widths))
  network = networks.bind(module, image_shape=(3,))
  bce = lambda outputs, batch: losses.binary_cross_entropy(
    outputs['logit'], batch['target']['label']
  )

  def metrics(outputs, batch):
    positive = jax.nn.sigmoid(outputs['logit'][:, 0])
    label, kind = batch['target']['label'][:, 0], batch['target']['kind']
    right = ((positive > 0.5) == (label > 0.5)).astype(jnp.float32)
    return {
      'p_true': jnp.where(label > 0.5, positive, 1 - positive),
      'accuracy': jnp.where(kind == moons.FAR, jnp.nan, right),
      'tail': jnp.where(kind == moons.TAIL, positive, jnp.nan),
      'far': jnp.where(kind == moons.FAR, positive, jnp.nan),
    }

  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=lambda outputs, batch: {'bce': bce(outputs, batch)},
    objectives={'bce': bce},
    metrics=metrics,
    image_shape=(3,),
    units='distance in the plane',
  )


def write_example(folder: pathlib.Path, image, example) -> None:
  """One attacked point as JSON."""
  x, y, replicate = (float(number) for number in image)
  point = {
    'x': x,
    'y': y,
    'replicate': int(replicate),
    'label': float(example['target']['label'][0]),
  }
  files.write_json(folder / f'{int(example["index"])}.json', point)

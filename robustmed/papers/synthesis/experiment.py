"""Synthesised attacks: Chen et al. 2019, 'Intelligent image synthesis to attack a segmentation CNN
using adversarial learning'."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from robustmed import data, errors, models, tasks, types
from robustmed.data.abdomen import ct_slices
from robustmed.models import nnunet_planner
from robustmed.papers.synthesis import arms as synthesis_arms
from robustmed.papers.synthesis import evaluation, report
from robustmed.runs import experiment, slice_examples

ORGANS = ct_slices.ORGANS
# Defenses that can train on losses that couple the examples of a batch.
COUPLING = ('adversarial', 'distillation', 'noise', 'standard')


def build(config: ml_collections.ConfigDict) -> experiment.Experiment:
  """The experiment of a configuration of configs/synthesis.py; touches no data."""
  build_task = functools.cache(lambda fields: make_task(config, dict(fields)))
  own_task = lambda fields: build_task(tuple(sorted(fields.items())))
  task = own_task({})
  arms = experiment.make_arms(task, read(config), make_task=own_task)
  model = synthesis_arms.make_model(config)
  arms |= synthesis_arms.make(config, task, arms, model)
  task_of = lambda arm: arms[arm].network.task or task
  slices = functools.cache(lambda: sum(data.depths(source_config(config))))
  return experiment.Experiment(
    task=task,
    arms=arms,
    data=experiment.Data(
      sizes=functools.cache(lambda: data.sizes(source_config(config))),
      load=lambda: data.load(source_config(config)),
      groups=lambda: data.groups(source_config(config)),
      shapes=lambda: data.shapes(source_config(config)),
    ),
    grid=experiment.Grid(
      experiment.make_probes(task, config, main='pgd'),
      'pgd',
      checks={
        'metric': 'DICE',
        'higher_is_better': True,
        'main': 'pgd',
        'one_step': 'one_step',
        'noise': 'noise',
        'undefended': config.synthesis.target,
      },
    ),
    report=lambda folder: report.spec_of(config, task, folder),
    claims=lambda: report.make_claims(config),
    artifacts=experiment.Artifacts(slice_examples.write_example, slice_examples.pictures),
    studies=(
      experiment.Study(
        'generators',
        functools.partial(evaluation.evaluate, config),
        functools.partial(evaluation.study_cells, config, slices, model, task_of),
      ),
    ),
  )


def read(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the configuration with config.reading applied to its arms."""
  config = experiment.editable(config)
  for arm in config.arms.values():
    network = arm.get('model', {}).get('name', config.model.name)
    if network == 'unet' and arm.defense.name in COUPLING:
      arm.defense.coupled = config.reading.loss == 'ce_dice'
  return config


def make_task(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> types.Task:
  """A segmenter of four organs: the standard U-Net or nnU-Net's, on images of config.data.side.

  The U-Net trains on cross-entropy alone if config.reading.loss is 'ce', on cross-entropy and Dice
  of the batch if it is 'ce_dice'; nnU-Net on cross-entropy and Dice of each slice. The Dice of an
  organ that is absent from truth and prediction is nan.
  """
  options = {**config.model.to_dict(), **fields}
  make = errors.lookup(models.MODELS, options['name'], kind='model')
  dtype = errors.lookup(
    {'float32': None, 'bfloat16': jnp.bfloat16}, options['dtype'], kind='model dtype'
  )
  side = config.data.side
  own = {'num_classes': len(ORGANS) + 1, 'channels': 1, 'width': options['width'], 'dtype': dtype}
  if options['name'] == 'nnunet':
    own['strides'] = nnunet_planner.poolings((side, side))
  elif options['name'] == 'unet':
    own['poolings'] = options['poolings']
  else:
    raise errors.UserError(f'model {options["name"]!r} is no segmenter here; use unet or nnunet')
  task = tasks.TASKS['segmentation'](make(**own), image_shape=(side, side, 1), classes=ORGANS)
  cross_entropy = lambda outputs, batch: {'ce': task.objectives['ce'](outputs, batch)}
  known = {'ce': task._replace(losses=cross_entropy, coupled=None), 'ce_dice': task}
  chosen = errors.lookup(known, config.reading.loss, kind='loss of the U-Net')
  if options['name'] == 'unet':
    task = chosen
  return task._replace(metrics=_metrics(task.metrics))


def _metrics(inner):
  def metrics(outputs, batch):
    found = dict(inner(outputs, batch))
    there = lambda k: sum(found[f'_{kind}{k}'] for kind in ('tp', 'fp', 'fn')) > 0
    known = jnp.stack([there(k) for k in range(1, len(ORGANS) + 1)])
    scores = jnp.stack([found[f'DICE_{organ}'] for organ in ORGANS])
    for place, organ in enumerate(ORGANS):
      found[f'DICE_{organ}'] = jnp.where(known[place], scores[place], jnp.nan)
    count = known.sum(0)
    mean = jnp.where(known, scores, 0).sum(0) / jnp.maximum(count, 1)
    # No organ in truth or prediction: a perfect score.
    return {**found, 'DICE': jnp.where(count > 0, mean, 1.0)}

  return metrics


def source_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of config.data that the chosen source knows."""
  return data.source_config(config.data.to_dict())

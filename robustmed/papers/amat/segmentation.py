"""AMAT for segmentation: nnU-Net 2D on slices of the Medical Segmentation Decathlon."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
import numpy as np
import pandas as pd

from robustmed import data, errors, tasks, types
from robustmed.data import pipeline, store
from robustmed.data.decathlon import msd, nnunet_augment
from robustmed.evaluation import grid, stored_tables, trials
from robustmed.metrics import surface
from robustmed.models import nnunet_planner
from robustmed.papers.amat import claims, parts
from robustmed.process import files, parallel
from robustmed.report import spec
from robustmed.runs import costs, experiment, slice_examples

METRIC, HIGHER_IS_BETTER = 'DICE', True
CRITERIA = {
  'loss': parts.Criterion(('total',), strata=True),
  # The authors test the best class's, against the mean over classes and complete slices.
  'dice': parts.Criterion(('_DICE_max',), 'Dice', stratum=-1, clean_terms=('DICE',)),
}
VOLUMES, PARTS = 'volumes.csv', 'volume_parts'
CLASSES = {
  'heart': ('left_atrium',),
  'hippocampus': ('anterior', 'posterior'),
  'prostate': ('peripheral', 'transition'),
}
COUPLED = (
  'batch_dice',
  ('standard', 'adversarial'),
)  # the reading, and the defenses it makes coupled
write_example, pictures = slice_examples.write_example, slice_examples.pictures
_STRATA = 'V, its threshold and the test are taken among slices that show the same classes.'
_EVERY_SLICE = 'V is that of all training slices, with one threshold.'
_COMPLETE = (
  'V is the mean Dice of the classes, of the training slices that show every class, with one '
  'threshold for the Dice of the best class of all slices. An empty slice has a Dice of 0, so its '
  'margin never grows.'
)
PANELS = (spec.Panel(METRIC, 'pgd', True, 'ADI (mean Dice of slices)', (0.0, 1.0)),)


def make_task(config: ml_collections.ConfigDict) -> types.Task:
  """nnU-Net on images of config.data.patch, with the poolings of nnU-Net's planner."""
  known = errors.lookup(msd.TASKS, config.data.task, kind='task')
  patch = tuple(config.data.patch)
  strides = nnunet_planner.poolings(patch)
  classes = CLASSES[config.data.task]
  module = parts.module(
    config, num_classes=len(classes) + 1, channels=known.modalities, strides=strides
  )
  return tasks.TASKS['segmentation'](
    module, image_shape=(*patch, known.modalities), classes=classes
  )


def load(config: ml_collections.ConfigDict, *fold: int) -> data.Source:
  return data.load(parts.source_config(config, *fold))


def shapes(config: ml_collections.ConfigDict, fields: Mapping[str, Any]) -> data.Shapes:
  """The shapes of examples of the source with these fields."""
  del config
  return data.shapes(fields)


def make_augment(config: ml_collections.ConfigDict):
  """source -> nnU-Net's augmentation on the device; one function for all arms."""
  made = []

  def build(source):
    del source
    if not made:
      patch = tuple(config.data.patch)
      angle = config.augment.max_angle
      if angle is None:
        angle = 180.0 if max(patch) / min(patch) < nnunet_planner.WIDE_ASPECT else 15.0
      made.append(
        nnunet_augment.make(
          patch=patch,
          num_classes=len(CLASSES[config.data.task]) + 1,
          max_angle=angle,
          mask_outside=config.data.task == 'heart',
          probabilities={'mirror': config.augment.mirror},
        )
      )
    return made[0]

  return build


def saying(config: ml_collections.ConfigDict) -> claims.Saying:
  better_clean = 'std' if config.data.task == 'prostate' else ''
  return claims.Saying(levels=True, better_clean=better_clean, volumes=True)


def notes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Notes of the report on losses and test examples."""
  batch = 'summed over the batch (stock nnU-Net, coupled)'
  kind = parts.criterion(config, CRITERIA)
  return (
    _STRATA if kind.strata else _EVERY_SLICE if kind.stratum is None else _COMPLETE,
    f'Training loss of STD and SAT: Dice {batch if config.reading.batch_dice else "per slice"}; '
    'of AMAT: Dice per slice. Attacks always ascend the loss of each slice alone, deep supervision '
    'on.',
    f'Test slices: {config.data.get("slices", "all")}, one centred patch each, no repeats.',
  )


def sections(page) -> tuple[spec.Section, ...]:
  del page
  return ()


def published(config: ml_collections.ConfigDict) -> None:
  del config  # the paper has figures only


# Whole volumes ------------------------------------------------------------------------------


def studies(config: ml_collections.ConfigDict, attack) -> tuple[experiment.Study, ...]:
  """The study of whole test volumes: Dice, HD95 and NSD, clean and under `attack`."""
  run = functools.partial(evaluate, config)
  return (experiment.Study('whole volumes', run, functools.partial(volume_cells, config, attack)),)


def evaluate(config: ml_collections.ConfigDict, context, networks, rows: pd.DataFrame) -> None:
  """Writes results/volumes.csv: Dice, HD95 and NSD of whole test volumes, clean and under attack.

  All slices of a volume count, empty ones included; predictions are those on the centred patch of
  a slice, background elsewhere. All test volumes are evaluated clean, the first evaluate.volumes
  (of a network) under attack at evaluate.volume_eps.
  """
  del rows
  folder = context.results / PARTS
  tables = [
    stored_tables.Table(
      part_file(model.arm, model.trial),
      functools.partial(_volumes_of, config, context, model),
      f'whole volumes of arm {model.arm!r} ({model.trial.said})',
      model.arm,
    )
    for model in networks
  ]
  stored_tables.fill_missing('volumes', tables, folder=folder, stopper=context.stopper)
  if parallel.is_writer():
    stored = [pd.read_csv(files.opened(path)) for path in sorted(folder.glob('*.csv'))]
    with files.replacing(context.results / VOLUMES) as temporary:
      pd.concat(stored, ignore_index=True).to_csv(temporary, index=False)


def part_file(arm: str, trial: trials.Trial) -> str:
  return f'{arm}.{trial}.csv'


def volume_cells(
  config: ml_collections.ConfigDict,
  attack,
  arm: str,
  trial: trials.Trial,
  finished: Collection[str],
) -> dict[str, types.Cost]:
  """{file in results/: its cost} of a network's whole volumes."""
  del finished
  # Volumes are predicted one by one; their batches are padded to whole ones.
  size = config.evaluate.batch_size
  depths = data.depths(parts.source_config(config, *trial.fold))
  padded = [-(-depth // size) * size for depth in depths]
  clean, attacked = sum(padded), sum(padded[: config.evaluate.volumes])
  own = costs.attacked(attack, attacked)
  whole = own._replace(gradients=own.gradients + costs.scored(clean).gradients)
  return {f'{PARTS}/{part_file(arm, trial)}': whole}


def _volumes_of(config, context, model) -> pd.DataFrame:
  source, lines = context.source(*model.trial.fold), []
  evaluator, variables = model.evaluator or context.evaluator, model.load()
  groups = sorted(set(source.volumes.groups))
  attacked = groups[: config.evaluate.volumes]
  cells = ((grid.CLEAN, 0.0, groups), (context.exp.grid.main, config.evaluate.volume_eps, attacked))
  for attack, eps, wanted in cells:
    for group in wanted:
      chosen = store.Part(source.volumes, np.flatnonzero(np.equal(source.volumes.groups, group)))
      predicted = _predict(config, source, chosen, evaluator, variables, attack=attack, eps=eps)
      truth = np.stack([np.maximum(chosen[i]['labels'], 0) for i in range(len(chosen))])
      scores = _scores(predicted, truth, chosen[0]['spacing'], config)
      keys = {'arm': model.arm, **model.trial.columns}
      keys |= {'attack': attack, 'eps': eps, 'group': group}
      lines += [{**keys, **line} for line in scores]
  return pd.DataFrame(lines)


def _predict(config, source, chosen, evaluator, variables, *, attack, eps) -> np.ndarray:
  """Labels [slices, h, w] on the grid of the slices of one volume."""
  batches = pipeline.eval_batches(
    chosen,
    batch_size=max(1, config.evaluate.batch_size // parallel.process_count()),
    shard_index=parallel.process_index(),
    shard_count=parallel.process_count(),
    crop=source.crop,
  )
  found = []
  for batch in map(grid.device_batch, batches):
    images, _ = evaluator.attack(variables, batch, attack, eps)
    outputs = evaluator.score(variables, batch, images).outputs
    labels = np.argmax(np.asarray(outputs['head0']), axis=-1)
    table = {'labels': labels, 'index': np.asarray(batch['index']), 'mask': batch['mask']}
    table = parallel.gather_rows({name: np.asarray(column) for name, column in table.items()})
    found += [(i, cut) for i, cut, m in zip(table['index'], table['labels'], table['mask']) if m]
  cuts = [cut for _, cut in sorted(found, key=lambda pair: int(pair[0]))]
  shape = chosen[0]['labels'].shape
  return np.stack([_paste(cut, shape) for cut in cuts])


def _paste(cut: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """The centred patch pasted into its slice; the rest is background."""
  whole, into, out_of = np.zeros(shape, cut.dtype), [], []
  for size, patch in zip(shape, cut.shape, strict=True):
    first = (size - patch) // 2
    into.append(slice(max(first, 0), min(first + patch, size)))
    out_of.append(slice(max(-first, 0), min(size - first, patch)))
  whole[tuple(into)] = cut[tuple(out_of)]
  return whole


def _scores(predicted, truth, spacing, config):
  names = CLASSES[config.data.task]
  classes = range(1, len(names) + 1)
  surfaces = surface.per_class(
    predicted, truth, classes=classes, spacing=spacing, tolerance=config.evaluate.tolerance
  )
  for place, (label, name) in enumerate(zip(classes, names, strict=True)):
    ours, theirs = predicted == label, truth == label
    size = int(ours.sum() + theirs.sum())
    yield {
      'class': name,
      'Dice': 2 * int((ours & theirs).sum()) / size if size else 1.0,
      'HD95_mm': float(surfaces['HD95'][place]),
      'NSD': float(surfaces['NSD'][place]),
    }

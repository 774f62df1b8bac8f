"""What an arm whose defense waits for finished arms does before its training."""

import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from robustmed import errors, types
from robustmed.data import pipeline
from robustmed.defenses import amat, thresholds
from robustmed.evaluation import grid
from robustmed.process import console, files, parallel

PyTree = Any
View = Callable[[Any], Callable[[types.Batch], types.Batch]]


class Finished(NamedTuple):
  """What is there when an arm's training begins."""

  load: Callable[[str], PyTree]  # a finished arm -> its variables, of this seed
  source: Any
  config: ml_collections.ConfigDict
  seed: int
  folder: pathlib.Path  # of the arm's checkpoints, this seed's
  stopper: console.Stopper | None = None  # for what takes long before the training


def with_thresholds(
  task: types.Task,
  defense: Mapping[str, Any],
  *,
  make: Callable[..., types.Defense],
  arm: str,
  options: Mapping[str, Any],
  view: View | None = None,
) -> Callable[[Finished], types.Defense]:
  """`make(task, defense)` with 'thresholds' estimated from the network of `arm`.

  The values are those that the defense's own criterion will look at, by its own task's losses.
  They and xi are kept in thresholds.npz of the arm's folder, for the report and for a run that
  goes on; `options` are fields of `thresholds.estimate`.
  """
  known = inspect.signature(thresholds.estimate).parameters
  for name in options:
    errors.lookup(
      {field: None for field in known if field != 'values'}, name, kind='field of thresholds'
    )
  criterion = {name: defense[name] for name in ('criterion', 'terms') if name in defense}

  def prepare(finished: Finished) -> types.Defense:
    path = finished.folder / 'thresholds.npz'
    if not bool(parallel.broadcast_from_writer(np.array(path.exists()))):
      values = amat.term_values(
        task, criterion.get('terms'), criterion=criterion.get('criterion', 'loss')
      )
      index, found = clean_values(
        task,
        finished.load(arm),
        values,
        finished.source,
        batch_size=finished.config.evaluate.batch_size,
        view=view,
      )
      xi = thresholds.estimate(found, **options)
      if parallel.is_writer():
        with files.replacing(path) as temporary:
          np.savez_compressed(temporary, values=found, index=index, xi=xi, arm=arm)
      parallel.barrier('thresholds')
    xi = tuple(float(value) for value in _read(path))
    console.say(f'thresholds from {arm}: {", ".join(f"{value:.6g}" for value in xi)} ({path})')
    return make(task, {**defense, 'thresholds': xi})

  return prepare


def with_teacher(
  task: types.Task,
  defense: Mapping[str, Any],
  *,
  make: Callable[..., types.Defense],
  arm: str,
) -> Callable[[Finished], types.Defense]:
  """`make(task, defense)` with the finished network of `arm` as 'teacher'."""

  def prepare(finished: Finished) -> types.Defense:
    console.say(f'soft targets from {arm}')
    return make(task, {**defense, 'teacher': finished.load(arm)})

  return prepare


def clean_values(
  task: types.Task,
  variables: PyTree,
  values: Callable[..., jax.Array],
  source: Any,
  *,
  batch_size: int,
  view: View | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """(index [n], values [n, K] float64) of the training examples as they are, in inference mode.

  `view(source)` maps a batch to what is looked at: it may crop images and targets, and clear the
  mask of examples that do not count. None takes all, images larger than the network's from their
  centre (`centre_crop`).
  """
  seen = view(source) if view else lambda batch: centre_crop(batch, task.image_shape)

  def one_device(variables, batch):
    batch = seen(batch)
    batch = {**batch, 'clean': batch['image']}
    return values(task.predict(variables, batch['image']), batch), batch['mask']

  program = parallel.each_device(one_device, split=(1,), gathered=(True, True))
  batches = pipeline.eval_batches(
    source.train,
    batch_size=max(1, batch_size // parallel.host_count()),
    shard_index=parallel.host_index(),
    shard_count=parallel.host_count(),
    crop=source.crop,
  )
  parts = []
  for batch in map(grid.device_batch, batches):
    found, mask = program(variables, batch)
    table = {'values': found, 'mask': mask, 'index': batch['index']}
    parts.append(parallel.gather_rows({name: np.asarray(leaf) for name, leaf in table.items()}))
  table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  order = np.argsort(table['index'], kind='stable')
  order = order[table['mask'][order]]
  return table['index'][order], table['values'][order].astype(np.float64)


def centre_crop(batch: types.Batch, image_shape: tuple[int, ...]) -> types.Batch:
  """The batch with images, and targets on the same grid, cut to the centre of `image_shape`."""
  grid_shape, wanted = batch['image'].shape[1:-1], tuple(image_shape[:-1])
  if grid_shape == wanted:
    return batch
  if any(have < want for have, want in zip(grid_shape, wanted)):
    raise errors.UserError(f'images of {grid_shape} are smaller than the network wants: {wanted}')
  starts = [(have - want) // 2 for have, want in zip(grid_shape, wanted)]
  box = (slice(None), *(slice(start, start + want) for start, want in zip(starts, wanted)))
  cut = lambda leaf: leaf[box] if leaf.shape[1 : 1 + len(wanted)] == grid_shape else leaf
  return {**batch, 'image': cut(batch['image']), 'target': jax.tree.map(cut, batch['target'])}


def slots(defense: types.Defense, split) -> int:
  """How many examples the defense's memory must have room for: above every index of the split."""
  if not jax.tree.leaves(jax.eval_shape(lambda: defense.init(1))):
    return len(split)
  return 1 + int(np.max(split.stack('index')))


def _read(path: pathlib.Path) -> np.ndarray:
  stored = files.arrays(path)
  if 'xi' not in stored:
    raise errors.UserError(f'{path} is damaged (no xi in it); delete it to estimate it anew')
  return stored['xi']

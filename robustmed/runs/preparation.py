"""What is computed from finished arms before the training of an arm: thresholds and teachers."""

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
FIXED = 'fixed'  # the collection of what model fields decide, such as a gain of the logits
View = Callable[[Any], Callable[[types.Batch], types.Batch]]


class Finished(NamedTuple):
  """What the preparation of an arm can use."""

  load: Callable[[str], PyTree]  # a finished arm -> its variables, of this trial
  source: Any
  config: ml_collections.ConfigDict
  seed: int
  folder: pathlib.Path  # of the arm's checkpoints, this trial's
  stopper: console.Stopper | None = None  # to stop a long preparation


def with_thresholds(
  task: types.Task,
  defense: Mapping[str, Any],
  *,
  make: Callable[..., types.Defense],
  arm: str,
  options: Mapping[str, Any],
  view: View | None = None,
) -> Callable[[Finished], types.Defense]:
  """Returns finished -> `make(task, defense)` with 'thresholds' from the network of `arm`.

  Thresholds xi are estimated from the values of the defense's own criterion, computed with the
  losses of `task`. Both are saved in thresholds.npz of the arm's folder, for the report and for a
  resumed run. `options` are fields of `thresholds.estimate`.
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
      index, group, found = clean_values(
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
          np.savez_compressed(temporary, values=found, index=index, group=group, xi=xi, arm=arm)
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
  """Returns finished -> `make(task, defense)` with the network of `arm` as 'teacher'."""

  def prepare(finished: Finished) -> types.Defense:
    console.say(f'soft targets from {arm}')
    return make(task, {**defense, 'teacher': finished.load(arm)})

  return prepare


def as_copy(arm: str) -> Callable[[Finished], Callable[[PyTree], PyTree]]:
  """What `Arm.start` is of a network that is that of `arm`, but for what its model fields fix."""

  def start(finished: Finished) -> Callable[[PyTree], PyTree]:
    console.say(f'the network of {arm} is taken as it is, without training')
    trained = finished.load(arm)
    return lambda own: {**trained, **{name: own[name] for name in own if name == FIXED}}

  return start


def clean_values(
  task: types.Task,
  variables: PyTree,
  values: Callable[..., jax.Array],
  source: Any,
  *,
  batch_size: int,
  view: View | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(index [n], group [n], values [n, K] float64) of the training examples, in inference mode.

  `view(source)` is a function of a batch that may crop images and targets, and clear the mask of
  examples to leave out. None keeps all examples and crops images larger than the network's input
  at their centre (`centre_crop`).
  """
  preprocess = view(source) if view else lambda batch: centre_crop(batch, task.image_shape)

  def one_device(variables, batch):
    batch = preprocess(batch)
    batch = {**batch, 'clean': batch['image']}
    return values(task.predict(variables, batch['image']), batch), batch['mask']

  program = parallel.each_device(one_device, split=(1,), gathered=(True, True))
  batches = pipeline.eval_batches(
    source.train,
    batch_size=max(1, batch_size // parallel.process_count()),
    shard_index=parallel.process_index(),
    shard_count=parallel.process_count(),
    crop=source.crop,
  )
  parts = []
  for batch in map(grid.device_batch, batches):
    found, mask = program(variables, batch)
    table = {'values': found, 'mask': mask, 'index': batch['index'], 'group': batch['group']}
    parts.append(parallel.gather_rows({name: np.asarray(leaf) for name, leaf in table.items()}))
  table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  order = np.argsort(table['index'], kind='stable')
  order = order[table['mask'][order]]
  return table['index'][order], table['group'][order], table['values'][order].astype(np.float64)


def centre_crop(batch: types.Batch, image_shape: tuple[int, ...]) -> types.Batch:
  """The batch with images, and targets on the same grid, cropped at the centre to `image_shape`."""
  grid_shape, wanted = batch['image'].shape[1:-1], tuple(image_shape[:-1])
  if grid_shape == wanted:
    return batch
  if any(have < want for have, want in zip(grid_shape, wanted)):
    raise errors.UserError(f"images of {grid_shape} are smaller than the network's input {wanted}")
  starts = [(have - want) // 2 for have, want in zip(grid_shape, wanted)]
  box = (slice(None), *(slice(start, start + want) for start, want in zip(starts, wanted)))
  cut = lambda leaf: leaf[box] if leaf.shape[1 : 1 + len(wanted)] == grid_shape else leaf
  return {**batch, 'image': cut(batch['image']), 'target': jax.tree.map(cut, batch['target'])}


def memory_slots(defense: types.Defense, split) -> int:
  """`num_examples` for `defense.init`: if it keeps memory, more than every index of the split."""
  if not jax.tree.leaves(jax.eval_shape(lambda: defense.init(1))):
    return len(split)
  return 1 + int(np.max(split.stack('index')))


def _read(path: pathlib.Path) -> np.ndarray:
  stored = files.read_arrays(path)
  if 'xi' not in stored:
    raise errors.UserError(f'{path} is damaged (it has no array xi); delete it and run again')
  return stored['xi']

"""What is computed from finished arms before the training of an arm: thresholds and teachers."""

import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from robustmed import errors, types
from robustmed.data import pipeline, store
from robustmed.defenses import amat, thresholds
from robustmed.evaluation import grid
from robustmed.process import console, files, parallel

PyTree = Any
FIXED = 'fixed'  # the collection of what model fields decide, such as a gain of the logits


class Finished(NamedTuple):
  """What the preparation of an arm can use."""

  load: Callable[[str], PyTree]  # a finished arm -> its variables, of this trial
  source: Any
  config: ml_collections.ConfigDict
  seed: int
  # of the arm's checkpoints, this trial's; None: only shapes are wanted and nothing is computed
  folder: pathlib.Path | None
  stopper: console.Stopper | None = None  # to stop a long preparation


class CleanValues(NamedTuple):
  """Values of the criterion on training examples, rows in the order of `index`."""

  index: np.ndarray  # [n]
  group: np.ndarray  # [n]
  stratum: np.ndarray  # [n], 0 where the task has no strata
  values: np.ndarray  # [n, K] float64


def with_thresholds(
  task: types.Task,
  defense: Mapping[str, Any],
  *,
  make: Callable[..., types.Defense],
  arm: str,
  options: Mapping[str, Any],
) -> Callable[[Finished], types.Defense]:
  """Returns finished -> `make(task, defense)` with 'thresholds' from the network of `arm`.

  Thresholds xi are estimated from the values of the defense's own criterion, computed with the
  losses of `task`. Both are saved in thresholds.npz of the arm's folder, for the report and for a
  resumed run. `options` are fields of `thresholds.estimate` and
    stratum: the place of the one stratum of the task that thresholds are estimated from, for all
      examples; a defense with 'strata' gets a row of thresholds for each stratum, and without
      either all examples give one row
    terms: the names of the values that thresholds are estimated from, in place of the defense's
      own, to which they are applied in this order
  """
  known = {**inspect.signature(thresholds.estimate).parameters, 'stratum': None, 'terms': None}
  del known['values']
  for name in options:
    errors.lookup(known, name, kind='field of thresholds')
  options = dict(options)
  only, within = options.pop('stratum', None), bool(defense.get('strata', False))
  names = task.strata.names if task.strata else ()
  if (within or only is not None) and not names:
    raise errors.UserError('thresholds by strata: this task has no strata')
  if only is not None and (within or not -len(names) <= only < len(names)):
    raise errors.UserError(
      f'thresholds of stratum {only}: '
      + ('the defense has strata; leave one out' if within else f'there are {len(names)} strata')
    )
  own, criterion = defense.get('terms'), defense.get('criterion', 'loss')
  terms = options.pop('terms', own)
  if own is not None and len(terms) != len(own):
    raise errors.UserError(
      f'thresholds of {len(terms)} values do not fit the {len(own)} terms of the defense'
    )

  def prepare(finished: Finished) -> types.Defense:
    if finished.folder is None:
      number = _num_values(task, amat.term_values(task, terms, criterion=criterion), finished)
      return make(task, {**defense, 'thresholds': np.zeros((*within * (len(names),), number))})
    path = finished.folder / 'thresholds.npz'
    if not bool(parallel.broadcast_from_writer(np.array(path.exists()))):
      values = amat.term_values(task, terms, criterion=criterion)
      found = clean_values(
        task,
        finished.load(arm),
        values,
        finished.source,
        batch_size=finished.config.evaluate.batch_size,
      )
      found, xi = _estimated(found, names, only=only, within=within, options=options)
      if parallel.is_writer():
        with files.replacing(path) as temporary:
          np.savez_compressed(temporary, **found._asdict(), xi=xi, arm=arm)
      parallel.barrier('thresholds')
    xi = _read(path, strata=len(names) if within else 0)
    shown = lambda row: ', '.join(f'{value:.6g}' for value in row)
    rows = [f'{name}: {shown(row)}' for name, row in zip(names, xi)] if within else [shown(xi)]
    console.say(f'thresholds from {arm}: {"; ".join(rows)} ({path})')
    return make(task, {**defense, 'thresholds': xi.tolist()})

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
    if finished.folder is not None:
      console.say(f'soft targets from {arm}')
    return make(task, {**defense, 'teacher': finished.load(arm)})

  return prepare


def check_same_model(name, model, teacher, config):
  """Raises a `UserError` unless arm `name`, of these model fields, has the teacher's network."""
  other = errors.lookup(config.arms, teacher, kind=f'arm (teacher of {name!r})')
  theirs, base = other.to_dict().get('model', {}), config.model.to_dict()
  for field in sorted({*model, *theirs}):
    ours, its = ({**base, **fields}.get(field) for fields in (model, theirs))
    if ours != its:
      raise errors.UserError(
        f'arm {name!r} has model.{field}={ours}, its teacher {teacher!r} has {its}; make them equal'
      )


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
) -> CleanValues:
  """Returns the values of all training examples, in inference mode.

  Images larger than the network's input are cropped at their centre (`centre_crop`); an example's
  stratum is that of what is left.
  """

  def one_device(variables, batch):
    batch = centre_crop(batch, task.image_shape)
    batch = {**batch, 'clean': batch['image']}
    stratum = task.strata.of(batch) if task.strata else jnp.zeros_like(batch['index'])
    return values(task.predict(variables, batch['image']), batch), stratum

  program = parallel.each_device(one_device, split=(1,), gathered=(True, True))
  # Batches are padded to their size, so one larger than the set would waste work.
  hosts = parallel.process_count()
  batches = pipeline.eval_batches(
    source.train,
    batch_size=max(1, min(batch_size // hosts, -(-len(source.train) // hosts))),
    shard_index=parallel.process_index(),
    shard_count=hosts,
    crop=source.crop,
  )
  parts = []
  for batch in map(grid.device_batch, batches):
    found, stratum = program(variables, batch)
    table = {'values': found, 'stratum': stratum}
    table |= {name: batch[name] for name in ('mask', 'index', 'group')}
    parts.append(parallel.gather_rows({name: np.asarray(leaf) for name, leaf in table.items()}))
  table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  order = np.argsort(table['index'], kind='stable')
  order = order[table['mask'][order]]
  found = CleanValues(**{name: table[name][order] for name in CleanValues._fields})
  return found._replace(values=found.values.astype(np.float64))


def _num_values(task, values, finished) -> int:
  """The number of values of an example, from shapes alone."""
  (batch,) = pipeline.eval_batches(
    store.Part(finished.source.train, [0]), batch_size=1, shard_index=0, shard_count=1
  )

  def found(variables):
    seen = centre_crop(batch, task.image_shape)
    return values(task.predict(variables, seen['image']), {**seen, 'clean': seen['image']})

  return jax.eval_shape(found, jax.eval_shape(task.init, jax.random.key(0))).shape[-1]


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


def _estimated(found, names, *, only, within, options):
  """Returns the values that thresholds are estimated from, with their strata, and xi."""
  if within:
    return found, thresholds.within(found.values, found.stratum, number=len(names), **options)
  if only is None:
    found = found._replace(stratum=np.zeros_like(found.stratum))
    return found, thresholds.estimate(found.values, **options)
  kept = found.stratum == only % len(names)
  if not kept.any():
    raise errors.UserError(f'thresholds: no training example is of the stratum {names[only]!r}')
  found = CleanValues(*(column[kept] for column in found))
  return found, thresholds.estimate(found.values, **options)


def _read(path: pathlib.Path, *, strata: int) -> np.ndarray:
  """Returns xi [K], or [strata, K] if `strata` is above 0."""
  stored = files.read_arrays(path)
  if 'xi' not in stored:
    raise errors.UserError(f'{path} is damaged (it has no array xi); delete it and run again')
  xi = stored['xi']
  if xi.shape[:-1] != ((strata,) if strata else ()):
    raise errors.UserError(
      f'{path} has thresholds of shape {xi.shape}, '
      f'{f"not a row for each of {strata} strata" if strata else "not one row"}; it is of another '
      'configuration or version: delete it and run again'
    )
  return xi

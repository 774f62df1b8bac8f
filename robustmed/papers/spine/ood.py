"""Attacks from outside the distribution: an image from elsewhere gets the outputs of an example.

For every test example the network's own outputs are wanted on an image that is none of its kind.
Rows look like those of the grid, so that the same statistics serve them. Their `attack` is

* `ind`: the test image itself, the detector's negatives;
* `start.<name>`: the unattacked image from elsewhere;
* the name of a `Setting`: that image attacked, at its L2 budget `eps`.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import attacks, types
from robustmed.evaluation import grid, stored_tables
from robustmed.metrics import detection
from robustmed.process import console, files, parallel

PyTree = Any
IND, START = 'ind', 'start.'


class Setting(NamedTuple):
  """One attack: from the images `start`, within `eps`, down the objective `mismatch`."""

  attack: types.Attack
  eps: float
  mismatch: str
  start: str


class Target(NamedTuple):
  """What a task says about the outputs to be reproduced; b examples.

  own: outputs -> wanted. agreement: (outputs, wanted) -> {name: [b]}. score: (outputs, image) ->
  [b], the detector's. mismatches: name -> (outputs, wanted, image) -> [b]. change: (image - start,
  batch) -> {name: [b]}, what can be seen in an attack.
  """

  own: Callable[..., PyTree]
  agreement: Callable[..., Mapping[str, jax.Array]]
  score: Callable[..., jax.Array]
  mismatches: Mapping[str, Callable[..., jax.Array]]
  change: Callable[..., Mapping[str, jax.Array]]


class Evaluator:
  """The compiled programs of one task: one that scores, and one per setting."""

  def __init__(self, task: types.Task, target: Target, settings: Mapping[str, Setting], *, key):
    self.settings = dict(settings)
    self._key = key
    self._attack = {name: attack_program(task, target, s) for name, s in settings.items()}
    self._score = score_program(task, target)

  def attack(self, variables: PyTree, batch, start, name: str):
    """(attacked images, their distance from `start` [b])."""
    if name not in self.settings:
      return start, np.zeros(len(start), np.float32)
    key = jax.random.fold_in(self._key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
    eps = jnp.float32(self.settings[name].eps)
    return self._attack[name](variables, batch, start, eps, key)

  def score(self, variables: PyTree, batch, start, images) -> grid.Scores:
    """What `images` make the network say, compared with what it says of the batch's own."""
    return grid.Scores(*self._score(variables, batch, start, images))


def attack_program(task: types.Task, target: Target, setting: Setting):
  """(variables, batch, start, eps, key) -> (attacked images, distances)."""
  loss = target.mismatches[setting.mismatch]

  def one_device(variables, batch, start, eps, key):
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])
    wanted = target.own(task.predict(variables, batch['image']))
    predict = lambda image: (task.predict(variables, image), image)
    compare = lambda seen, wanted: loss(seen[0], wanted, seen[1])
    result = setting.attack(attacks.mismatch(predict, wanted, compare), start, eps=eps, key=keys)
    return result.x, result.distance

  return parallel.each_device(one_device, split=(1, 2), gathered=(True, True))


def score_program(task: types.Task, target: Target):
  """(variables, batch, start, images) -> (columns, outputs on `images`)."""

  def one_device(variables, batch, start, images):
    wanted = target.own(task.predict(variables, batch['image']))
    outputs = task.predict(variables, images)
    columns = {
      **target.agreement(outputs, wanted),
      **target.change(images - start, batch),
      'score': target.score(outputs, images),
    }
    return columns, {'outputs': outputs, 'wanted': wanted}

  return parallel.each_device(one_device, split=(1, 2, 3), gathered=(True, True))


class Model(NamedTuple):
  """A network and the settings that it meets."""

  model: grid.Model
  evaluator: Evaluator
  settings: tuple[str, ...]


def cells(models: Sequence[Model]) -> list[tuple[Model, grid.Cell, str]]:
  """(model, cell, name of the start images), network by network, unattacked images first."""
  out = []
  for one in models:
    used = {name: one.evaluator.settings[name] for name in one.settings}
    names = dict.fromkeys(setting.start for setting in used.values())
    cell = lambda attack, eps, one=one: grid.Cell(one.model.arm, one.model.trial, attack, eps)
    out.append((one, cell(IND, 0.0), ''))
    out += [(one, cell(START + name, 0.0), name) for name in names]
    out += [(one, cell(name, setting.eps), setting.start) for name, setting in used.items()]
  return out


def run(
  models: Sequence[Model],
  *,
  batches: grid.Batches,
  starts: Mapping[str, np.ndarray],
  folder,
  stopper: console.Stopper,
) -> pd.DataFrame:
  """Every cell's rows; a finished cell is one file in `folder` and is not done again.

  starts: name -> images [n, ...]; an example with index i begins at image i mod n.
  """
  load = grid.loader()

  def make(one, cell, start):
    variables = load(one.model)
    images = starts[start] if start else None
    return _cell_rows(one.evaluator, variables, batches, cell, images)

  pieces = [grid.cell_table(part[1], functools.partial(make, *part)) for part in cells(models)]
  stored_tables.fill_missing('ood', pieces, folder=folder, stopper=stopper)
  return gather(models, folder=folder)


def finished(models: Sequence[Model], *, folder) -> list[Model]:
  """Those of the networks all of whose cells are in `folder`, the same ones on every host."""
  whole = [all((folder / cell.file).is_file() for _, cell, _ in cells([one])) for one in models]
  return [
    one for one, there in zip(models, parallel.broadcast_from_writer(np.array(whole))) if there
  ]


def gather(models: Sequence[Model], *, folder) -> pd.DataFrame:
  """The rows of finished networks, sorted."""
  rows = pd.concat(
    [files.read_with(folder / cell.file, pd.read_parquet) for _, cell, _ in cells(models)]
  )
  return rows.sort_values(['arm', 'seed', 'attack', 'eps', 'index'], ignore_index=True)


def attacked(one: Model, *, batches: grid.Batches, start: np.ndarray, name: str) -> Iterator[dict]:
  """Batches of what a picture needs: image, start, attacked, target, outputs and wanted."""
  variables = one.model.load()
  for batch in map(grid.device_batch, batches()):
    begin = start_of(batch, start)
    images, _ = one.evaluator.attack(variables, batch, begin, name)
    scores = one.evaluator.score(variables, batch, begin, images)
    held = {'start': begin, 'attacked': images, **scores.outputs, **scores.columns}
    keep = np.flatnonzero(batch['mask'])
    yield jax.tree.map(lambda leaf, k=keep: np.asarray(leaf)[k], {**batch, **held})


def start_of(batch: Mapping[str, Any], images: np.ndarray | None) -> np.ndarray:
  """The start image of every example; None means the example itself."""
  if images is None:
    return batch['image']
  return np.asarray(images)[np.asarray(batch['index']) % len(images)]


def chosen(batches: grid.Batches, wanted: Iterable[int], *, size: int) -> grid.Batches:
  """Only the examples whose index is `wanted`, in batches of at most `size`.

  On several hosts the batches stay as they are, so that all hosts have equally many, and the other
  examples are masked.
  """
  wanted = np.fromiter(wanted, np.int64)

  def one_host():
    rows = []
    for batch in batches():
      keep = np.flatnonzero(np.isin(batch['index'], wanted) & batch['mask'])
      named = {k: batch[k] for k in ('image', 'target', 'mask', 'index', 'group')}
      rows += [jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i : i + 1], named) for i in keep]
    for at in range(0, len(rows), size):
      part = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows[at : at + size])
      yield parallel.pad(part, min(size, len(rows)))

  def several_hosts():
    for batch in batches():
      yield {**batch, 'mask': np.asarray(batch['mask']) & np.isin(batch['index'], wanted)}

  return one_host if parallel.process_count() == 1 else several_hosts


def detectors(rows: pd.DataFrame) -> pd.DataFrame:
  """AUROC of the score for every arm, seed and kind of OOD image against that arm's own `ind`.

  Columns: arm, seed, attack, eps, auroc, low, high (`detection.clustered`; an OOD image belongs to
  the patient whose outputs it is to get), n. Arms without a score are left out.
  """
  lines = []
  for (arm, run_seed), part in rows.groupby(['arm', 'seed'], sort=True):
    part = part[np.isfinite(part['score'].astype(float))]
    negative = part[part['attack'] == IND]
    for (attack, eps), positive in part[part['attack'] != IND].groupby(['attack', 'eps']):
      found = detection.auroc_interval(
        negative['score'].to_numpy(),
        positive['score'].to_numpy(),
        negative_groups=negative['group'].to_numpy(),
        positive_groups=positive['group'].to_numpy(),
        shared=True,
      )
      lines.append((arm, run_seed, attack, eps, *found, len(positive)))
  return pd.DataFrame(lines, columns=['arm', 'seed', 'attack', 'eps', 'auroc', 'low', 'high', 'n'])


def _cell_rows(evaluator, variables, batches, cell, images) -> pd.DataFrame:
  tables = []
  for batch in map(grid.device_batch, batches()):
    start = start_of(batch, images)
    made, distance = evaluator.attack(variables, batch, start, cell.attack)
    columns = evaluator.score(variables, batch, start, made).columns
    keep = {name: batch[name] for name in ('mask', 'index', 'group')}
    tables.append(
      parallel.gather_rows(jax.tree.map(np.asarray, {**keep, '_distance': distance, **columns}))
    )
  table = pd.DataFrame({name: np.concatenate([t[name] for t in tables]) for name in tables[0]})
  table = table[table.pop('mask')].sort_values('index', kind='stable', ignore_index=True)
  keys = {'arm': cell.arm, **cell.trial.columns, 'attack': cell.attack, 'eps': cell.eps}
  for place, (name, value) in enumerate(keys.items()):
    table.insert(place, name, value)
  return table

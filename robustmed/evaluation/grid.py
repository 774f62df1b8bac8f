"""Arms x attacks x levels -> one row per example; every finished cell survives a kill."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import console, errors, files, parallel, types

PyTree = Any
Batches = Callable[[], Iterable[dict[str, Any]]]
KEYS = ('arm', 'attack', 'eps', 'index', 'seed', 'group')
CLEAN = 'none'


class Probe(NamedTuple):
  """One attack of the grid: what it does, what it maximises, how strongly."""

  attack: types.Attack
  objective: str
  levels: tuple[float, ...]


class Model(NamedTuple):
  """One trained network: `load` gives its variables when its first cell is due."""

  arm: str
  seed: int
  load: Callable[[], PyTree]


class Cell(NamedTuple):
  arm: str
  seed: int
  attack: str
  eps: float

  @property
  def file(self) -> str:
    return f'{self.arm}.seed{self.seed}.{self.attack}.{self.eps:g}.parquet'


class Evaluator:
  """The compiled programs of one task: one per attack whatever the number of arms and levels."""

  def __init__(self, task: types.Task, probes: Mapping[str, Probe], *, key: jax.Array, main: str):
    self._task = task
    self._key = key
    self.probes = dict(probes)
    self._programs = {name: attack_program(task, probe) for name, probe in probes.items()}
    objectives = {probe.objective for probe in probes.values()}
    self._clean = clean_program(task, sorted(objectives), main=probes[main].objective)

  def __call__(self, variables: PyTree, batch: dict[str, Any], attack: str, eps: float):
    """(columns {name: [b]}, attacked images [b, ...]) of one host batch."""
    if attack == CLEAN:
      return self._clean(variables, batch), batch['image']
    key = jax.random.fold_in(self._key, zlib.crc32(attack.encode()) & 0x7FFFFFFF)
    return self._programs[attack](variables, batch, jnp.float32(eps), key)


def clean_program(task: types.Task, objectives: Sequence[str], *, main: str):
  """(variables, batch) -> metrics, diagnostics and every objective of the undisturbed images.

  The objectives' columns are `_value.<name>`; `_zero_grad` is about the gradient of `main`.
  """

  def one_device(variables, batch):
    batch = {**batch, 'clean': batch['image']}

    def scored(image):
      outputs = task.predict(variables, image)
      seen = {**batch, 'image': image}
      values = {name: task.objectives[name](outputs, seen) for name in objectives}
      return jnp.sum(values[main]), (values, outputs)

    gradient, (values, outputs) = jax.grad(scored, has_aux=True)(batch['image'])
    zero = jnp.mean((gradient == 0).astype(jnp.float32), axis=tuple(range(1, gradient.ndim)))
    return {
      **task.metrics(outputs, batch),
      **task.diagnostics(outputs),
      **{f'_value.{name}': value for name, value in values.items()},
      '_value': values[main],
      '_distance': jnp.zeros_like(zero),
      '_zero_grad': zero,
    }

  return parallel.each_device(one_device, split=(1,))


def attack_program(task: types.Task, probe: Probe):
  """(variables, batch, eps, key) -> (columns, attacked images); eps and key are traced."""
  objective = errors.lookup(task.objectives, probe.objective, kind='objective')

  def one_device(variables, batch, eps, key):
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])
    score = lambda image: objective(task.predict(variables, image), {**batch, 'image': image})
    result = probe.attack(score, batch['image'], eps=eps, key=keys)
    outputs = task.predict(variables, result.x)
    seen = {**batch, 'image': result.x, 'clean': batch['image']}
    columns = {
      **task.metrics(outputs, seen),
      **task.diagnostics(outputs),
      '_value': objective(outputs, seen),
      '_distance': result.distance,
    }
    return columns, result.x

  return parallel.each_device(one_device, split=(1,), gathered=(True, True))


def cells(models: Sequence[Model], probes: Mapping[str, Probe]) -> list[tuple[Model, Cell]]:
  """The whole grid, arm by arm so that each network is loaded once; the clean cell comes first."""
  out = []
  for model in models:
    out.append((model, Cell(model.arm, model.seed, CLEAN, 0.0)))
    for name, probe in probes.items():
      out += [
        (model, Cell(model.arm, model.seed, name, eps)) for eps in sorted(probe.levels) if eps > 0
      ]
  return out


def run(
  evaluator: Evaluator,
  models: Sequence[Model],
  *,
  batches: Batches,
  folder,
  stopper: console.Stopper,
) -> pd.DataFrame:
  """Fills the grid and returns all rows, sorted; cells found in `folder` are not done again.

  A cell is one file, written whole or not at all, and depends on nothing but its network, its data
  and the evaluator's key; so an interrupted run ends with the rows of an undisturbed one.
  """
  grid = cells(models, evaluator.probes)
  found = parallel.from_writer(np.array([(folder / cell.file).is_file() for _, cell in grid]))
  progress = console.Progress('evaluate', len(grid), done=int(found.sum()))
  stored = _in_memory(batches) if not found.all() else None
  variables, loaded = None, None
  for number, ((model, cell), have) in enumerate(zip(grid, found)):
    if have:
      continue
    if stopper.requested():
      progress.close()
      console.say('stopped in evaluation; the same command goes on from there')
      raise console.Stopped
    if loaded != (model.arm, model.seed):
      variables, loaded = model.load(), (model.arm, model.seed)
    table = _cell_rows(evaluator, variables, stored, cell)
    if parallel.is_writer():
      with files.replacing(folder / cell.file) as temporary:
        table.to_parquet(temporary, index=False)
    progress.update(number + 1, f'{cell.arm} {cell.attack} {cell.eps:g}')
  progress.close()
  parallel.barrier('evaluation')
  return collect(folder, [cell for _, cell in grid], evaluator.probes)


def collect(folder, wanted: Sequence[Cell], probes: Mapping[str, Probe]) -> pd.DataFrame:
  """The rows of all cells; `_start` is each attack's objective at the clean image."""
  rows = pd.concat([pd.read_parquet(folder / cell.file) for cell in wanted], ignore_index=True)
  rows['_start'] = rows['_value']
  clean = rows[rows['attack'] == CLEAN].set_index(['arm', 'seed', 'index'])
  for name, probe in probes.items():
    here = rows['attack'] == name
    places = pd.MultiIndex.from_frame(rows.loc[here, ['arm', 'seed', 'index']])
    rows.loc[here, '_start'] = clean[f'_value.{probe.objective}'].reindex(places).to_numpy()
  rows = rows[[name for name in rows.columns if not name.startswith('_value.')]]
  rows = rows.sort_values(['arm', 'seed', 'attack', 'eps', 'index'], kind='stable')
  names = [*KEYS, *[name for name in rows.columns if name not in KEYS]]
  return rows[names].reset_index(drop=True)


def _in_memory(batches: Batches) -> list[dict[str, Any]]:
  return [dict(batch) for batch in batches()]


def _cell_rows(evaluator, variables, batches, cell) -> pd.DataFrame:
  # All batches are dispatched before the first result is read.
  pending = [(b, evaluator(variables, device_batch(b), cell.attack, cell.eps)[0]) for b in batches]
  tables = []
  for batch, columns in pending:
    keep = {name: np.asarray(batch[name]) for name in ('mask', 'index', 'group')}
    columns = {name: np.asarray(column) for name, column in columns.items()}
    tables.append(parallel.gather_rows({**keep, **columns}))
  table = pd.DataFrame({name: np.concatenate([t[name] for t in tables]) for name in tables[0]})
  table = table[table.pop('mask')]
  table.insert(0, 'arm', cell.arm)
  table.insert(1, 'attack', cell.attack)
  table.insert(2, 'eps', float(cell.eps))
  table.insert(3, 'seed', cell.seed)
  return table.sort_values('index', kind='stable').reset_index(drop=True)


def device_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
  """The batch padded to a multiple of the devices; names and other host-only fields dropped."""
  wanted = {k: batch[k] for k in ('image', 'target', 'mask', 'index', 'group')}
  return parallel.pad(wanted, parallel.round_up(len(batch['mask'])))


def attacked_examples(
  evaluator: Evaluator, variables: PyTree, batches: Batches, *, attack: str, eps: float, wanted
) -> Iterator[tuple[dict[str, Any], np.ndarray, dict[str, np.ndarray]]]:
  """(example, attacked image, columns) of the examples whose index is in `wanted`, in data order.

  The attack on an example does not depend on its batch, so this repeats what the grid saw.
  """
  wanted = {int(index) for index in wanted}
  for batch in batches():
    places = [
      i
      for i, (index, valid) in enumerate(zip(batch['index'], batch['mask']))
      if valid and int(index) in wanted
    ]
    if not places:
      continue
    columns, images = evaluator(variables, device_batch(batch), attack, eps)
    images = np.asarray(images)
    for i in places:
      example = jax.tree.map(lambda leaf: np.asarray(leaf)[i], dict(batch))  # noqa: B023
      yield example, images[i], {name: np.asarray(c)[i] for name, c in columns.items()}

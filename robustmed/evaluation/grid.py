"""Arms x attacks x levels -> one row per example; every finished cell survives a kill."""

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import errors, types
from robustmed.ops import contracts
from robustmed.process import console, files, parallel

PyTree = Any
Batches = Callable[[], Iterable[dict[str, Any]]]
KEYS = ('arm', 'attack', 'eps', 'index', 'seed', 'group')
CLEAN = 'none'


class Probe(NamedTuple):
  """One attack of the grid: what it does, what it maximises, how strongly.

  With `source` the images attack that arm's network (of the same seed) and all others meet them.
  """

  attack: types.Attack
  objective: str
  levels: tuple[float, ...]
  source: str = ''


class Model(NamedTuple):
  """One trained network: `load` gives its variables when its first cell is due.

  `evaluator` replaces that of the run where the network is not one of the run's own task;
  `attacks` are the probes it meets, None all of them.
  """

  arm: str
  seed: int
  load: Callable[[], PyTree]
  evaluator: Any = None
  attacks: tuple[str, ...] | None = None


class Cell(NamedTuple):
  arm: str
  seed: int
  attack: str
  eps: float

  @property
  def file(self) -> str:
    return f'{self.arm}.seed{self.seed}.{self.attack}.{self.eps:g}.parquet'

  def __str__(self) -> str:
    what = 'without attack' if self.attack == CLEAN else f'under {self.attack!r} at {self.eps:g}'
    return f'arm {self.arm!r} (seed {self.seed}) {what}'


class Scores(NamedTuple):
  """What is read off a batch of images, attacked or not."""

  columns: dict[str, Any]  # [b] metrics, and diagnostics whose names begin with '_'
  outputs: PyTree  # of the network


class Evaluator:
  """The compiled programs of one task: one that scores, and one per attack.

  Their number depends on neither arms nor levels.
  """

  def __init__(self, task: types.Task, probes: Mapping[str, Probe], *, key: jax.Array, main: str):
    self.probes = dict(probes)
    self.main_objective = probes[main].objective
    self._key = key
    self._attack = {name: attack_program(task, probe) for name, probe in probes.items()}
    objectives = sorted({probe.objective for probe in probes.values()})
    self._score = score_program(task, objectives, main=self.main_objective)

  def attack(self, variables: PyTree, batch: dict[str, Any], name: str, eps: float):
    """(attacked images, their distance [b]) of a batch of the host; CLEAN leaves them alone."""
    if name == CLEAN:
      return batch['image'], np.zeros(len(batch['mask']), np.float32)
    key = jax.random.fold_in(self._key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return self._attack[name](variables, batch, jnp.float32(eps), key)

  def score(self, variables: PyTree, batch: dict[str, Any], images) -> Scores:
    """How the network does on `images`, which stand in for batch['image']."""
    return Scores(*self._score(variables, batch, images))


def score_program(task: types.Task, objectives: Sequence[str], *, main: str):
  """(variables, batch, images) -> (columns, outputs).

  Columns: the metrics, the task's diagnostics, every objective as `_value.<name>` and `_zero_grad`,
  the share of the entries of the gradient of `main` that are exactly zero.
  """

  def one_device(variables, batch, images):
    seen = {**batch, 'clean': batch['image']}

    def scored(image):
      outputs = task.predict(variables, image)
      values = {n: task.objectives[n](outputs, {**seen, 'image': image}) for n in objectives}
      for name, value in values.items():
        contracts.per_example(value, len(image), what=f'the objective {name!r}')
      return jnp.sum(values[main]), (values, outputs)

    gradient, (values, outputs) = jax.grad(scored, has_aux=True)(images)
    zero = jnp.mean((gradient == 0).astype(jnp.float32), axis=tuple(range(1, gradient.ndim)))
    metrics = task.metrics(outputs, {**seen, 'image': images})
    columns = {
      **contracts.columns(metrics, len(images), what="the task's metrics"),
      **contracts.columns(task.diagnostics(outputs), len(images), what="the task's diagnostics"),
      **{f'_value.{name}': value for name, value in values.items()},
      '_zero_grad': zero,
    }
    return columns, outputs

  return parallel.each_device(one_device, split=(1, 2), gathered=(True, True))


def attack_program(task: types.Task, probe: Probe):
  """(variables, batch, eps, key) -> (attacked images, distances); eps and key are traced."""
  objective = errors.lookup(task.objectives, probe.objective, kind='objective')

  def one_device(variables, batch, eps, key):
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])
    value = lambda image: objective(task.predict(variables, image), {**batch, 'image': image})
    result = probe.attack(value, batch['image'], eps=eps, key=keys)
    return result.x, result.distance

  return parallel.each_device(one_device, split=(1,), gathered=(True, True))


def cells(models: Sequence[Model], probes: Mapping[str, Probe]) -> list[tuple[Model, Cell]]:
  """The whole grid, arm by arm so that each network is loaded once; the clean cell comes first."""
  out = []
  for model in models:
    out.append((model, Cell(model.arm, model.seed, CLEAN, 0.0)))
    for name, probe in probes.items():
      if model.attacks is not None and name not in model.attacks:
        continue
      if model.arm == probe.source:
        continue  # its own network: no transfer
      out += [
        (model, Cell(model.arm, model.seed, name, eps)) for eps in sorted(probe.levels) if eps > 0
      ]
  return out


class Table(NamedTuple):
  """A table that is a file of its own."""

  file: str  # .parquet or .csv
  make: Callable[[], pd.DataFrame]  # the same on every host
  what: str  # 'evaluating ...', said of an error
  note: str  # beside the progress


def cell_table(cell: Cell, make: Callable[[], pd.DataFrame]) -> Table:
  return Table(cell.file, make, str(cell), f'{cell.arm} {cell.attack} {cell.eps:g}')


def loader() -> Callable[[Model], PyTree]:
  """Gives networks, of which the one asked for last is kept."""
  return functools.lru_cache(maxsize=1)(lambda model: model.load())


def fill_missing(name: str, pieces: Sequence[Table], *, folder, stopper: console.Stopper) -> None:
  """Makes, in order, what `folder` has not; every file is written whole or not at all.

  A stop that is asked for comes between two pieces, as `console.Stopped`.
  """
  found = parallel.broadcast_from_writer(
    np.array([(folder / one.file).is_file() for one in pieces], bool)
  )
  progress = console.Progress(name, len(pieces), done=int(found.sum()))
  for number, (one, have) in enumerate(zip(pieces, found)):
    if have:
      continue
    if stopper.requested():
      progress.close()
      console.say('stopped in evaluation; the same command goes on from there')
      raise console.Stopped
    with errors.during(f'evaluating {one.what}'):
      table = one.make()
    if parallel.is_writer():
      with files.replacing(folder / one.file) as temporary:
        _write(table, temporary)
    progress.update(number + 1, one.note)
  progress.close()
  parallel.barrier(name)


def _write(table: pd.DataFrame, path) -> None:
  if path.suffix == '.csv':
    table.to_csv(path, index=False, float_format='%.6g')
  else:
    table.to_parquet(path, index=False)


def run(
  evaluator: Evaluator,
  models: Sequence[Model],
  *,
  batches: Batches,
  folder,
  stopper: console.Stopper,
  source: Callable[[str, int], Model] | None = None,
) -> pd.DataFrame:
  """Fills the grid and returns all rows, sorted; cells found in `folder` are not done again.

  `source` gives the network of (arm, seed) for probes that attack one arm and meet the others.
  A cell is one file, written whole or not at all, and depends on nothing but its network, its data
  and the evaluator's key; so an interrupted run ends with the rows of an undisturbed one.
  """
  stored = functools.cache(lambda: [dict(batch) for batch in batches()])
  load = loader()

  def make(model, cell):
    own, at = model.evaluator or evaluator, evaluator.probes.get(cell.attack)
    variables = load(model)
    victim = (own, variables)
    if at is not None and at.source:
      victim = _victim(source(at.source, model.seed), evaluator)
    return _cell_rows(own, variables, stored(), cell, victim)

  pieces = [
    cell_table(cell, functools.partial(make, m, cell))
    for m, cell in cells(models, evaluator.probes)
  ]
  fill_missing('evaluate', pieces, folder=folder, stopper=stopper)
  return gather(evaluator, models, folder=folder)


def finished(evaluator: Evaluator, models: Sequence[Model], *, folder) -> list[Model]:
  """Those of the networks all of whose cells are in `folder`, the same ones on every host."""
  whole = [
    all((folder / cell.file).is_file() for _, cell in cells([model], evaluator.probes))
    for model in models
  ]
  return [
    model for model, there in zip(models, parallel.broadcast_from_writer(np.array(whole))) if there
  ]


def gather(evaluator: Evaluator, models: Sequence[Model], *, folder) -> pd.DataFrame:
  """The rows of finished networks, sorted, whichever calls filled their cells."""
  wanted = [cell for _, cell in cells(models, evaluator.probes)]
  return collect(folder, wanted, evaluator.probes, main=evaluator.main_objective)


def collect(
  folder, wanted: Sequence[Cell], probes: Mapping[str, Probe], *, main: str
) -> pd.DataFrame:
  """The rows of all cells, sorted. `_value` is each attack's own objective (that of `main` for
  clean rows) and `_start` the same objective at the clean image; `_gain` is how far the attack got
  from there in its own direction, unknown where the images were made for another network."""
  tables = [files.parsed(folder / cell.file, pd.read_parquet) for cell in wanted]
  rows = pd.concat(tables, ignore_index=True)
  clean = rows[rows['attack'] == CLEAN].set_index(['arm', 'seed', 'index'])
  for name, objective in [(n, p.objective) for n, p in probes.items()] + [(CLEAN, main)]:
    here, column = rows['attack'] == name, f'_value.{objective}'
    places = pd.MultiIndex.from_frame(rows.loc[here, ['arm', 'seed', 'index']])
    rows.loc[here, '_value'] = rows.loc[here, column]
    rows.loc[here, '_start'] = clean[column].reindex(places).to_numpy()
    rows.loc[here, '_gain'] = _direction(probes.get(name)) * (rows['_value'] - rows['_start'])
  rows = rows[[name for name in rows.columns if not name.startswith('_value.')]]
  rows = rows.sort_values(['arm', 'seed', 'attack', 'eps', 'index'], kind='stable')
  names = [*KEYS, *[name for name in rows.columns if name not in KEYS]]
  return rows[names].reset_index(drop=True)


def _direction(probe: Probe | None) -> float:
  if probe is None:
    return 1.0
  if probe.source:
    return float('nan')
  return -1.0 if probe.attack.minimise else 1.0


def _victim(model: Model, evaluator: Evaluator) -> tuple[Evaluator, PyTree]:
  return model.evaluator or evaluator, model.load()


def _cell_rows(evaluator, variables, batches, cell, victim) -> pd.DataFrame:
  """`victim` is the (evaluator, variables) that the attack looks at."""
  attacker, attacked = victim
  # All batches are dispatched before the first result is read.
  pending = []
  for batch in map(device_batch, batches):
    images, distance = attacker.attack(attacked, batch, cell.attack, cell.eps)
    columns = evaluator.score(variables, batch, images).columns
    keep = {name: batch[name] for name in ('mask', 'index', 'group')}
    pending.append({**keep, '_distance': distance, **columns})
  tables = []
  for columns in pending:
    columns = {name: np.asarray(column) for name, column in columns.items()}
    tables.append(parallel.gather_rows(columns))
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


class Example(NamedTuple):
  """One example under attack, with what the network says before and after."""

  example: dict[str, Any]  # of the batch, without its leading axis
  image: np.ndarray  # attacked
  clean: PyTree  # outputs on the clean image
  attacked: PyTree  # outputs on the attacked one


def attacked_examples(
  evaluator: Evaluator, variables: PyTree, batches: Batches, *, attack: str, eps: float, wanted
) -> Iterator[Example]:
  """The examples whose index is in `wanted`, in data order.

  The attack on an example does not depend on its batch, so this repeats what the grid saw.
  """
  wanted = {int(index) for index in wanted}
  for batch in batches():
    valid = [int(i) if m else None for i, m in zip(batch['index'], batch['mask'])]
    places = [place for place, index in enumerate(valid) if index in wanted]
    if not places:
      continue
    padded = device_batch(batch)
    images, _ = evaluator.attack(variables, padded, attack, eps)
    clean = evaluator.score(variables, padded, padded['image']).outputs
    attacked = evaluator.score(variables, padded, images).outputs
    whole = (dict(batch), images, clean, attacked)
    for place in places:
      yield Example(*jax.tree.map(lambda leaf, i=place: np.asarray(leaf)[i], whole))

"""Evaluates arms x attacks x levels into one row per example; finished cells are not repeated."""

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from robustmed import attacks, errors, types
from robustmed.attacks import objectives
from robustmed.attacks import space as spaces
from robustmed.evaluation import flags, movement, stored_tables, trials
from robustmed.ops import contracts
from robustmed.process import console, files, parallel

PyTree = Any
Batches = Callable[..., Iterable[dict[str, Any]]]  # (*fold of the trial) -> batches
KEYS = ('arm', 'attack', 'eps', 'index', 'seed', 'group')
CLEAN = 'none'


class Probe(NamedTuple):
  """One attack of the grid, the objective that it maximises, and its levels.

  Levels and distances are those of `space`, of the image without one. With `source` it is a
  transfer attack: images are made against that arm's network (of the same trial), and all other
  arms are evaluated on them.
  """

  attack: types.Attack
  objective: str
  levels: tuple[float, ...]
  source: str = ''
  space: spaces.Space | None = None


class Model(NamedTuple):
  """One trained network; `load` returns its variables.

  `evaluator` replaces the run's for a network of another task; `attacks` are the probes that it is
  evaluated under, None: all.
  """

  arm: str
  trial: trials.Trial
  load: Callable[[], PyTree]
  evaluator: Any = None
  attacks: tuple[str, ...] | None = None

  @property
  def seed(self) -> int:
    return self.trial.seed


class Cell(NamedTuple):
  """One network under one attack at one level; its rows are one file."""

  arm: str
  trial: trials.Trial
  attack: str
  eps: float

  @property
  def file(self) -> str:
    arm, attack = (files.name_of(one, what='an arm or attack') for one in (self.arm, self.attack))
    return f'{arm}.{self.trial}.{attack}.{self.eps:g}.parquet'

  def __str__(self) -> str:
    what = 'without attack' if self.attack == CLEAN else f'under {self.attack!r} at {self.eps:g}'
    return f'arm {self.arm!r} ({self.trial.said}) {what}'


class Scores(NamedTuple):
  """What a network gives for a batch of images, attacked or not."""

  columns: dict[str, Any]  # [b] metrics, and diagnostics whose names begin with '_'
  outputs: PyTree  # of the network


class HostMetrics(NamedTuple):
  """Metrics that are computed on the host, of all examples of a cell at once."""

  kept: Callable[[PyTree, types.Batch], dict[str, Any]]  # (outputs, batch) -> {name: [b, ...]}
  columns: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]  # kept of all -> {name: [n]}


class Evaluator:
  """The compiled programs of one task: one that scores, and one per attack.

  Their number does not depend on arms or levels. `host`: further columns of the rows.
  """

  def __init__(
    self,
    task: types.Task,
    probes: Mapping[str, Probe],
    *,
    key: jax.Array,
    main: str,
    judge: tuple[str, bool] | None = None,
    host: HostMetrics | None = None,
  ):
    self.probes, self.host = dict(probes), host
    self.main_objective = probes[main].objective
    self.task, self._key = task, key
    self._attack = {name: attack_program(task, probe, judge) for name, probe in probes.items()}
    names = sorted({probe.objective for probe in probes.values()})
    self._score = score_program(task, names, main=self.main_objective)

  def attack(self, variables: PyTree, batch: dict[str, Any], name: str, eps):
    """(attacked images, their distance [b]) of this host's batch; CLEAN: its images."""
    if name == CLEAN:
      return batch['image'], np.zeros(len(batch['mask']), np.float32)
    key = jax.random.fold_in(self._key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
    eps = np.broadcast_to(np.float32(eps), (len(batch['mask']),))
    return self._attack[name](variables, batch, eps, key)

  def score(self, variables: PyTree, batch: dict[str, Any], images) -> Scores:
    """The scores of a network on `images`, which replace batch['image']."""
    return Scores(*self._score(variables, batch, images))


def score_program(task: types.Task, names: Sequence[str], *, main: str):
  """Returns a compiled (variables, batch, images) -> (columns, outputs).

  Columns: the metrics, the task's diagnostics, those of `movement`, every objective as
  `_value.<name>` and `_zero_grad`, the share of the entries of the gradient of `main` that are
  exactly zero.
  """

  def one_device(variables, batch, images):
    with_clean = {**batch, 'clean': batch['image']}

    def scored(image):
      outputs = task.predict(variables, image)
      values = {n: task.objectives[n](outputs, {**with_clean, 'image': image}) for n in names}
      for name, value in values.items():
        contracts.per_example(value, len(image), what=f'the objective {name!r}')
      return jnp.sum(values[main]), (values, outputs)

    gradient, (values, outputs) = jax.grad(scored, has_aux=True)(images)
    zero = jnp.mean((gradient == 0).astype(jnp.float32), axis=tuple(range(1, gradient.ndim)))
    seen = {**with_clean, 'image': images}
    metrics, compared = task.metrics(outputs, seen), task.compared(outputs, seen)
    columns = {
      **contracts.columns(metrics, len(images), what="the task's metrics"),
      **contracts.columns(task.diagnostics(outputs), len(images), what="the task's diagnostics"),
      **contracts.columns(movement.columns(compared), len(images), what='compared outputs'),
      **{f'_value.{name}': value for name, value in values.items()},
      '_zero_grad': zero,
    }
    return columns, outputs

  return parallel.each_device(one_device, split=(1, 2), gathered=(True, True))


def attack_program(task: types.Task, probe: Probe, judge: tuple[str, bool] | None = None):
  """Returns a compiled (variables, batch, eps, key) -> (attacked images, distances).

  eps [b] and key are traced. judge: (metric, higher is better), by which select='monitor' selects.
  """
  objective = errors.lookup(task.objectives, probe.objective, kind='objective')
  if probe.attack.judged and judge is None:
    raise errors.UserError("an attack with select='monitor' needs a metric to choose by")

  def badness(outputs, batch):
    value = errors.lookup(task.metrics(outputs, batch), judge[0], kind='metric')
    return -value if judge[1] else value

  def one_device(variables, batch, eps, key):
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])
    predict = attacks.Shared(lambda image: task.predict(variables, image))
    value = objectives.bind(predict, objective, batch)
    monitor = objectives.bind(predict, badness, {**batch, 'clean': batch['image']})
    return spaces.run(
      probe.attack,
      value,
      batch,
      space=probe.space,
      eps=eps,
      key=keys,
      monitor=monitor if probe.attack.judged else None,
    )

  return parallel.each_device(one_device, split=(1, 2), gathered=(True, True))


def cells(models: Sequence[Model], probes: Mapping[str, Probe]) -> list[tuple[Model, Cell]]:
  """The whole grid, arm by arm so that each network is loaded once; the clean cell comes first."""
  out = []
  for model in models:
    out.append((model, Cell(model.arm, model.trial, CLEAN, 0.0)))
    for name, probe in probes.items():
      if model.attacks is not None and name not in model.attacks:
        continue
      if model.arm == probe.source:
        continue  # the attacked network itself: no transfer
      out += [
        (model, Cell(model.arm, model.trial, name, eps)) for eps in sorted(probe.levels) if eps > 0
      ]
  return out


def cell_table(cell: Cell, make: Callable[[], pd.DataFrame]) -> stored_tables.Table:
  return stored_tables.Table(cell.file, make, str(cell), f'{cell.arm} {cell.attack} {cell.eps:g}')


def loader() -> Callable[[Model], PyTree]:
  """Returns model -> its variables, which caches those of the last model."""
  return functools.lru_cache(maxsize=1)(lambda model: model.load())


def run(
  evaluator: Evaluator,
  models: Sequence[Model],
  *,
  batches: Batches,
  folder,
  stopper: console.Stopper,
  source: Callable[[str, trials.Trial], Model] | None = None,
) -> pd.DataFrame:
  """Evaluates all cells and returns their rows, sorted; cells in `folder` are not repeated.

  `source` returns the model of (arm, trial) that a transfer attack is made against. A cell is one
  file, written whole or not at all, and depends only on its network, its data and the evaluator's
  key; so a resumed run ends with the rows of an uninterrupted one.
  """
  # Networks of one fold follow each other.
  stored = functools.lru_cache(maxsize=1)(lambda *fold: [dict(b) for b in batches(*fold)])
  load = loader()

  def make(model, cell):
    own, probe = model.evaluator or evaluator, evaluator.probes.get(cell.attack)
    variables = load(model)
    victim = (own, variables)
    if probe is not None and probe.source:
      victim = _victim(source(probe.source, model.trial), evaluator)
    return _cell_rows(own, variables, stored(*model.trial.fold), cell, victim)

  wanted = [
    cell_table(cell, functools.partial(make, m, cell))
    for m, cell in cells(models, evaluator.probes)
  ]
  stored_tables.fill_missing('evaluate', wanted, folder=folder, stopper=stopper)
  return gather(evaluator, models, folder=folder)


def finished(evaluator: Evaluator, models: Sequence[Model], *, folder) -> list[Model]:
  """The models all of whose cells are in `folder`, the same ones on every host."""
  complete = [
    all((folder / cell.file).is_file() for _, cell in cells([model], evaluator.probes))
    for model in models
  ]
  return [
    model for model, done in zip(models, parallel.broadcast_from_writer(np.array(complete))) if done
  ]


def gather(evaluator: Evaluator, models: Sequence[Model], *, folder) -> pd.DataFrame:
  """The rows of finished networks, sorted."""
  wanted = [cell for _, cell in cells(models, evaluator.probes)]
  return collect(folder, wanted, evaluator.probes, main=evaluator.main_objective)


def collect(
  folder, wanted: Sequence[Cell], probes: Mapping[str, Probe], *, main: str
) -> pd.DataFrame:
  """The rows of all cells, sorted.

  `_value` is each attack's own objective (that of `main` for clean rows), `_start` the same
  objective at the clean image, and `_gain` their difference in the attack's direction, nan for
  images made against another network or chosen by the metric. See also `flags`.
  """
  parts = [files.read_with(folder / cell.file, pd.read_parquet) for cell in wanted]
  rows = pd.concat(parts, ignore_index=True)
  clean = rows[rows['attack'] == CLEAN].set_index(['arm', 'seed', 'index'])
  for name, objective in [(n, p.objective) for n, p in probes.items()] + [(CLEAN, main)]:
    here, column = rows['attack'] == name, f'_value.{objective}'
    places = pd.MultiIndex.from_frame(rows.loc[here, ['arm', 'seed', 'index']])
    rows.loc[here, '_value'] = rows.loc[here, column]
    rows.loc[here, '_start'] = clean[column].reindex(places).to_numpy()
    rows.loc[here, '_gain'] = _direction(probes.get(name)) * (rows['_value'] - rows['_start'])
  rows = flags.added(rows, (rows['attack'] != CLEAN) & (rows['eps'] > 0))
  rows = rows.sort_values(['arm', 'seed', 'attack', 'eps', 'index'], kind='stable')
  names = [n for n in rows.columns if n not in KEYS and not n.startswith('_value.')]
  return rows[[*KEYS, *names]].reset_index(drop=True)


def _direction(probe: Probe | None) -> float:
  if probe is None:
    return 1.0
  if probe.source or probe.attack.judged:
    return float('nan')
  return -1.0 if probe.attack.minimise else 1.0


def _victim(model: Model, evaluator: Evaluator) -> tuple[Evaluator, PyTree]:
  return model.evaluator or evaluator, model.load()


def scored(
  evaluator: Evaluator, variables: PyTree, batches, *, attack: str, eps_of, victim=None
) -> pd.DataFrame:
  """Returns one row per example under an attack, by its index: group, distance and all scores.

  eps_of: batch -> scalar or [b]. victim: the (evaluator, variables) that is attacked, None: the
  same.
  """
  attacker, attacked = victim or (evaluator, variables)
  # All batches are dispatched before the first result is read.
  pending, host = [], evaluator.host
  for batch in map(device_batch, batches):
    images, distance = attacker.attack(attacked, batch, attack, eps_of(batch))
    columns, outputs = evaluator.score(variables, batch, images)
    if attack != CLEAN:  # movement is that of clean images
      columns = {name: value for name, value in columns.items() if not movement.is_column(name)}
    keep = {name: batch[name] for name in ('mask', 'index', 'group')}
    pending.append(({**keep, '_distance': distance, **columns}, host and host.kept(outputs, batch)))
  read = lambda tree: parallel.gather_rows({k: np.asarray(v) for k, v in tree.items()})
  join = lambda parts: {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  found = join([read(columns) for columns, _ in pending])
  inside = found.pop('mask')
  table = pd.DataFrame(found)[inside]
  if host:
    kept = join([read(kept) for _, kept in pending])
    table = table.assign(**host.columns({name: value[inside] for name, value in kept.items()}))
  return table.sort_values('index', kind='stable').reset_index(drop=True)


def _cell_rows(evaluator, variables, batches, cell, victim) -> pd.DataFrame:
  """The rows of one cell; `victim` is the (evaluator, variables) that is attacked."""
  table = scored(
    evaluator, variables, batches, attack=cell.attack, eps_of=lambda _: cell.eps, victim=victim
  )
  table.insert(0, 'arm', cell.arm)
  table.insert(1, 'attack', cell.attack)
  table.insert(2, 'eps', float(cell.eps))
  for place, (name, number) in enumerate(cell.trial.columns.items(), 3):
    table.insert(place, name, number)
  return table


def device_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
  """The batch padded to a multiple of the devices, without names and other host-only fields."""
  wanted = {k: batch[k] for k in ('image', 'target', 'mask', 'index', 'group')}
  return parallel.pad(wanted, parallel.round_up(len(batch['mask'])))

"""The training loop of all defenses."""

import csv
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorboardX

from robustmed import errors, types
from robustmed.process import console, files, leftovers, parallel
from robustmed.training import checkpoints, optimisers, selection, step
from robustmed.training import state as train_state

Batches = Callable[[int], Iterator[dict[str, Any]]]  # start step -> batches


class Diverged(errors.UserError):
  """The loss stopped being finite."""


def fit(
  name: str,
  *,
  task: types.Task,
  defense: types.Defense,
  batches: Batches,
  config: Mapping[str, Any],
  folder: str | os.PathLike,
  log: str | os.PathLike,
  key: jax.Array,
  num_examples: int,
  stopper: console.Stopper,
  augment: Callable[..., Any] | None = None,
  initial: Any = None,
  scorer: selection.Scorer | None = None,
  padded: bool = False,
  before: Callable[[Any], None] | None = None,
) -> train_state.TrainState:
  """Trains to config['steps'] and returns the final state; resumes from a checkpoint in `folder`.

  A run that was interrupted and resumed ends with the parameters of an uninterrupted one, bit for
  bit on one machine. `initial` are the variables to start from (warm start), or a function from the
  task's initial ones to these. On SIGTERM the state is saved and `console.Stopped` raised; on a
  non-finite loss `Diverged`. With a `scorer` the result has the weights with the smallest score of
  all checkpoints; training ends early if the scorer says so or the loss is not finite. `before` is
  called with the compiled program of a step before the first one, if any is due.
  """
  num_steps = config['steps']
  init_key, run_key = jax.random.split(key)
  state, train_step = start(
    name,
    task=task,
    defense=defense,
    config=config,
    key=init_key,
    num_examples=num_examples,
    augment=augment,
    padded=padded,
  )
  store = checkpoints.Store(folder)
  stored = store.restore_latest(state)
  if stored is not None:
    state = stored
  elif initial is not None:
    own = {'params': state.params, **state.state}
    state = _warm_start(state, initial(own) if callable(initial) else initial)
  done = int(state.step)
  best = None
  if scorer is not None:
    best = selection.BestWeights(files.path_of(folder).parent / 'best', scorer, task)
  if done < num_steps and not (best and best.ended(done)):
    with Log(
      log, done=done, every=config.get('log_every', 20), summaries=defense.summaries
    ) as rows:
      try:
        state = _run(
          name,
          state,
          train_step,
          batches(done),
          config,
          store,
          run_key,
          stopper,
          rows,
          done,
          best,
          before,
        )
      except Diverged as error:
        if best is None or not best.rows():
          raise
        console.say(str(error))
  store.close()
  return state if best is None else _with_best(name, state, best)


def start(
  name: str,
  *,
  task: types.Task,
  defense: types.Defense,
  config: Mapping[str, Any],
  key: jax.Array,
  num_examples: int,
  augment: Callable[..., Any] | None = None,
  padded: bool = False,
) -> tuple[train_state.TrainState, Callable[..., Any]]:
  """Returns the initial state of a training and its step (state, batch, key) -> (state, scalars).

  The arguments are those of `fit`; `padded`: batches have padding. Nothing is compiled before the
  step is called.
  """
  updates = step.updates_per_step(defense)
  rules = {
    rule: optimisers.make(options, num_steps=config['steps'], updates_per_step=updates.get(rule, 1))
    for rule, options in config['optimisers'].items()
  }
  state = train_state.create(
    task,
    defense,
    step.for_phases(defense, rules),
    key=key,
    num_examples=num_examples,
    average=config.get('ema', 0.0) > 0,
  )
  train_step = step.make(
    defense,
    optimisers=rules,
    num_steps=config['steps'],
    augment=augment,
    ema=config.get('ema', 0.0),
    ema_ramp=config.get('ema_ramp', 0),
    parts=_parts(name, config, state),
    padded=padded,
  )
  return state, train_step


def _parts(name, config, state):
  """The number of micro-batches of a step; a network that they would change is a `UserError`."""
  size = config.get('micro_batch', 0)
  if not size or size >= config['batch_size']:
    return 1
  if jax.tree.leaves(state.state.get('batch_stats', {})):
    raise errors.UserError(
      f'{name}: train.micro_batch={size} would change the batch statistics of its network; set it '
      'to 0'
    )
  return config['batch_size'] // size


def _with_best(name, state, best):
  found, chosen = best.load()
  why = f'ended early: {chosen.stop}; ' if chosen.stop else ''
  console.say(f'{name}: {why}the weights of step {chosen.step} are kept (score {chosen.score:.4g})')
  rest = {kind: value for kind, value in found.items() if kind != 'params'}
  return state._replace(params=found['params'], state=rest, average=())


def _warm_start(state, initial):
  params = {'params': state.params, **state.state}
  if jax.tree.map(lambda a: a.shape, params) != jax.tree.map(lambda a: a.shape, dict(initial)):
    raise errors.UserError('the warm-start network has other shapes than this one')
  rest = {name: value for name, value in initial.items() if name != 'params'}
  average = dict(initial) if state.average else ()
  return state._replace(params=initial['params'], state=rest, average=average)


def _run(name, state, train_step, stream, config, store, key, stopper, rows, done, best, before):
  num_steps, every = config['steps'], config.get('checkpoint_every', 200)
  check = 1 if parallel.process_count() == 1 else 10
  progress = console.Progress(f'train {name}', num_steps, done=done)
  pending = None
  state = parallel.replicate(state)
  for number in range(done, num_steps):
    batch = next(stream)
    if number == done and before is not None:
      before(train_step.compiled(state, batch, key))
    state, scalars = train_step(state, batch, key)
    last = number + 1 == num_steps
    if rows.wanted(number + 1) or last:
      # Reads the previous entry, not this one, so that the device is not waited for.
      if pending is not None:
        _record(name, pending, rows, progress, store)
      pending = (number + 1, scalars, rows.summarise(state.memory), state.bad_step)
    stop = (number + 1) % check == 0 and stopper.requested()
    if last or stop or (number + 1) % every == 0:
      _record(name, pending, rows, progress, store)
      pending = None
      _stop_if_bad(name, state.bad_step, store)
      rows.save()
      ended = ''
      if best is not None and (last or (number + 1) % every == 0):
        ended = best.evaluate(number + 1, train_state.variables(state))
      store.save(number + 1, state, {'step': number + 1})
      if ended:
        break
    if stop and not last:
      progress.close()
      rows.close()
      console.say(
        f'stopped in {name} at step {number + 1}; run the same command again to continue from there'
      )
      raise console.Stopped
  progress.close()
  return state


def _record(name, pending, rows, progress, store):
  if pending is None:
    return
  number, scalars, tables, bad_step = pending
  _stop_if_bad(name, bad_step, store)
  values = {key: float(np.asarray(value)) for key, value in scalars.items()}
  rows.write(number, values, tables)
  progress.update(number, f'loss {values[next(k for k in values if k.endswith("/loss"))]:.4g}')


def _stop_if_bad(name, bad_step, store):
  bad = int(bad_step)
  if bad >= 0:
    good = store.latest()
    where = f'the last good checkpoint is {store.folder}/{good}' if good else 'no checkpoint yet'
    raise Diverged(
      f'training of {name} diverged: the loss is not finite at step {bad + 1}; {where}; '
      f'lower the learning rate or clip the gradient'
    )


class Log:
  """Logs the scalars of one arm as CSV and TensorBoard; drops rows after the resumed step first.

  Each of the defense's `summaries` has its own CSV beside it, NAME.<summary>.csv.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    done: int,
    every: int,
    summaries: Mapping[str, Callable[[Any], dict[str, Any]]] = {},
  ):
    path = files.path_of(path)
    self._every = every
    self._summaries = {name: jax.jit(summary) for name, summary in summaries.items()}
    self._paths = {'': path, **{name: path.with_suffix(f'.{name}.csv') for name in summaries}}
    self._kept: dict[str, list[dict[str, Any]]] = {name: [] for name in self._paths}
    self._board = None
    self._started = time.monotonic()
    if not parallel.is_writer():
      return
    for name, file in self._paths.items():
      self._kept[name] = rows_until(file, done)
    self._curves = path.with_suffix('')
    # An object store cannot be appended to.
    self._here = leftovers.temporary_folder() if files.is_remote(path) else None
    self._board_folder = self._here.name if self._here else str(self._curves)
    self._board = tensorboardX.SummaryWriter(
      self._board_folder, purge_step=done or None, flush_secs=10
    )

  def wanted(self, number: int) -> bool:
    """Returns whether step `number` is logged."""
    return number == 1 or number % self._every == 0

  def summarise(self, memory: Any) -> dict[str, dict[str, Any]]:
    """Returns the defense's summaries of its memory."""
    return {name: summary(memory) for name, summary in self._summaries.items()}

  def write(
    self, number: int, values: Mapping[str, float], tables: Mapping[str, Mapping[str, Any]] = {}
  ) -> None:
    """Adds the row of step `number`, and one to the table of every summary."""
    if self._board is None:
      return
    seconds = round(time.monotonic() - self._started, 3)
    self._kept[''].append({'step': number, 'seconds': seconds, **values})
    for name, table in tables.items():
      self._kept[name].append({'step': number, **{k: np.asarray(v) for k, v in table.items()}})
    for key, value in values.items():
      self._board.add_scalar(key, value, number)

  def close(self) -> None:
    """Saves everything and closes the files."""
    if self._board is None:
      return
    self.save()
    self._board.close()
    self._upload_curves()
    if self._here:
      self._here.cleanup()
    self._board = None

  def save(self) -> None:
    """Writes the CSV; called before every checkpoint, so that a killed run loses no rows."""
    if self._board is None:
      return
    for name, path in self._paths.items():
      columns = list(dict.fromkeys(key for row in self._kept[name] for key in row))
      with files.replacing(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.DictWriter(file, columns, restval='')
        writer.writeheader()
        writer.writerows(self._kept[name])
    self._board.flush()
    self._upload_curves()

  def _upload_curves(self) -> None:
    if files.is_remote(self._curves):
      for file in files.iter_files(pathlib.Path(self._board_folder)):
        files.upload(file, self._curves / file.name)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def rows_until(path: files.Path, done: int) -> list[dict[str, Any]]:
  """Returns the rows of a log up to step `done`; a damaged log is a `UserError`."""
  if not done or not files.present(path):
    return []
  header, *rows = files.csv_rows(path) or [[]]
  whole = len(set(header)) == len(header) and all(len(row) == len(header) for row in rows)
  steps = [row[header.index('step')] for row in rows] if whole and 'step' in header else ['']
  if not all(re.fullmatch(r'\d{1,12}', step) for step in steps):
    raise errors.UserError(f'{path}: is no training log; remove it to go on without its rows')
  return [dict(zip(header, row)) for row, step in zip(rows, steps) if int(step) <= done]

"""Forecast of a run's duration: the passes still to do, at the measured speed of each network."""

import functools
import math
import pathlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from robustmed import types
from robustmed.evaluation import grid, trials
from robustmed.process import console, parallel
from robustmed.runs import costs, experiment
from robustmed.training import loop

LONG = 60.0  # seconds from which a forecast is printed
# Multiply-adds that any machine does in less time: the speed is not measured.
TRIVIAL = 6e10
SMALL = 0.02  # share of the multiply-adds up to which a network's own speed is not measured
MEASURED = 0.5  # seconds
MOST = 1000  # calls that are timed
SAMPLE = 2**24  # elements of the images that the speed is measured on, at most about
PARTS = 'parts/'  # of the grid, in results/
PICTURES = 'examples.npz'  # of `artifacts.save_pictures`


def remaining(
  exp: experiment.Experiment,
  config: ml_collections.ConfigDict,
  *,
  untrained: Iterable[str],
  models: Sequence[grid.Model],
  results: pathlib.Path,
  finished: Collection[str] = (),
) -> costs.Work:
  """The passes through networks that a run has still to do.

  untrained: arms to be trained, once per trial. models: networks to be evaluated, without the files
  that are in `results` already. finished: other arms that are trained.
  """
  arms = [exp.arms[name] for name in untrained]
  there = {*finished, *(arm.name for arm in arms), *(model.arm for model in models)}
  work = costs.Work()
  examples = exp.data_of(*exp.trials()[0].fold).sizes().get('train', 0)
  for arm in arms:
    work.join(costs.training(arm, exp.task_of(arm.name), examples=examples))
  for model in models:
    for file, cost in evaluation(exp, config, model.arm, model.trial, there).items():
      if not (results / file).exists():
        task = exp.task_of(model.arm)
        work.add(task, cost, batch_size=config.evaluate.batch_size)
  return work


def evaluation(
  exp: experiment.Experiment,
  config: ml_collections.ConfigDict,
  arm: str,
  trial: trials.Trial,
  arms: Collection[str],
) -> dict[str, types.Cost]:
  """{file in results/: its cost} of one network, the grid's and those of studies."""
  size = exp.data_of(*trial.fold).sizes().get('test', 0)
  number = costs.padded(size, config.evaluate.batch_size)
  due = costs.evaluation_cells(exp.probes_of(arm), num_examples=number)
  own = {f'{PARTS}{grid.Cell(arm, trial, *cell).file}': cost for cell, cost in due.items()}
  return {**own, **_shown(exp, config, arm, trial, number), **exp.study_cells(arm, trial, arms)}


def _shown(exp, config, arm, trial, number) -> dict[str, types.Cost]:
  """The same of pictures and of the worst examples: whole batches are attacked for some images."""
  name = exp.grid.main
  if name not in exp.probes_of(arm):
    return {}
  size = max(1, min(number, config.evaluate.batch_size))
  attack = exp.grid.probes[name].attack
  some = lambda count: costs.attacked(attack, min(number, count * size), scores=2)
  found = {}
  if exp.artifacts.pictures is not None and not trial.seed:
    found[PICTURES] = some(config.report.pictures)
  if exp.artifacts.write_example is not None:
    eps = max(exp.grid.probes[name].levels)
    found[f'worst/{arm}.{trial}.{name}.{eps:g}'] = some(config.evaluate.save_examples)
  return found


Learning = Mapping[int, Callable[[], float]]


def announce(
  work: costs.Work,
  *,
  objective: str = '',
  batches: grid.Batches | None = None,
  learning: Mapping[int, Callable[[], float]] = {},
) -> None:
  """Prints one line if so much work takes longer than a minute here; `objective`, `batches` and
  `learning` are those of `seconds`."""
  if float(parallel.broadcast_from_writer(np.float32(work.multiply_adds()))) < TRIVIAL:
    return
  sample = grid.device_batch(next(iter(batches()))) if batches else None
  duration = seconds(work, objective=objective, sample=sample, learning=learning)
  if duration > LONG:
    kinds = work.by_kind()
    console.say(
      f'forecast: {work.passes:,} passes through networks ({kinds["gradients"]:,} input gradients, '
      f'{kinds["forwards"]:,} forward, {kinds["passes"]:,} training): about '
      f'{console.format_duration(duration)} here, compilation not counted'
    )


def seconds(
  work: costs.Work,
  *,
  objective: str = '',
  sample: Mapping[str, Any] | None = None,
  learning: Mapping[int, Callable[[], float]] = {},
) -> float:
  """How long the passes take on all devices, by the speed of each network that does much of them.

  A small network does fewer operations a second than a large one. Networks of tasks with that
  `objective` are measured with it on the batch `sample`, as attacks ascend it; others alone. A
  training pass counts as three forward passes, or where that is more than a minute what
  learning[id(task.predict)]() says, see `training_pass`.
  """
  known: dict[tuple, float] = {}  # seconds of a forward pass by size of the network
  total, duration = work.multiply_adds(), 0.0
  for part in sorted(work.parts.values(), key=lambda part: -part.multiply_adds):
    size = costs.multiply_adds(part.task), part.task.image_shape
    if size not in known and (not known or part.multiply_adds > SMALL * total):
      rate = gradients_per_second(part.task, part.batch_size, objective=objective, sample=sample)
      known[size] = 0.5 / rate
    if size in known:
      each = known[size]
    else:
      (first, _), each = next(iter(known.items()))
      each *= size[0] / first
    trained = costs.forwards(types.Cost(passes=part.cost.passes)) * each
    if trained > LONG and id(part.task.predict) in learning:
      trained = part.cost.passes * learning[id(part.task.predict)]()
    duration += costs.forwards(part.cost._replace(passes=0)) * each + trained
  return duration


def learning(
  exp: experiment.Experiment,
  sample: Callable[[experiment.Arm], tuple[Mapping[str, Any], Any]],
  *,
  without: Collection[str] = (),
) -> Learning:
  """{id of a network's `predict`: a function that measures its `training_pass`}.

  It is measured by the first arm that neither attacks nor needs others. sample: (arm) -> (a batch
  of this process, augmentation). without: arms whose steps may not fit into memory.
  """

  def measured(arm):
    batch, augment = sample(arm)
    return training_pass(arm, exp.task_of(arm.name), batch, augment=augment)

  plain = [
    arm
    for arm in exp.arms.values()
    if arm.train['steps'] and arm.defense.cost == types.Cost(passes=arm.defense.cost.passes)
    if not (arm.needs or arm.prepared.defense or arm.prepared.source or arm.name in without)
  ]
  return {
    id(exp.task_of(arm.name).predict): functools.partial(measured, arm) for arm in reversed(plain)
  }


def training_pass(
  arm: experiment.Arm, task: types.Task, batch: Mapping[str, Any], *, augment: Any
) -> float:
  """Seconds of a training pass of one example over all hosts: augmentation, losses, gradient and
  update of the arm, measured on a batch of this process. Its defense must not attack."""
  state, train_step = loop.start(
    arm.name,
    task=task,
    defense=arm.defense,
    config=arm.train,
    key=jax.random.key(0),
    num_examples=1,
    augment=augment,
  )
  states, key = [parallel.replicate(state)], jax.random.key(1)

  def once():
    states.append(jax.block_until_ready(train_step(states.pop(), batch, key))[0])

  passes = len(batch['mask']) * parallel.process_count() * arm.defense.cost.passes
  return _seconds_of(once) / passes


def _seconds_of(once: Callable[[], Any]) -> float:
  """Seconds of a call after the first; the hosts' are one number, and they call equally often.

  A call may meet those of the other hosts in a collective, and what is decided by the time must be
  decided alike on all.
  """
  once()

  def timed(count):
    started = time.monotonic()
    for _ in range(count):
      once()
    here = (time.monotonic() - started) / count
    return max(float(parallel.broadcast_from_writer(np.float32(here))), 1e-9)

  return timed(max(2, min(math.ceil(MEASURED / timed(1)), MOST)))


def gradients_per_second(
  task: types.Task,
  batch_size: int,
  *,
  objective: str = '',
  sample: Mapping[str, Any] | None = None,
) -> float:
  """Input gradients per second over all hosts, measured on a randomly initialised network."""
  variables = task.init(jax.random.key(0))
  size = min(-(-batch_size // parallel.process_count()), SAMPLE // math.prod(task.image_shape) + 1)
  size = parallel.round_up(size)
  batch = {'image': np.zeros((size, *task.image_shape), np.float32)}
  attacked = sample is not None and objective in task.objectives
  if attacked and sample['image'].shape[1:] == tuple(task.image_shape):
    batch = dict(sample)

  def one_device(variables, batch):
    def total(image):
      outputs = task.predict(variables, image)
      if len(batch) > 1:
        return jnp.sum(task.objectives[objective](outputs, {**batch, 'image': image}))
      return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(outputs))

    return jax.grad(total)(batch['image'])

  program = parallel.each_device(one_device, split=(1,))
  each = _seconds_of(lambda: jax.block_until_ready(program(variables, batch)))
  return len(batch['image']) * parallel.process_count() / each

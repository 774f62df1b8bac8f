"""Forecast of a run's duration: remaining gradient evaluations over a measured speed."""

import pathlib
import time
from collections.abc import Collection, Iterable, Sequence

import jax
import numpy as np

from robustmed import types
from robustmed.evaluation import grid
from robustmed.process import console, parallel
from robustmed.runs import costs, experiment

LONG = 60.0  # seconds from which a forecast is printed
# Multiply-adds that any machine does in less time: the speed is not measured.
TRIVIAL = 2e10


def remaining_gradients(
  exp: experiment.Experiment,
  *,
  untrained: Iterable[str],
  models: Sequence[grid.Model],
  results: pathlib.Path,
  finished: Collection[str] = (),
) -> int:
  """Gradient evaluations that a run has still to do.

  untrained: arms to be trained, once per trial. models: networks to be evaluated, without the files
  that are in `results` already. finished: other arms that are trained.
  """
  arms = [exp.arms[name] for name in untrained]
  there = {*finished, *(arm.name for arm in arms), *(model.arm for model in models)}
  total = sum(
    costs.training_gradients(
      arm.defense.cost, steps=arm.train['steps'], batch_size=arm.train['batch_size']
    )
    for arm in arms
  )
  for model in models:
    due = costs.evaluation_cells(
      exp.probes_of(model.arm),
      num_examples=exp.data_of(*model.trial.fold).sizes().get('test', 0),
    )
    for (attack, eps), gradients in due.items():
      cell = grid.Cell(model.arm, model.trial, attack, eps)
      total += gradients * (not (results / 'parts' / cell.file).is_file())
    for file, gradients in exp.study_cells(model.arm, model.trial, there).items():
      total += gradients * (not (results / file).is_file())
  return total


def announce(gradients: int, *, task: types.Task, evaluator: grid.Evaluator, batches) -> None:
  """Prints one line if so many gradient evaluations take longer than a minute here."""
  gradients = float(parallel.broadcast_from_writer(np.float32(gradients)))
  if not gradients or 3 * gradients * costs.multiply_adds(task) < TRIVIAL:
    return
  speed = gradients_per_second(task, evaluator, batches)
  if gradients / speed > LONG:
    console.say(
      f'forecast: {gradients:,.0f} gradient evaluations at {speed:,.0f}/s here: about '
      f'{console.format_duration(gradients / speed)}, compilation not counted'
    )


def gradients_per_second(task: types.Task, evaluator: grid.Evaluator, batches) -> float:
  """Gradient evaluations per second over all hosts, measured on a randomly initialised network."""
  variables = task.init(jax.random.key(0))
  batch = grid.device_batch(next(iter(batches())))
  once = lambda: jax.block_until_ready(evaluator.score(variables, batch, batch['image']).columns)
  once()
  started, count = time.monotonic(), 0
  while time.monotonic() - started < 1.0 or count < 2:
    once()
    count += 1
  return count * len(batch['mask']) * parallel.process_count() / (time.monotonic() - started)

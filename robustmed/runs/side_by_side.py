"""The order of trainings, and several at once where one cannot use all devices."""

import concurrent.futures
import math
import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robustmed import errors
from robustmed.process import console, parallel
from robustmed.runs import experiment

Training = tuple[str, Any]  # arm, trial


def held(options: Mapping[str, Any]) -> int:
  """How many examples of a batch are in memory at a time, on all devices together."""
  return min(options.get('micro_batch', 0) or options['batch_size'], options['batch_size'])


def devices_of(options: Mapping[str, Any]) -> int:
  """How many of the devices a training can use: so many share its batches, or micro-batches, evenly
  and are a share of all."""
  size = held(options)
  found = math.gcd(size, parallel.device_count())
  if parallel.process_count() > 1 and found < parallel.device_count():
    raise errors.UserError(
      f'batches of {size} are not a multiple of the {parallel.device_count()} devices; change '
      'train.batch_size or train.micro_batch, or use one host, which trains several arms at once'
    )
  return found


def train(
  todo: Sequence[Training],
  run: Callable[[Training], None],
  *,
  arms: Mapping[str, experiment.Arm],
  stopper: console.Stopper,
) -> None:
  """Calls run(training) for all of `todo`, for each after the arms that it needs.

  One whose batches all devices can share runs alone. Others run at once, each on devices of its own
  and with the result that it has there alone; if one of them fails the others end first.
  """
  left = list(todo)
  while left:
    waits = lambda arm, trial: {(need, trial) for need in arms[arm].needs} & {*left}  # noqa: B023
    ready = [one for one in left if not waits(*one)]
    size = devices_of(arms[ready[0][0]].train)
    if size == parallel.device_count():
      done = ready[:1]
      run(done[0])
    else:
      done = [one for one in ready if devices_of(arms[one[0]].train) == size]
      _at_once(done, run, size=size, stopper=stopper)
    parallel.drop_compiled_programs()
    left = [one for one in left if one not in done]


def _at_once(trainings, run, *, size, stopper):
  count = parallel.device_count()
  if len(trainings) > 1:
    console.say(f'up to {count // size} trainings at once, each on {size} of {count} devices')
  free: queue.SimpleQueue[int] = queue.SimpleQueue()
  for first in range(0, count, size):
    free.put(first)

  def work(training):
    first = free.get()
    try:
      with parallel.on_devices(first, size):
        run(training)
    finally:
      free.put(first)

  with concurrent.futures.ThreadPoolExecutor(count // size) as pool:
    started = [pool.submit(work, training) for training in trainings]
    try:
      concurrent.futures.wait(started)
    except KeyboardInterrupt:
      stopper.request()
      raise
  for one in started:
    one.result()

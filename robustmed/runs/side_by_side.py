"""The order of trainings, and several at once where one cannot use all devices."""

import concurrent.futures
import math
import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from robustmed.process import compiled, console, parallel
from robustmed.runs import experiment

Training = tuple[str, Any]  # arm, trial
WORTH = 0.9  # share of real examples from which a padded batch is worth all devices of one host


def held(options: Mapping[str, Any]) -> int:
  """How many examples of a batch are in memory at a time, on all devices together."""
  return min(options.get('micro_batch', 0) or options['batch_size'], options['batch_size'])


class Share(NamedTuple):
  """How the batches of a training lie on the devices."""

  devices: int  # of all, those that share a batch
  padded: int  # examples of a batch with its padding, a multiple of the devices
  idle: int  # devices that get nothing but padding


def share_of(options: Mapping[str, Any], *, hosts: int | None = None) -> Share:
  """How a training of these options uses the devices.

  Batches, or micro-batches, that are no multiple of the devices are padded where that wastes little
  or where there are several hosts. Otherwise so many devices share them evenly as are a share of
  all.
  """
  count, size = parallel.device_count(), held(options)
  hosts = parallel.process_count() if hosts is None else hosts
  each = -(-size // count)
  if hosts == 1 and size < WORTH * each * count:
    count = math.gcd(size, count)
    each = size // count
  parts = options['batch_size'] // size
  return Share(count, parts * each * count, count - -(-size // each))


def train(
  todo: Sequence[Training],
  run: Callable[[Training], None],
  *,
  arms: Mapping[str, experiment.Arm],
  stopper: console.Stopper,
) -> None:
  """Calls run(training) for all of `todo`, for each after the arms that it needs.

  One whose batches all devices share (`share_of`) runs alone. Others run at once, each on devices
  of its own and with the result that it has there alone; if one of them fails the others end first.
  """
  devices_of = lambda arm: share_of(arms[arm].train).devices
  left = list(todo)
  while left:
    waits = lambda arm, trial: {(need, trial) for need in arms[arm].needs} & {*left}  # noqa: B023
    ready = [one for one in left if not waits(*one)]
    size = devices_of(ready[0][0])
    if size == parallel.device_count():
      done = ready[:1]
      run(done[0])
    else:
      done = [one for one in ready if devices_of(one[0]) == size]
      _at_once(done, run, size=size, stopper=stopper)
    compiled.drop_programs()
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

"""Prepares cases in parallel threads and yields them in order, with progress."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from robustmed.process import console


def map_in_order(
  function: Callable[[Any], Any], items: Sequence[Any], *, name: str, workers: int = 0
) -> Iterator[Any]:
  """Yields `function(item)` in the order of `items`, computed by `workers` threads.

  workers 0: one per core. At most twice as many results are computed ahead. An exception is raised
  when its item is due; items that have not started by then are cancelled.
  """
  workers = min(workers or os.cpu_count() or 1, max(1, len(items)))
  progress = console.Progress(name, len(items))
  executor = concurrent.futures.ThreadPoolExecutor(workers)
  waiting = collections.deque()
  try:
    rest = iter(items)
    for done in range(len(items)):
      while len(waiting) < 2 * workers and (item := next(rest, waiting)) is not waiting:
        waiting.append(executor.submit(function, item))
      yield waiting.popleft().result()
      progress.update(done + 1)
  finally:
    executor.shutdown(wait=True, cancel_futures=True)
    progress.close()

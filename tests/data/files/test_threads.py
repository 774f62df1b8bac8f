import threading
import time

import pytest

from robustmed import errors
from robustmed.data.files import threads


def test_order_and_number_of_threads():
  seen, running, most = set(), [0], [0]
  lock = threading.Lock()

  def work(item):
    with lock:
      running[0] += 1
      most[0] = max(most[0], running[0])
      seen.add(threading.get_ident())
    time.sleep(0.002 * (5 - item % 5))
    with lock:
      running[0] -= 1
    return item * item

  assert list(threads.map_in_order(work, range(12), name='x', workers=3)) == [
    n**2 for n in range(12)
  ]
  assert most[0] <= 3 and len(seen) <= 3
  assert list(threads.map_in_order(work, [], name='x')) == []


def test_only_a_few_results_wait():
  begun = []
  rows = threads.map_in_order(lambda n: begun.append(n) or n, range(100), name='x', workers=2)
  assert next(rows) == 0
  time.sleep(0.02)
  assert len(begun) <= 4
  rows.close()
  assert len(begun) <= 4


def test_an_error_comes_at_its_turn():
  def work(item):
    if item == 2:
      raise errors.UserError('case 2 is bad')
    return item

  rows = threads.map_in_order(work, range(50), name='x', workers=2)
  assert [next(rows), next(rows)] == [0, 1]
  with pytest.raises(errors.UserError, match='case 2'):
    next(rows)

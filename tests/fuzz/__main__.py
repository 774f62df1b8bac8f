"""Reads damaged inputs: python -m tests.fuzz --count 20000 --seed 1."""

import argparse
import collections
import os
import pathlib
import sys
import time

# Every thread of XLA takes address space, of which a worker has little.
os.environ.update(NPROC='2', XLA_FLAGS='')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fuzz import harness, known, readers


def main() -> int:
  parser = argparse.ArgumentParser(prog='python -m tests.fuzz', description=__doc__)
  parser.add_argument('--count', type=int, default=600, help='damaged inputs')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', default='', help='readers whose names contain this')
  given = parser.parse_args()
  table = {name: one for name, one in readers.table().items() if given.only in name}
  start = time.monotonic()
  results = harness.run(table, harness.cases(table, count=given.count, seed=given.seed))
  failures, excused = known.divided(results)
  for result in failures:
    case = result.case
    print(f'{result.outcome}: {case.reader} {case.damage} {case.seed}: {result.detail!r}')
  for (reader, damage), (outcome, reason) in known.KNOWN.items():
    print(f'known: {outcome} of {reader} after {damage}: {reason}')
  counts = collections.Counter(result.outcome for result in results)
  print(
    f'{len(results)} inputs of {len(table)} readers in {time.monotonic() - start:.0f} s: {counts}'
  )
  print(f'{len(failures)} failures, {len(excused)} known')
  return 1 if failures else 0


if __name__ == '__main__':
  sys.exit(main())

"""What a check says."""

from collections.abc import Sequence
from typing import NamedTuple

STATUSES = ('pass', 'warn', 'fail', 'skipped')


class Check(NamedTuple):
  """The result of one check of one arm."""

  name: str
  arm: str
  status: str  # one of STATUSES
  detail: str


def worst(checks: Sequence[Check]) -> str:
  """The most severe status among the checks; 'skipped' without any."""
  order = ('fail', 'warn', 'pass', 'skipped')
  return min((check.status for check in checks), key=order.index, default='skipped')

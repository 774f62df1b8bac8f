"""Failures that are known and not mended: {(reader, damage): (outcome, reason)}."""

from collections.abc import Sequence

from fuzz import harness

KNOWN: dict[tuple[str, str], tuple[str, str]] = {}


def divided(
  results: Sequence[harness.Result],
) -> tuple[list[harness.Result], list[harness.Result]]:
  """Returns (failures, known failures) of the results."""
  failures, excused = [], []
  for result in results:
    if result.outcome in harness.PASSED:
      continue
    known = KNOWN.get((result.case.reader, result.case.damage))
    (excused if known and known[0] == result.outcome else failures).append(result)
  return failures, excused

"""Partitions of cases into folds: one fold as it was published, or all of them for one run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from robustmed import errors
from robustmed.data import store

FOLDS = 5
FIELDS = {
  'fold': 0,
  'folds': 0,  # 0: the published five, whose held-out cases are for validation and test
  'all_test': False,  # True: all held-out cases of a published fold are for test
}
_SEED = 12345  # of the published folds


def held_out(count: int, fold: int = 0, folds: int = FOLDS) -> list[int]:
  """Returns the sorted positions, of `count` names, that a shuffled partition holds out.

  The published folds are scikit-learn's KFold(5, shuffle=True, random_state=12345).
  """
  order = np.arange(count)
  np.random.RandomState(_SEED).shuffle(order)
  return sorted(np.array_split(order, folds)[fold].tolist())


def partition(count: int, *, fold: int, folds: int, all_test: bool = False) -> dict[str, list[int]]:
  """Returns which of `count` cases are for 'train', 'test' and 'validation'.

  With `folds` 0 the held-out cases of the published fold are for both others: 'validation' is their
  first third, absent where that is less than one case, and 'test' the rest. With `all_test`,
  or with other `folds`, all held-out cases of the fold are for 'test', so that over the folds every
  case is tested once, and all others for 'train'.
  """
  held = held_out(count, fold, folds or FOLDS)
  third = len(held) // 3 if not (folds or all_test) else 0
  aside, test = held[:third], held[third:]
  train = sorted(set(range(count)) - set(held))
  return {'train': train, 'test': test, **({'validation': aside} if aside else {})}


def of_fold(source, fields: Mapping[str, Any], facts: Mapping[str, Any]):
  """Returns the source and the facts of the fold `fields['fold']`, cut out of all cases."""
  if not fields['folds']:
    return source, facts
  groups, names = source.test.groups, facts['cases']['test']
  named = dict(zip(sorted(set(groups)), names, strict=True))
  parts, cases, present = {}, {}, {}
  for name, chosen in facts['folds'][fields['fold']].items():
    places = np.flatnonzero(np.isin(groups, chosen)).tolist()
    parts[name] = store.Part(source.test, places)
    cases[name] = [named[number] for number in chosen]
    present[name] = [facts['present']['test'][place] for place in places]
  return source._replace(**parts), {**facts, 'cases': cases, 'present': present}


def check(fields: Mapping[str, Any]) -> None:
  if fields['folds'] < 0 or fields['folds'] == 1:
    raise errors.UserError(
      f'data field folds must be 0 (one of the published folds) or at least 2, not '
      f'{fields["folds"]}'
    )
  folds = fields['folds'] or FOLDS
  if not 0 <= fields['fold'] < folds:
    raise errors.UserError(f'data field fold must be 0 to {folds - 1}, not {fields["fold"]}')


def key(fields: Mapping[str, Any]) -> int | str:
  """Returns what prepared data depend on of the fields of folds: all folds share them."""
  if fields['folds']:
    return f'{fields["folds"]} folds'
  return f'{fields["fold"]}, without validation' if fields['all_test'] else fields['fold']

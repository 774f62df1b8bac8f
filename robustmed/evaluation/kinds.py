"""The kinds of tests that decide claims; `claims` makes them, `hypotheses` computes them.

Here are those on cells of the grid; `sample_kinds` has the others.

Each names its estimand, which is printed in the claims table. tests/calibration measures the error
rates of every kind through the same functions; a kind without an entry there fails a test.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed.evaluation import hypotheses, statistics


class Outcome(NamedTuple):
  """What a test found in the rows of one seed."""

  numbers: str  # for the reader
  effect: float  # distance inside the claimed interval; above 0 = in the claimed direction
  p: float  # evidence for the claim; nan = no test: not run if there is a reason, else measured
  opposite: float  # evidence against it
  reason: str = ''  # why it was not run
  least: float = 0.0  # the smallest p that these numbers of groups allow
  short: str = ''  # why these runs cannot decide the claim, whatever their numbers are


class Kind(abc.ABC):
  """A test: prepared rows of one seed -> Outcome. Its `str` says what is claimed."""

  over_runs = False  # whether it wants the rows of all seeds at once

  @property
  @abc.abstractmethod
  def estimand(self) -> str:
    """What is estimated, and by which test."""

  def least(self, groups: int) -> float:
    """The smallest p that rows of so many groups can have; nan if their number does not tell."""
    return 0.5**groups

  @abc.abstractmethod
  def __call__(self, rows: pd.DataFrame) -> Outcome:
    """Tests the claim."""


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cell of the grid; eps 0 is the clean image."""

  arm: str
  attack: str = statistics.CLEAN
  eps: float = 0.0

  def __str__(self):
    return f'{self.arm}, clean' if self.eps == 0 else f'{self.arm}, {self.attack} {self.eps:g}'


@dataclasses.dataclass(frozen=True)
class Level(Kind):
  """Is the median over groups of the metric of `first` between `low` and `high`?"""

  metric: str
  first: Cell
  low: float
  high: float
  reason: str = ''  # of a bound

  second = None
  estimand = hypotheses.MEDIAN

  def __str__(self):
    return between(f'{self.metric}({self.first})', self)

  def __call__(self, rows: pd.DataFrame) -> Outcome:
    kept = known(rows, self.metric, [(1.0, self.first)])
    if isinstance(kept, Outcome):
      return kept
    means = statistics.group_means(kept['value'].to_numpy(), kept['group'].to_numpy())
    found = hypotheses.median_test(means, low=self.low, high=self.high)
    shown = f'mean {kept["value"].mean():.4g}, median of group means {shown_limits(found)}'
    return outcome(found, f'{shown}, {len(means)} groups', low=self.low, high=self.high)


@dataclasses.dataclass(frozen=True)
class Contrast(Kind):
  """Is a weighted sum of the metric over cells, paired by example, between `low` and `high`?"""

  metric: str
  terms: tuple[tuple[float, Cell], ...]
  low: float
  high: float
  reason: str = ''  # of a bound

  estimand = hypotheses.MEAN

  def __str__(self):
    parts = ''
    for weight, cell in self.terms:
      times = '' if abs(weight) == 1 else f'{abs(weight):.3g} '
      sign = ('- ' if weight < 0 else '+ ') if parts else ('-' if weight < 0 else '')
      parts += f'{" " if parts else ""}{sign}{times}{self.metric}({cell})'
    return between(parts, self)

  def __call__(self, rows: pd.DataFrame) -> Outcome:
    kept = known(rows, self.metric, self.terms)
    if isinstance(kept, Outcome):
      return kept
    means = statistics.group_means(kept['value'].to_numpy(), kept['group'].to_numpy())
    found = hypotheses.mean_test(means, low=self.low, high=self.high)
    cells = ', '.join(f'{kept[place].mean():.4g}' for place in range(len(self.terms)))
    name = 'difference' if [w for w, _ in self.terms] == [1, -1] else 'contrast'
    shown = f'{cells}; {name} of group means {shown_limits(found)}, {len(means)} groups'
    return outcome(found, shown, low=self.low, high=self.high)


@dataclasses.dataclass(frozen=True)
class Difference(Contrast):
  """Is the metric of `first` minus that of `second`, paired by example, between low and high?"""

  @property
  def first(self) -> Cell:
    return self.terms[0][1]

  @property
  def second(self) -> Cell:
    return self.terms[1][1]


@dataclasses.dataclass(frozen=True)
class BestOf(Kind):
  """Is the metric of an arm better than that of every rival, paired by example?"""

  metric: str
  first: Cell
  rivals: tuple[Cell, ...]
  higher: bool

  @property
  def estimand(self) -> str:
    return f'{hypotheses.MEAN}; holds by the largest p, fails by the smallest times the rivals'

  def __str__(self):
    names = ', '.join(cell.arm for cell in self.rivals)
    sign = '>' if self.higher else '<'
    return f'{self.metric}({self.first}) {sign} that of each of {names}'

  def __call__(self, rows: pd.DataFrame) -> Outcome:
    sign = 1.0 if self.higher else -1.0
    tests = [
      Contrast(self.metric, ((sign, self.first), (-sign, rival)), 0.0, math.inf)
      for rival in self.rivals
    ]
    found = [test(rows) for test in tests]
    for one in found:
      if one.reason:
        return one
    p, opposite = hypotheses.best_of([one.p for one in found], [one.opposite for one in found])
    nearest = int(np.argmin([one.effect for one in found]))
    return Outcome(
      numbers=f'next best {self.rivals[nearest].arm}: {found[nearest].numbers}',
      effect=found[nearest].effect,
      p=float(p),
      opposite=float(opposite),
      least=max(one.least for one in found),
    )


@dataclasses.dataclass(frozen=True)
class AtLeast(Kind):
  """Are at least `number` of the statements of `tests` true?"""

  tests: tuple[Kind, ...]
  number: int

  @property
  def estimand(self) -> str:
    return f'{self.tests[0].estimand}; partial conjunction'

  def least(self, groups: int) -> float:
    return (len(self.tests) - self.number + 1) * max(test.least(groups) for test in self.tests)

  def __str__(self):
    return f'at least {self.number} of {len(self.tests)}: {"; ".join(map(str, self.tests))}'

  def __call__(self, rows: pd.DataFrame) -> Outcome:
    found = [test(rows) for test in self.tests]
    for one in found:
      if one.reason:
        return one
    p, opposite = hypotheses.at_least(
      [one.p for one in found], [one.opposite for one in found], number=self.number
    )
    effects = sorted((one.effect for one in found), reverse=True)
    inside = sum(one.effect > 0 for one in found)
    names = [getattr(test, 'first', test) for test in self.tests]
    shown = [f'{name}: {one.numbers}' for name, one in zip(names, found, strict=True)]
    return Outcome(
      numbers=f'{inside} of {len(found)} lie so: {"; ".join(shown)}',
      effect=effects[self.number - 1],
      p=float(p),
      opposite=float(opposite),
      least=(len(found) - self.number + 1) * max(one.least for one in found),
    )


@dataclasses.dataclass(frozen=True)
class Elsewhere(Kind):
  """`test` on the rows of `frame`, of the seeds of the rows that it is given."""

  test: Kind
  frame: pd.DataFrame = dataclasses.field(repr=False, compare=False)

  @property
  def estimand(self) -> str:
    return self.test.estimand

  @property
  def over_runs(self) -> bool:
    return self.test.over_runs

  def least(self, groups: int) -> float:
    return self.test.least(groups)

  def __str__(self):
    return str(self.test)

  def __call__(self, rows: pd.DataFrame) -> Outcome:
    if 'seed' not in self.frame.columns:
      return self.test(self.frame)
    return self.test(self.frame[self.frame['seed'].isin(rows['seed'].unique())])


@dataclasses.dataclass(frozen=True)
class Repeated(Kind):
  """`test` in each of `runs` trainings; with fewer than `needed` it decides nothing, as what is
  claimed of a setting could be the luck of one training."""

  test: Kind
  runs: int
  needed: int

  @property
  def estimand(self) -> str:
    return f'{self.test.estimand}, in each of at least {self.needed} trainings'

  def least(self, groups: int) -> float:
    return self.test.least(groups) if self.runs >= self.needed else math.nan

  def __str__(self):
    return str(self.test)

  def __call__(self, rows: pd.DataFrame) -> Outcome:
    found = self.test(rows)
    if found.reason or self.runs >= self.needed:
      return found
    short = f'{self.runs} of at least {self.needed} trainings (config.seeds)'
    return found._replace(p=math.nan, opposite=math.nan, short=short)


def not_run(reason: str) -> Outcome:
  return Outcome(numbers='', effect=math.nan, p=math.nan, opposite=math.nan, reason=reason)


def outcome(found: hypotheses.Finding, numbers: str, *, low: float, high: float) -> Outcome:
  """What a test of one run says of the bounds that it was given."""
  return Outcome(
    numbers=numbers,
    effect=float(hypotheses.effect(found.estimate, low=low, high=high)),
    p=float(found.p),
    opposite=float(found.opposite),
    least=float(found.least),
  )


def known(rows, metric: str, terms: Sequence[tuple[float, Cell]], *, by=('group', 'index')):
  """`statistics.contrast` of the cells, or why there is none; `by` are the columns of group and
  index."""
  if metric not in rows.columns:
    return not_run(f'no metric {metric}')
  parts = []
  for weight, cell in terms:
    part = statistics.select(rows, **dataclasses.asdict(cell))
    if part.empty:
      return not_run(f'no rows for {cell}')
    parts.append((weight, part.assign(group=part[by[0]], index=part[by[1]])))
  kept = statistics.contrast(parts, metric=metric)
  return kept if len(kept) else not_run(f'no finite value of {metric} to compare')


def between(what: str, test) -> str:
  if math.isinf(test.high):
    said = f'{what} > {test.low:g}'
  elif math.isinf(test.low):
    said = f'{what} < {test.high:g}'
  else:
    said = f'{test.low:g} < {what} < {test.high:g}'
  reason = getattr(test, 'reason', '')
  return f'{said} ({reason})' if reason else said


def shown_limits(found: hypotheses.Finding) -> str:
  return f'{found.estimate:.4g} [{found.low:.4g}, {found.high:.4g}]'

"""What Chen et al. 2019 say of synthesised attacks, as tests on our subjects."""

import dataclasses
import math
from collections.abc import Mapping

import pandas as pd

from robustmed.evaluation import claims, statistics

TABLE, TEXT, LOSS = 'Table 1', 'Section 4.2', 'Section 3.2'
SUCCESS = 0.7  # of the clean Dice: a fall of 30 % is a success (section 4)
MISS = 0.2  # of xi: further away counts as not reached
LARGE = 3.0  # the paper's largest xi, which it reaches
HARD, SOFT = ('pancreas', 'kidneys'), ('liver', 'spleen')
FROM = {**dict.fromkeys(HARD, 2.0), **dict.fromkeys(SOFT, 1.0)}  # the xi from which they fall
OWN_HARM = 0.1  # Dice
Stops = Mapping[tuple[float, int], str]  # (xi, seed) -> why a generator's training ended early


@dataclasses.dataclass(frozen=True)
class Collapse(claims.Kind):
  """Does the training of a generator collapse: did it end early, and is X far from xi?

  `missed` tests the latter. A training that ended early speaks for a collapse alone, one that went
  to its end against it alone.
  """

  missed: claims.Kind
  xi: float
  stops: Stops = dataclasses.field(repr=False, compare=False)

  @property
  def estimand(self) -> str:
    return f'{self.missed.estimand}, of trainings that ended early'

  def __str__(self):
    return f'{self.missed}, and the training ended early'

  def __call__(self, rows: pd.DataFrame) -> claims.Outcome:
    if math.isinf(self.xi):
      return claims.not_run(f'no xi above {LARGE:g} in config.synthesis.levels')
    found = self.missed(rows)
    if found.reason:
      return found
    stop = self.stops.get((self.xi, int(rows['seed'].iloc[0])), '')
    numbers = f'{found.numbers}; {f"ended early: {stop}" if stop else "went to its end"}'
    if stop:
      return found._replace(numbers=numbers, opposite=1.0)
    return found._replace(numbers=numbers, effect=min(found.effect, 0.0), p=1.0)


def of_paper(
  subjects: pd.DataFrame,
  *,
  target: str,
  levels: tuple[float, ...],
  single: float,
  stops: Stops | None = None,
) -> list[claims.Claim]:
  """The paper's claims; `levels` are those above 0, rising, `single` that of D or V alone."""
  found = []
  if not len(subjects):
    subjects = pd.DataFrame(columns=[*statistics.KEYS, 'group', 'X'])
  subjects = subjects.assign(miss=(subjects['X'] - subjects['eps']).abs() - MISS * subjects['eps'])
  at = lambda xi, attack='dv': claims.Cell(target, attack, xi)

  def add(statement, test, place=TABLE):
    found.append(claims.Claim(statement, place, claims.Elsewhere(test, subjects)))

  def line(cell, organ, **bounds):
    terms = (1.0, cell), (-SUCCESS, claims.Cell(target))
    return claims.contrast(*terms, metric=f'DICE_{organ}', **bounds)

  said = [xi for xi in levels if xi <= LARGE]
  if len(said) > 1:
    low, high = said[0], said[-1]
    add(
      f'Dice falls with xi ({high:g} against {low:g})',
      claims.inside(at(high), at(low), metric='DICE', high=0.0),
    )
    add(
      f'Perceptibility grows with xi ({high:g} against {low:g})',
      claims.inside(at(high), at(low), metric='p', low=0.0),
    )
  for xi in said:
    for organ in (*HARD, *SOFT):
      falls = xi >= FROM[organ]
      test = line(at(xi), organ, **({'high': 0.0} if falls else {'low': 0.0}))
      what = 'falls by 30 % or more' if falls else 'falls by less than 30 %'
      add(f'At xi {xi:g} Dice of the {organ} {what}', test)
  d, v = at(single, 'd'), at(single, 'v')
  for organ in (*HARD, *SOFT):
    first, second, name = (d, v, 'D') if organ == 'kidneys' else (v, d, 'V')
    add(
      f'{name} alone hurts the {organ} more than the other field alone',
      claims.inside(first, second, metric=f'DICE_{organ}', high=0.0),
      TEXT,
    )
  for cell, name in ((d, 'D'), (v, 'V')):
    for organ in HARD:
      add(
        f'{name} alone does not bring the {organ} below the line of 30 %',
        line(cell, organ, low=0.0),
      )
  found.append(_collapse(subjects, at, levels, stops or {}))
  return found


def _collapse(subjects, at, levels, stops) -> claims.Claim:
  """Section 3.2 says it of very large xi, more than those of Table 1."""
  large = [xi for xi in levels if xi > LARGE]
  xi = large[-1] if large else math.inf
  missed = dataclasses.replace(
    claims.inside(at(xi), metric='miss', low=0.0),
    reason=f'X is further than {MISS:g} xi from xi; ours',
  )
  test = claims.Elsewhere(Collapse(missed, xi, stops), subjects)
  shown = f' ({xi:g})' if large else f', above {LARGE:g},'
  return claims.Claim(f'A very large xi{shown} is not reached: training collapses', LOSS, test)


def beyond(
  subjects: pd.DataFrame, *, target: str, hardened: str, single: float, fresh: float
) -> list[claims.Claim]:
  """Claims of ours about controls and hardening, which is the paper's future work."""
  found = []
  place = 'not in the paper'
  at = lambda arm, attack, xi: claims.Cell(arm, attack, xi)

  def add(statement, test):
    found.append(claims.Claim(statement, place, claims.Elsewhere(test, subjects)))

  add(
    f'A generator at xi {single:g} does more harm than a random smooth change of the same p',
    claims.inside(at(target, 'dv', single), at(target, 'smooth', single), metric='DICE', high=0.0),
  )
  add(
    'The harm is not honest displacement: Dice against the truth moved with D is as low',
    dataclasses.replace(
      claims.inside(at(target, 'dv', single), metric='moved_gain', high=OWN_HARM),
      reason='ours',
    ),
  )
  add(
    f'Hardening helps against the generator that it was trained with (xi {fresh:g})',
    claims.inside(
      at(hardened, f'dv_from_{target}', fresh), at(target, 'dv', fresh), metric='DICE', low=0.0
    ),
  )
  add(
    f'Hardening helps against a fresh generator (xi {fresh:g})',
    claims.inside(at(hardened, 'dv', fresh), at(target, 'dv', fresh), metric='DICE', low=0.0),
  )
  return found


def hardened_under_pgd(*, target: str, hardened: str, eps: float) -> claims.Claim:
  test = claims.greater(hardened, target, metric='DICE', attack='pgd', eps=eps)
  return claims.Claim(f'Hardening helps under PGD at {eps:g}', 'not in the paper', test)

"""What Chen et al. 2019 say of synthesised attacks, as tests on our subjects."""

import pandas as pd

from robustmed.evaluation import claims

TABLE, TEXT, LOSS = 'Table 1', 'Section 4.2', 'Section 3.2'
MISS = 0.2  # of xi: further away counts as not reached
EARLY, ALL = 1.0, 2.0  # from which xi liver and spleen, and all organs, are attacked
LARGE = 3.0  # the paper's largest xi
HARD, SOFT = ('pancreas', 'kidneys'), ('liver', 'spleen')


def of_paper(
  subjects: pd.DataFrame, *, target: str, levels: tuple[float, ...], single: float
) -> list[claims.Claim]:
  """The paper's claims; `levels` are those above 0, rising, `single` that of D or V alone."""
  found = []
  if not len(subjects):
    return found
  subjects = subjects.assign(miss=(subjects['X'] - subjects['eps']).abs() - MISS * subjects['eps'])
  at = lambda xi, attack='dv': claims.Cell(target, attack, xi)

  def add(statement, test, place=TABLE):
    found.append(claims.Claim(statement, place, claims.Elsewhere(test, subjects)))

  low, high = levels[0], levels[-1]
  if low < high:
    add(
      f'Dice falls with xi ({high:g} against {low:g})',
      claims.inside(at(high), at(low), metric='DICE', high=0.0),
    )
    add(
      f'Perceptibility grows with xi ({high:g} against {low:g})',
      claims.inside(at(high), at(low), metric='p', low=0.0),
    )
  for xi in levels:
    organs = (*HARD, *SOFT) if xi >= ALL else SOFT if xi >= EARLY else ()
    for organ in organs:
      add(
        f'At xi {xi:g} Dice of the {organ} falls by 30 % or more',
        claims.inside(at(xi), metric=f'line_{organ}', high=0.0),
      )
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
        claims.inside(cell, metric=f'line_{organ}', low=0.0),
        TEXT,
      )
  add(
    f'A very large xi ({max(high, LARGE):g}) is not reached: training collapses',
    claims.inside(at(max(high, LARGE)), metric='miss', low=0.0),
    LOSS,
  )
  return found


def beyond(
  subjects: pd.DataFrame, *, target: str, hardened: str, single: float, fresh: float
) -> list[claims.Claim]:
  """Claims of ours about controls and hardening, which is the paper's future work."""
  found = []
  if not len(subjects):
    return found
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
    claims.inside(at(target, 'dv', single), metric='moved_gain', high=0.1),
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

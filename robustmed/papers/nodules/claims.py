"""What Liu et al. 2020 say of hardened nodule networks, as tests on scans and stressed patches."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from robustmed.evaluation import claims, statistics
from robustmed.metrics import froc

TABLE_3, TABLE_4, TABLE_5, TABLE_6 = (f'Table {number}' for number in (3, 4, 5, 6))
TEXT, OURS = 'Discussion', 'not in the paper'
ABOUT_EQUAL = 0.02  # CPM
FOOLED, RESISTS = 0.5, 0.3  # confidence on what is no nodule
LOW_RATES = (0.125, 0.25)  # false positives per scan
DETECTS = 0.9  # AUROC from which a score would be enough of a detector
FAITHFUL = 0.05  # confidence that '+syn' may lack on searched nodules against random ones
POISSON = 5.0  # photons at which noise is compared

Submissions = Mapping[tuple[str, int], froc.Scored]


@dataclasses.dataclass(frozen=True)
class Cpm(claims.Kind):
  """Is the difference of two networks' mean sensitivity inside (low, high)? Decided by drawing the
  scans again, the same ones for both networks."""

  first: str
  second: str
  scored: Submissions = dataclasses.field(repr=False, compare=False)
  low: float = -math.inf
  high: float = math.inf
  rates: tuple[float, ...] = froc.RATES
  resamples: int = 1000

  estimand = 'mean sensitivity of the network, bootstrap over scans'

  def __str__(self):
    rates = ' and '.join(f'{rate:g}' for rate in self.rates)
    name = 'CPM' if self.rates == froc.RATES else f'sensitivity at {rates} '
    what = f'{name}({self.first}) - {name}({self.second})'
    if math.isinf(self.high):
      return f'{what} > {self.low:g}'
    if math.isinf(self.low):
      return f'{what} < {self.high:g}'
    return f'{self.low:g} < {what} < {self.high:g}'

  def __call__(self, rows: pd.DataFrame) -> claims.Outcome:
    seed = int(rows['seed'].iloc[0])
    for arm in (self.first, self.second):
      if (arm, seed) not in self.scored:
        return claims.not_run(f'no submission of {arm} (seed {seed})')
    one, two = (self.scored[arm, seed] for arm in (self.first, self.second))
    value, drawn = difference(one, two, rates=self.rates, resamples=self.resamples)
    if not len(drawn):
      return claims.not_run('no draw of the scans has a nodule')
    at_least = lambda hits: (1 + float(np.sum(hits))) / (1 + len(drawn))
    bounds = [(self.low, drawn <= self.low, drawn >= self.low)] * math.isfinite(self.low)
    bounds += [(self.high, drawn >= self.high, drawn <= self.high)] * math.isfinite(self.high)
    low, high = np.quantile(drawn, froc.BOUNDS)
    return claims.Outcome(
      numbers=f'difference {value:+.4f} [{low:+.4f}, {high:+.4f}], {len(one.nodules)} scans',
      effect=float(min(value - self.low, self.high - value)),
      p=max(at_least(against) for _, against, _ in bounds),
      opposite=min(1.0, len(bounds) * min(at_least(inside) for _, _, inside in bounds)),
      least=1 / (1 + len(drawn)),
    )


def difference(
  one: froc.Scored, two: froc.Scored, *, rates: tuple[float, ...], resamples: int
) -> tuple[float, np.ndarray]:
  """Difference of the mean sensitivities at `rates` and its draws, without those with no nodule."""
  value = float(np.mean(froc.sensitivity_at(one, rates) - froc.sensitivity_at(two, rates)))
  draws = lambda scored: froc.resampled(scored, rates=rates, resamples=resamples).mean(axis=1)
  drawn = draws(one) - draws(two)
  return value, drawn[np.isfinite(drawn)]


def of_paper(
  scored: Submissions,
  stress: pd.DataFrame,
  made: pd.DataFrame,
  *,
  baseline: str,
  control: str,
  eps: float,
  code_eps: float,
  resamples: int = 1000,
) -> tuple[claims.Claim, ...]:
  """The claims of the paper; `eps` and `code_eps` are those of the searches of stress tests.

  control: the baseline trained on for as long as the variants. Whether what variants learn from is
  of help on whole scans is decided against it, else steps and schedule would be, too.
  """
  found: list[claims.Claim] = []

  def cpm(statement, first, second, **bounds):
    test = Cpm(first, second, scored, resamples=resamples, **bounds)
    found.append(claims.Claim(statement, TABLE_3, test))

  def cell(statement, first, second=None, *, place, frame=stress, metric='confidence', **bounds):
    if not len(frame):
      frame = pd.DataFrame(columns=[*statistics.KEYS, 'group'])
    test = claims.Elsewhere(claims.inside(first, second, metric=metric, **bounds), frame)
    found.append(claims.Claim(statement, place, test))

  at = claims.Cell
  codes = lambda arm: at(arm, 'codes', code_eps)
  cpm('Searched codes help more than random ones (CPM)', 'syn', 'syn_random', low=0.0)
  cpm(
    'Searched codes help more than random ones at few false positives',
    'syn',
    'syn_random',
    low=0.0,
    rates=LOW_RATES,
  )
  cpm(
    'Synthetic nodules help more than training on as long without them (CPM)',
    'syn',
    control,
    low=0.0,
  )
  cpm('Attacked patches help no more than synthetic nodules', 'perturb', 'syn', high=0.0)
  cpm(
    'The beta loss is about as good as cross-entropy',
    'beta',
    'ce',
    low=-ABOUT_EQUAL,
    high=ABOUT_EQUAL,
  )
  cpm('Fine-tuning with the beta loss is better than training with it', baseline, 'beta', low=0.0)
  cpm(
    'Poisson noise helps more than attacked patches on clean scans', 'poisson', 'perturb', low=0.0
  )
  cell(
    'Searched codes lower the confidence of the baseline more than random ones',
    codes(baseline),
    at(baseline, 'random', 1.0),
    place=TABLE_4,
    high=0.0,
  )
  cell(
    'Training with searched codes restores the confidence on them',
    codes('syn'),
    codes(baseline),
    place=TABLE_4,
    low=0.0,
  )
  cell(
    f'... to within {FAITHFUL:g} of that on random ones',
    codes('syn'),
    at('syn', 'random', 1.0),
    place=TABLE_4,
    low=-FAITHFUL,
  )
  cell(
    'Attacked nodules are hidden from the baseline',
    at(baseline, 'positives', eps),
    place=TABLE_5,
    high=FOOLED,
  )
  cell(
    'Training with attacked patches shows them again',
    at('perturb', 'positives', eps),
    at(baseline, 'positives', eps),
    place=TABLE_5,
    low=0.0,
  )
  cell(
    f'Training with Poisson noise is no better under it (L = {POISSON:g}) than with attacks',
    at('poisson', 'poisson', POISSON),
    at('perturb', 'poisson', POISSON),
    place=TABLE_5,
    high=0.0,
  )
  noise = lambda arm: at(arm, 'noise_pgd', eps)
  cell('Attacked noise fools the baseline', noise(baseline), place=TABLE_6, low=FOOLED)
  cell('... and not the network trained with it', noise('perturb'), place=TABLE_6, high=RESISTS)
  cell(
    'Training with Poisson noise resists attacked noise',
    noise('poisson'),
    noise(baseline),
    place=TABLE_6,
    high=0.0,
  )
  cell('... to below one half', noise('poisson'), place=TABLE_6, high=FOOLED)
  # Noise begins with no scan, so that its groups are none of the patches'.
  unsure = claims.auroc_below(
    noise(baseline),
    ('none', 'clean_negatives'),
    metric='uncertainty',
    threshold=DETECTS,
    shared=False,
  )
  found.append(
    claims.Claim(
      f'Uncertainty alone does not tell attacked noise from patches (AUROC below {DETECTS:g})',
      TEXT,
      claims.Elsewhere(unsure, stress),
    )
  )
  for metric, statement in (
    ('diameter', 'Searched nodules are smaller than random ones'),
    ('hu', 'Searched nodules are darker, more like ground glass, than random ones'),
  ):
    cell(
      statement,
      at('synthesiser', 'codes', 1.0),
      at('synthesiser', 'random', 1.0),
      place='Figures 5 and 8',
      frame=made,
      metric=metric,
      high=0.0,
    )
  return tuple(found)


def of_synthesiser(made: pd.DataFrame, *, outside: float) -> tuple[claims.Claim, ...]:
  """The paper shows pictures; here it is asked whether random codes make nodules at all."""
  if 'border' not in made.columns:
    return ()
  inside = claims.inside(claims.Cell('synthesiser', 'random', 1.0), metric='border', high=outside)
  statement = f'Random codes make nodules within their patch (at most {outside:.0%} in its border)'
  return (claims.Claim(statement, OURS, claims.Elsewhere(inside, made)),)


def beyond(stress: pd.DataFrame, *, eps: float) -> tuple[claims.Claim, ...]:
  """The circularity: patches of training and test come from one attacked network. Attacked by
  itself, is the hardened network fooled all the same?"""
  if not len(stress):
    return ()
  cell = lambda kind: claims.Cell('perturb', kind, eps)
  tests = (
    (
      'Attacked by itself, +perturb is fooled by noise',
      claims.inside(cell('own_noise_pgd'), metric='confidence', low=FOOLED),
    ),
    (
      'Attacked by itself, +perturb loses the nodules',
      claims.inside(cell('own_positives'), metric='confidence', high=FOOLED),
    ),
    (
      '+perturb is less sure of nodules attacked by itself than of those attacked by the baseline',
      claims.inside(cell('own_positives'), cell('positives'), metric='confidence', high=0.0),
    ),
  )
  return tuple(
    claims.Claim(statement, OURS, claims.Elsewhere(test, stress)) for statement, test in tests
  )

"""The claims table: what a paper says, tested on our rows, with one verdict per statement.

Every test asks whether an estimand lies inside an interval: above a threshold is (t, inf), below is
(-inf, t), close is (-tol, tol). The kinds of tests are in `evaluation.kinds` and `sample_kinds`,
their arithmetic in `evaluation.hypotheses`, and their error rates are measured in
tests/calibration. The estimand is printed with the test: levels of a metric are decided on the
median over groups, differences between cells on the mean over groups.

* `p` is against "it does not lie inside": the larger p of its finite bounds (for `close` this is
  the two one-sided tests of equivalence);
* `opposite` is against "it does not lie outside": the smaller p of the finite bounds, times their
  number.

Verdicts, with Holm's correction over all claims that could be tested:

* holds: the estimate lies inside and the corrected `p` is below alpha;
* fails: the estimate lies outside and the corrected `opposite` is below alpha;
* undecided: neither, so these data cannot tell; where no data of that many groups could, because
  the smallest p of the test is not below alpha, before or after Holm's correction over the smallest
  p of all claims, or no data of that few trainings (`repeated`), `numbers` says so;
* measured: a number with its spread that has no replicates to be tested with;
* not run: an arm, an attack, a level or a metric is missing; `numbers` says which.

Several training seeds: each seed is decided by itself. A claim holds only if it holds in every
seed, fails only if it fails in every seed, and is undecided otherwise; `p` and `p_holm` are those
of the weakest seed. With g groups no p can be below 2^-g.

Several folds: their groups are tested together, as each was tested by one network of an arm. The
verdict is conditional on these networks.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustmed.evaluation import hypotheses, kinds, sample_kinds, statistics

COLUMNS = ('statement', 'place', 'test', 'numbers', 'p', 'p_holm', 'verdict')
VERDICTS = ('holds', 'fails', 'undecided', 'measured', 'not run')
ALPHA = 0.05

Cell, Outcome, Kind, Elsewhere = kinds.Cell, kinds.Outcome, kinds.Kind, kinds.Elsewhere
not_run, outcome, between = kinds.not_run, kinds.outcome, kinds.between


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement, where the paper makes it, and the test that decides it."""

  statement: str
  place: str
  test: kinds.Kind


def inside(
  first: Cell,
  second: Cell | None = None,
  *,
  metric: str,
  low: float = -math.inf,
  high: float = math.inf,
) -> kinds.Level | kinds.Difference:
  """The mean difference of two cells (paired by example), or the median level of one cell."""
  _check(low, high)
  if second is None:
    return kinds.Level(metric, first, float(low), float(high))
  return kinds.Difference(metric, ((1.0, first), (-1.0, second)), float(low), float(high))


def contrast(
  *terms: tuple[float, Cell], metric: str, low: float = -math.inf, high: float = math.inf
) -> kinds.Contrast:
  """The mean of a weighted sum of cells, (weight, cell), paired by example."""
  _check(low, high)
  return kinds.Contrast(metric, terms, float(low), float(high))


def share_left(
  arm: str, reference: str, *, metric: str, shown: Cell, worst: Cell, share: float, above: bool
) -> kinds.Contrast:
  """The gain of `arm` over `reference` under `worst` is above (or below) `share` of that under
  `shown`, both cells of any arm: per group g_worst - share g_shown is above (or below) 0."""
  terms = []
  for weight, cell in ((1.0, worst), (-share, shown)):
    for sign, name in ((1, arm), (-1, reference)):
      terms.append((sign * weight, dataclasses.replace(cell, arm=name)))
  bounds = (0.0, math.inf) if above else (-math.inf, 0.0)
  return kinds.Contrast(metric, tuple(terms), *bounds)


def greater(
  arm_a: str,
  arm_b: str,
  *,
  metric: str,
  attack: str,
  eps: float,
  margin: float = 0.0,
  reason: str = '',
) -> kinds.Difference:
  """The mean of the metric of `arm_a` is above that of `arm_b` by more than `margin`; `reason` says
  where the margin comes from and is printed."""
  cells = Cell(arm_a, attack, eps), Cell(arm_b, attack, eps)
  test = inside(*cells, metric=metric, low=margin)
  return dataclasses.replace(test, reason=f'margin {margin:g}: {reason}' if reason else '')


def close(
  arm_a: str,
  arm_b: str,
  *,
  metric: str,
  attack: str,
  eps: float,
  tolerance: float,
  reason: str,
  above_only: bool = False,
) -> kinds.Difference:
  """The two arms' means differ by less than `tolerance`, in either direction (equivalence); with
  `above_only`, that of `arm_a` is above the other by less than that, if it is above at all.

  `reason` says where the tolerance comes from; it is printed.
  """
  cells = Cell(arm_a, attack, eps), Cell(arm_b, attack, eps)
  low = -math.inf if above_only else -tolerance
  test = inside(*cells, metric=metric, low=low, high=tolerance)
  return dataclasses.replace(test, reason=f'tolerance {tolerance:g}: {reason}')


def below(
  arm: str, *, metric: str, attack: str, eps: float, threshold: float, reason: str = ''
) -> kinds.Level:
  """The median of the metric over groups is below `threshold`; `reason` of it is printed."""
  test = inside(Cell(arm, attack, eps), metric=metric, high=threshold)
  return dataclasses.replace(test, reason=reason)


def above(
  arm: str, *, metric: str, attack: str, eps: float, threshold: float, reason: str = ''
) -> kinds.Level:
  """The median of the metric over groups is above `threshold`; `reason` of it is printed."""
  test = inside(Cell(arm, attack, eps), metric=metric, low=threshold)
  return dataclasses.replace(test, reason=reason)


def best_of(
  arm: str, rivals: Sequence[str], *, metric: str, attack: str, eps: float, higher: bool = True
) -> kinds.BestOf:
  """The arm is better than every rival; it fails if some rival is better than it."""
  cells = tuple(Cell(rival, attack, eps) for rival in rivals)
  if not cells:
    raise ValueError('the best of no rivals')
  return kinds.BestOf(metric, Cell(arm, attack, eps), cells, higher)


def at_least(number: int, tests: Sequence[kinds.Kind]) -> kinds.AtLeast:
  """At least `number` of the statements are true, such as "on almost all levels"."""
  return kinds.AtLeast(tuple(tests), number)


def auroc_below(
  positive: Cell,
  negatives: Sequence[str],
  *,
  metric: str,
  threshold: float,
  shared: bool,
  reason: str = '',
) -> sample_kinds.Auroc:
  """The metric tells `positive` from the same arm's rows under the attacks `negatives` with an
  AUROC below `threshold`; `shared`: groups of one name are the same patient; `reason` is printed.
  """
  return sample_kinds.Auroc(metric, positive, tuple(negatives), 0.0, threshold, shared, reason)


def auroc_above(
  positive: Cell,
  negatives: Sequence[str],
  *,
  metric: str,
  threshold: float,
  shared: bool,
  reason: str = '',
) -> sample_kinds.Auroc:
  """The same with an AUROC above `threshold`."""
  return sample_kinds.Auroc(metric, positive, tuple(negatives), threshold, 1.0, shared, reason)


def measured(
  cell: Cell, *, metric: str, low: float = -math.inf, high: float = math.inf, reason: str = ''
) -> sample_kinds.Measured:
  """A cost or time ratio, tested over runs (seeds) if there are enough of them.

  `reason` of the bounds is printed.
  """
  _check(low, high)
  return sample_kinds.Measured(metric, cell, float(low), float(high), reason)


def repeated(test: kinds.Kind, rows: pd.DataFrame, *, needed: int) -> kinds.Repeated:
  """The test in every seed of `rows`, of which there must be `needed`."""
  return kinds.Repeated(test, int(rows['seed'].nunique()), needed)


def decide(claims: Sequence[Claim], rows: pd.DataFrame, *, alpha: float = ALPHA) -> pd.DataFrame:
  """Tests every claim in every seed and returns one line per claim with `COLUMNS`."""
  rows = statistics.prepare(rows)
  seeds = sorted(rows['seed'].unique().tolist())
  by_seed = [rows[rows['seed'] == seed] for seed in seeds]
  # [claims][seeds]
  outcomes = [
    [claim.test(rows)] * len(seeds)
    if claim.test.over_runs
    else [claim.test(part) for part in by_seed]
    for claim in claims
  ]
  found = {
    name: np.array([[getattr(o, name) for o in line] for line in outcomes], np.float64)
    .reshape(len(claims), len(seeds))
    .T
    for name in ('effect', 'p', 'opposite', 'least')
  }  # [seeds, claims]
  tested = ~np.isnan(found['p'])
  adjusted = statistics.holm(found['p'])
  adjusted_opposite = statistics.holm(found['opposite'])
  reachable = statistics.holm(np.where(tested, found['least'], np.nan))
  decided = hypotheses.decided(found['effect'], found['p'], found['opposite'], alpha=alpha)

  lines = []
  for row, (claim, line) in enumerate(zip(claims, outcomes, strict=True)):
    verdicts, texts = [], []
    for seed, one in enumerate(line):
      verdicts.append(_verdict(one, decided[seed, row]))
      texts.append(one.reason or one.numbers)
      if verdicts[-1] == 'fails':
        texts[-1] += f', p of the opposite {adjusted_opposite[seed, row]:.2g}'
      if one.short:
        texts[-1] += f'; too few trainings: {one.short}'
      elif verdicts[-1] == 'undecided':
        family = int(tested[seed].sum())
        texts[-1] += _undecidable(one.least, reachable[seed, row], family, alpha=alpha)
    verdict = verdicts[0] if len(set(verdicts)) == 1 else 'undecided'
    run = verdict != 'not run' and tested[:, row].any()
    lines.append(
      (
        claim.statement,
        claim.place,
        f'{claim.test}; {claim.test.estimand}',
        _numbers(seeds, texts, verdicts),
        np.nanmax(found['p'][:, row]) if run else np.nan,
        np.nanmax(adjusted[:, row]) if run else np.nan,
        verdict,
      )
    )
  return pd.DataFrame(lines, columns=[*COLUMNS])


class Reach(NamedTuple):
  """What rows of a number of groups can decide, whatever their values."""

  groups: int
  tested: int  # claims that are tested over these groups
  decidable: int  # of them, those that can hold or fail after Holm's correction
  least: float  # the smallest p that any of them can have


def reach(claims: Sequence[Claim], groups: int, *, alpha: float = ALPHA) -> Reach:
  """What a test set of `groups` groups can decide of the claims, all other data being as wished."""
  least = np.array([claim.test.least(groups) for claim in claims], np.float64)
  least = least[~np.isnan(least)]
  decidable = int((statistics.holm(least) < alpha).sum())
  return Reach(groups, len(least), decidable, float(least.min(initial=1.0)))


def _verdict(outcome: Outcome, decided: int) -> str:
  if outcome.reason:
    return 'not run'
  if outcome.short:
    return 'undecided'
  if math.isnan(outcome.p):
    return 'measured'
  return {1: 'holds', -1: 'fails', 0: 'undecided'}[int(decided)]


def _undecidable(least: float, reachable: float, family: int, *, alpha: float) -> str:
  """Why no data of this size could decide the claim; '' if some could."""
  if least >= alpha:
    return f'; too few groups: no p below {least:.3g}'
  if reachable >= alpha:
    return f'; too few groups: no p below {reachable:.3g} after Holm over {family} claims'
  return ''


def _numbers(seeds, texts, verdicts) -> str:
  if len(seeds) == 1 or len(set(texts)) == 1:
    return texts[0] if texts else ''
  lines = zip(seeds, texts, verdicts, strict=True)
  return '; '.join(f'seed {seed}: {text} ({verdict})' for seed, text, verdict in lines)


def _check(low: float, high: float) -> None:
  if not low < high or (math.isinf(low) and math.isinf(high)):
    raise ValueError(f'a claim needs low < high and a finite bound, not ({low}, {high})')

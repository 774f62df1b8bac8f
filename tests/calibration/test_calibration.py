"""Error rates and power of every kind of claim test, by simulation through the claims' own code.

Under each null the one-sided test at 5 % rejects in at most 6 % of 4,000 runs. To add a kind, write
a function (groups) -> Measured and put it in CALIBRATION.
"""

import importlib
import math
import pkgutil
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

import robustmed
from robustmed.evaluation import hypotheses, kinds, normality, sample_kinds
from robustmed.metrics import detection, froc
from robustmed.papers.nodules import scan_kinds
from support import simulated

pytestmark = pytest.mark.slow

ALPHA, MOST = 0.05, 0.06
RUNS = simulated.RUNS


class Measured(NamedTuple):
  """Rejection rates under nulls by name; power and the power that is asked for."""

  errors: dict[str, float]
  power: float
  asked: float = 0.8


def rate(p) -> float:
  assert np.shape(p) == (RUNS,) and not np.isnan(p).any()
  return float(np.mean(p < ALPHA))


def both(name, found) -> dict[str, float]:
  """Errors in both directions of a test at the border of its claim."""
  return {name: rate(found.p), f'{name}, opposite': rate(found.opposite)}


def generator(groups: int) -> np.random.Generator:
  return np.random.default_rng(groups)


def contrast(groups):
  rng, errors = generator(groups), {}
  for name, values in simulated.differences(groups, rng).items():
    errors |= both(name, hypotheses.mean_test(values, low=0.0))
    errors |= both(f'{name}, below', hypotheses.mean_test(values, high=0.0))
  effect = rng.normal(size=(RUNS, groups)) + simulated.ORACLE[groups]
  return Measured(errors, rate(hypotheses.mean_test(effect, low=0.0).p))


def share_left(groups):
  """Gains of skewed, zero-inflated Dice, of which exactly a third is left in the mean."""
  rng = generator(groups)
  size = (RUNS, groups)
  shown = rng.exponential(0.3, size=size) * (rng.random(size) < 0.8)
  noise = rng.beta(4, 1, size=size) - rng.beta(4, 1, size=size)
  left = (shown / 2 + rng.exponential(0.12, size=size)) / 3 + 0.1 * noise
  errors = both('a third', hypotheses.mean_test(left - shown / 3, low=0.0))
  # An effect on Gaussian contrasts: the test is that of any contrast.
  effect = rng.normal(size=size) - simulated.ORACLE[groups]
  return Measured(errors, rate(hypotheses.mean_test(effect, high=0.0).p))


def equivalence(groups):
  """At either border of (-1, 1) 'close' is wrong; in its middle 'not close' is.

  At 12 groups 78 % of the oracle's 90 is what two tests with 83 % each have together.
  """
  rng, errors = generator(groups), {}
  for name, values in simulated.differences(groups, rng).items():
    spread = 0.3 / values.std()
    for border in (-1.0, 1.0):
      found = hypotheses.mean_test(border + spread * values, low=-1.0, high=1.0)
      errors |= both(f'{name}, at {border:g}', found)
    found = hypotheses.mean_test(spread * values, low=-1.0, high=1.0)
    errors[f'{name}, equal'] = rate(found.opposite)
  # The tolerance that 90 % of the runs meet by two t tests.
  equal = rng.normal(size=(RUNS, groups))
  quantile = stats.t.ppf(1 - ALPHA, groups - 1)
  needed = np.abs(equal.mean(-1)) + quantile * equal.std(-1, ddof=1) / np.sqrt(groups)
  reach = float(np.quantile(needed, 0.9))
  found = hypotheses.mean_test(equal, low=-reach, high=reach)
  return Measured(errors, rate(found.p), asked=0.77 if groups == 12 else 0.8)


def level(groups):
  """The power asked for is all that the sign test can have, the best there is for a median."""
  rng, errors = generator(groups), {}
  for name, values in simulated.levels(groups, rng).items():
    errors |= both(name, hypotheses.median_test(values, low=0.0))
    errors |= both(f'{name}, below', hypotheses.median_test(values, high=0.0))
  effect = simulated.ORACLE[groups]
  found = hypotheses.median_test(rng.normal(size=(RUNS, groups)) + effect, low=0.0)
  needed = stats.binom.isf(ALPHA, groups, 0.5) + 1
  possible = stats.binom.sf(needed - 1, groups, stats.norm.cdf(effect))
  return Measured(errors, rate(found.p), asked=possible - 0.02)


def best_of(groups):
  """Four arms with a common part by group, of which three are rivals."""
  rng, errors = generator(groups), {}

  def tested(means, draw):
    arms = [draw() + mean for mean in means]
    found = [hypotheses.mean_test(arms[0] - rival, low=0.0) for rival in arms[1:]]
    stack = lambda name: np.stack([getattr(one, name) for one in found], axis=-1)
    return hypotheses.best_of(stack('p'), stack('opposite'))

  size = (RUNS, groups)
  draws = {
    'Gaussian': lambda: rng.normal(size=size),
    'half zeros': lambda: rng.normal(size=size) * (rng.random(size) < 0.5),
    'Dice': lambda: rng.beta(4, 1, size=size),
    'exponential': lambda: rng.exponential(size=size),
  }
  for name, draw in draws.items():
    p, opposite = tested((0, 0, 0, 0), draw)
    errors |= {f'{name}, all equal': rate(p), f'{name}, all equal, opposite': rate(opposite)}
    p, _ = tested((0, 0, -9, -9), draw)
    errors[f'{name}, one as good'] = rate(p)
  effect = simulated.ORACLE[groups] * np.sqrt(2)
  p, _ = tested((effect, 0, -9, -9), draws['Gaussian'])
  return Measured(errors, rate(p))


def at_least(groups):
  """Five statements with a common part, of which four (for the power: all) must be true."""
  rng, errors = generator(groups), {}

  def tested(means, number=4):
    common = rng.normal(size=(RUNS, groups))
    found = [
      hypotheses.mean_test(
        np.sqrt(0.5) * (common + rng.normal(size=(RUNS, groups))) + mean, low=0.0
      )
      for mean in means
    ]
    stack = lambda name: np.stack([getattr(one, name) for one in found], axis=-1)
    return hypotheses.at_least(stack('p'), stack('opposite'), number=number)

  p, opposite = tested((9, 9, 9, 0, 0))
  errors |= {'three true, two at the border': rate(p)}
  p, opposite = tested((9, 9, 9, 0, -9))
  errors |= {'the fourth at the border': rate(p), 'the same, opposite': rate(opposite)}
  p, _ = tested((9, 9, 9, 9, simulated.ORACLE[groups]), number=5)
  return Measured(errors, rate(p))


def auroc(groups):
  """Shared groups of several examples have no exact AUROC by formula; there the mean stands in.

  At 12 groups a test by ranks that keeps its level at an AUROC of 0.9 has 77 % of the oracle's 90;
  DeLong's variance has 82 %, and rejects up to 8.7 % there.
  """
  errors = {}

  def clustered(negative, positive, group, *, shared):
    return detection.clustered(
      negative, positive, negative_groups=group, positive_groups=group, shared=shared
    )

  for kind in ('Gaussian', 'unequal spread', 'exponential', 'tied'):
    for truth in (0.5, 0.9):
      for per_group, shared in ((1, False), (5, False), (5, True)):
        made = simulated.scores(
          groups, generator(groups), kind=kind, auroc=truth, per_group=per_group, shared=shared
        )
        found = clustered(*made, shared=shared)
        at = float(found.value.mean()) if shared else truth
        name = f'{kind} {truth:g}, up to {per_group} a group{", shared" if shared else ""}'
        errors |= both(name, hypotheses.auroc_test(found, low=at))
  # A t test of two samples has 90 % here.
  effect = (stats.t.ppf(0.95, 2 * groups - 2) + stats.norm.ppf(0.9)) * np.sqrt(2 / groups)
  rng = generator(groups)
  made = rng.normal(size=(RUNS, groups)), rng.normal(size=(RUNS, groups)) + effect
  found = clustered(*made, np.arange(groups), shared=False)
  power = rate(hypotheses.auroc_test(found, low=0.5).p)
  return Measured(errors, power, asked=0.75 if groups == 12 else 0.8)


def normal(groups):
  """Gamma of a distance of exactly 0.1 for both directions; power of calling a normal one normal,
  asked for where groups of 5 on average make it possible."""
  draws = 100

  def tested(shape, bound):
    values, group = simulated.heavy_tailed(groups, generator(groups), shape=shape, per_group=10)
    found = [
      hypotheses.normality_test(normality.distance(one, group, draws=draws), bound=bound)
      for one in values
    ]
    return [np.array([getattr(one, name) for one in found]) for name in ('p', 'opposite')]

  p, opposite = tested(simulated.SHAPE, 0.1)
  power, _ = tested(math.inf, 0.1)
  asked = {12: 0.5, 20: 0.8, 60: 0.95}[groups]
  return Measured(
    {'gamma of distance 0.1': rate(p), 'the same, opposite': rate(opposite)}, rate(power), asked
  )


def measured(groups):
  """Ratios of times, one a run; `groups` runs."""
  rng, errors = generator(groups), {}
  for name, values in simulated.differences(groups, rng).items():
    ratios = np.exp(0.1 * values)
    errors |= both(name, hypotheses.mean_test(np.log(ratios), high=0.0))
  effect = np.exp(0.1 * (rng.normal(size=(RUNS, groups)) - simulated.ORACLE[groups]))
  return Measured(errors, rate(hypotheses.mean_test(np.log(effect), high=0.0).p))


CALIBRATION = {
  kinds.Contrast: (contrast, share_left, equivalence),
  kinds.Difference: (contrast, equivalence),
  kinds.Level: (level,),
  kinds.BestOf: (best_of,),
  kinds.AtLeast: (at_least,),
  sample_kinds.Auroc: (auroc,),
  sample_kinds.Normal: (normal,),
  sample_kinds.Measured: (measured,),
  scan_kinds.Found: (contrast,),
}
WITHOUT_TEST = {
  'Elsewhere': 'tests other rows',
  'Collapse': 'has the p of a level, or 1',
  'Repeated': 'has the test of its own in every training',
  'Missing': 'is never tested',
  'Cpm': 'is measured below, in fewer runs',
}
FUNCTIONS = sorted({one for found in CALIBRATION.values() for one in found}, key=str)


@pytest.mark.parametrize('groups', [12, 20, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize('function', FUNCTIONS, ids=lambda function: function.__name__)
def test_error_rates_and_power(function, groups):
  found = function(groups)
  high = {name: share for name, share in found.errors.items() if share > MOST}
  assert not high, f'rejects too often: {high}'
  assert found.power >= found.asked


def families(groups, *, true: int, runs: int = RUNS):
  """A claims table of 20 differences and 10 levels with a common part, `true` of each true."""
  rng = generator(groups)
  found = {'effect': [], 'p': [], 'opposite': []}
  common = rng.normal(size=(runs, groups))
  for number in range(30):
    # Levels have a median of 0, so they are symmetric; differences may be skewed.
    skewed = number < 20 and number % 2
    own = rng.exponential(size=(runs, groups)) - 1 if skewed else rng.normal(size=(runs, groups))
    values = np.sqrt(0.3) * common + np.sqrt(0.7) * own
    values = values + 9 * (number % 10 < true)
    if number < 20:
      test = hypotheses.mean_test(values, low=0.0)
    else:
      test = hypotheses.median_test(values, low=0.0)
    found['effect'].append(hypotheses.effect(test.estimate, low=0.0, high=math.inf))
    found['p'].append(test.p)
    found['opposite'].append(test.opposite)
  return {name: np.stack(values, axis=-1) for name, values in found.items()}


@pytest.mark.parametrize('groups', [12, 20, 60])
@pytest.mark.parametrize('true', [0, 5])
def test_a_whole_table_errs_as_seldom_as_one_claim(groups, true):
  found = families(groups, true=true)
  decided = hypotheses.decided(*found.values(), alpha=ALPHA)
  null = np.arange(30) % 10 >= true
  assert np.mean((decided[:, null] > 0).any(-1)) <= MOST
  assert np.mean((decided[:, null] < 0).any(-1)) <= MOST
  assert not true or (decided[:, ~null] > 0).mean() > 0.99


@pytest.mark.parametrize(('groups', 'most'), [(12, 0.12), (20, MOST), (60, MOST)])
def test_a_table_of_skewed_differences(groups, most):
  """Thirty independent exponential differences of mean 0; at 12 groups corrected p are too small.

  No skewness is seen in a sample that lacks the tail, and that is how small p come about there.
  """
  rng = generator(groups)
  values = rng.exponential(size=(30, RUNS, groups)) - 1
  found = hypotheses.mean_test(values, low=0.0)
  families = (np.moveaxis(part, 0, -1) for part in (found.estimate, found.p, found.opposite))
  decided = hypotheses.decided(*families, alpha=ALPHA)
  assert np.mean((decided > 0).any(-1)) <= MOST
  assert np.mean((decided < 0).any(-1)) <= most


@pytest.mark.parametrize('scans', [12, 20, 60])
def test_a_difference_of_the_cpm(scans):
  """Two networks of one distribution on the same scans; one that sees nodules better.

  1,000 runs have a standard error of 0.7 %, so that 7 % is as near to 6 % as they can tell.
  """
  rng, rejected = np.random.default_rng(scans), {}
  for name, gain in (('equal', 0.0), ('better', 2.0)):
    p, opposite = [], []
    for run in range(1000 if gain == 0 else 100):
      one, two = simulated.submissions(rng, scans, gain=gain)
      drawn = [froc.resampled(each, resamples=150, seed=run).mean(axis=1) for each in (one, two)]
      drawn = (drawn[0] - drawn[1])[np.isfinite(drawn[0])]
      value = froc.cpm(one) - froc.cpm(two)
      found = scan_kinds.bootstrap_test(value, drawn, scans=scans, low=0.0, high=math.inf)
      p.append(found.p)
      opposite.append(found.opposite)
    rejected[name] = np.mean(np.array([p, opposite]) < ALPHA, axis=1)
  assert (rejected['equal'] <= 0.07).all(), rejected
  asked = {12: 0.5, 20: 0.8, 60: 0.95}[scans]
  assert rejected['better'][0] >= asked and rejected['better'][1] == 0, rejected


def every_kind() -> set[type]:
  for module in pkgutil.walk_packages(robustmed.__path__, 'robustmed.'):
    if 'claims' in module.name.rsplit('.', 1)[-1] or '.evaluation.' in module.name:
      importlib.import_module(module.name)
  found, left = set(), [kinds.Kind]
  while left:
    one = left.pop()
    found.add(one)
    left += one.__subclasses__()
  return {one for one in found if one.__module__.startswith('robustmed.')} - {kinds.Kind}


def test_every_kind_of_claim_is_calibrated():
  missing = {one.__name__ for one in every_kind() if one not in CALIBRATION} - WITHOUT_TEST.keys()
  assert not missing, f'no entry in CALIBRATION: {sorted(missing)}'


def test_every_kind_names_its_estimand():
  for one in CALIBRATION:
    assert 'estimand' in vars(one) or one is kinds.Difference

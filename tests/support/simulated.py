"""Numbers by group as evaluations have them, of a known mean, median or AUROC.

Every function gives [RUNS, groups] or, for scores, [RUNS, examples]; what they are tested on is
exact, so that each is a null.
"""

import numpy as np
from scipy import optimize, stats

from robustmed.metrics import froc

RUNS = 4000
ORACLE = {12: 0.90, 20: 0.68, 60: 0.38}  # effects at which a t test on Gaussian means has 90 %
SHAPE = 1.785016576726183  # gamma whose distance from the normal of its mean and deviation is 0.1


def differences(groups: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Differences of mean 0."""
  size = (RUNS, groups)
  normal, skewed = rng.normal(size=size), rng.exponential(size=size) - 1
  half = rng.random(size) < 0.5
  counts = 1 + np.arange(groups) % 8
  return {
    'Gaussian': normal,
    'half zeros': normal * half,
    'exponential': skewed,
    'half zeros, exponential': skewed * half,
    'half at a bound': (skewed + 1) * half - 0.5,
    'tied': np.round(normal) / 10,
    'tied, skewed': rng.poisson(1.0, size=size) - 1.0,
    'unequal groups': unequal(rng.normal, counts, rng),
    'unequal groups, skewed': unequal(lambda size: rng.exponential(size=size) - 1, counts, rng),
    'Dice': rng.beta(4, 1, size=size) - rng.beta(4, 1, size=size),
  }


def unequal(draw, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Group means of correlated examples: a group's own part by `draw`, the rest Gaussian."""
  group = np.repeat(np.arange(len(counts)), counts)
  own = draw(size=(RUNS, len(counts)))[:, group]
  examples = np.sqrt(0.3) * own + np.sqrt(0.7) * rng.normal(size=(RUNS, len(group)))
  return examples @ (group[:, None] == np.arange(len(counts))) / counts


def levels(groups: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Levels of median 0 (for half of the groups at the worst)."""
  found = differences(groups, rng)
  size = (RUNS, groups)
  return {
    'Gaussian': found['Gaussian'],
    'exponential': rng.exponential(size=size) - np.log(2),
    'half zeros': np.where(rng.random(size) < 0.5, -1e-6, rng.beta(4, 2, size=size)),
    'tied': found['tied'],
    'unequal groups': found['unequal groups'],
  }


def scores(
  groups: int, rng: np.random.Generator, *, kind: str, auroc: float, per_group: int, shared: bool
):
  """(negatives, positives, their groups) of correlated examples in unequal groups."""
  counts = 1 + np.arange(groups) % per_group
  group = np.repeat(np.arange(groups), counts)
  within = 0.5 if per_group > 1 else 0.0
  own = rng.normal(size=(2, RUNS, groups))
  own = own[[0, 0]] if shared else own
  noise = rng.normal(size=(2, RUNS, len(group)))
  negative, positive = np.sqrt(within) * own[:, :, group] + np.sqrt(1 - within) * noise
  if kind == 'Gaussian':
    positive = positive + np.sqrt(2) * stats.norm.ppf(auroc)
  elif kind == 'unequal spread':
    positive = 3 * positive + np.sqrt(10) * stats.norm.ppf(auroc)
  elif kind == 'exponential':
    negative, positive = (-np.log(stats.norm.sf(part)) for part in (negative, positive))
    positive = positive * auroc / (1 - auroc)
  elif kind == 'tied':
    shift = optimize.brentq(lambda shift: _tied(shift) - auroc, -8, 8)
    negative, positive = np.round(negative), np.round(positive + shift)
  return negative, positive, group


def _tied(shift: float) -> float:
  at = np.arange(-30, 31)
  first, second = (stats.norm.cdf(at + 0.5 - s) - stats.norm.cdf(at - 0.5 - s) for s in (0, shift))
  return float(second @ (np.cumsum(first) - first / 2))


def heavy_tailed(groups: int, rng: np.random.Generator, *, shape: float, per_group: int):
  """(gamma values of that shape, groups), correlated in unequal groups; shape inf is normal."""
  group = np.repeat(np.arange(groups), 1 + np.arange(groups) * 3 % per_group)
  normal = np.sqrt(0.5) * rng.normal(size=(RUNS, groups))[:, group]
  normal = normal + np.sqrt(0.5) * rng.normal(size=(RUNS, len(group)))
  if np.isinf(shape):
    return normal, group
  return stats.gamma.ppf(stats.norm.cdf(normal), shape), group


def submissions(
  rng: np.random.Generator, scans: int, *, gain: float
) -> tuple[froc.Scored, froc.Scored]:
  """Two submissions of 95 % of the same nodules and about four false marks a scan.

  Scans and nodules are hard or easy for both alike; the first scores nodules higher by `gain`.
  """
  nodules = rng.integers(0, 4, size=scans)
  nodules[0] += 1
  false = rng.poisson(4 * np.exp(0.5 * rng.normal(size=scans) - 0.125))
  of_nodule, of_false = (np.repeat(np.arange(scans), count) for count in (nodules, false))
  ease = 1.5 + 0.6 * rng.normal(size=scans)[of_nodule] + 0.6 * rng.normal(size=len(of_nodule))
  doubt = 0.7 * rng.normal(size=len(of_false))
  made = []
  for more in (gain, 0.0):
    score = ease + more + 0.6 * rng.normal(size=len(ease))
    found = rng.random(len(ease)) < 0.95
    probability = np.concatenate([score[found], doubt + 0.7 * rng.normal(size=len(doubt))])
    order = np.argsort(-probability, kind='stable')
    hit = np.arange(len(probability)) < found.sum()
    scan = np.concatenate([of_nodule[found], of_false])
    made.append(froc.Scored(probability[order], scan[order], hit[order], nodules, {}))
  return made[0], made[1]

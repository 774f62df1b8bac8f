"""FROC and CPM of nodule detectors by the rules of the LUNA16 challenge (Setio et al. 2017).

A mark hits a finding if it is closer to the finding's centre than the finding's radius. A nodule
takes the probability of its best mark; further marks on it, and marks on irrelevant findings only,
are dropped; the rest are false positives. 'Per scan' counts all scans, also those without nodules.
CPM is the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan.

  python -m robustmed.metrics.froc SUBMISSION.csv --annotations DIR
"""

from typing import NamedTuple

import numpy as np

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan
MAX_MARKS = 100  # per scan
UNKNOWN_DIAMETER = 10.0  # mm, of findings with a negative diameter
BOUNDS = (0.025, 0.975)  # of the 95 % intervals
_BLOCK = 4_000_000  # numbers held at once


class Findings(NamedTuple):
  """The annotated findings, in any order; centres and diameters in millimetres."""

  scan: np.ndarray  # [n] int, index of the scan
  centre: np.ndarray  # [n, 3]
  diameter: np.ndarray  # [n], negative = not known
  nodule: np.ndarray  # [n] bool, False = irrelevant


class Marks(NamedTuple):
  """The detections of a submission."""

  scan: np.ndarray  # [m] int
  centre: np.ndarray  # [m, 3]
  probability: np.ndarray  # [m], any finite score


class Scored(NamedTuple):
  """A submission after matching; entries are found nodules and false positives."""

  probability: np.ndarray  # [k], falling
  scan: np.ndarray  # [k]
  hit: np.ndarray  # [k] bool, a found nodule
  nodules: np.ndarray  # [num_scans], nodules of each scan
  counts: dict[str, int]


class Curve(NamedTuple):
  """One point per distinct probability, from (0, 0) on."""

  threshold: np.ndarray  # [k], falling, the first one is inf
  rate: np.ndarray  # [k], false positives per scan
  sensitivity: np.ndarray  # [k]


class Interval(NamedTuple):
  """A value with its 95 % bootstrap interval."""

  value: np.ndarray  # on all scans, not the mean of the draws
  low: np.ndarray
  high: np.ndarray


class Summary(NamedTuple):
  """Sensitivities at the rates, and their mean."""

  sensitivity: Interval  # of [len(rates)]
  cpm: Interval  # of numbers


class Difference(NamedTuple):
  """A paired comparison of two submissions."""

  value: float  # CPM of the first minus CPM of the second
  low: float
  high: float
  p_value: float  # two-sided, from the same draws


def match(
  marks: Marks, findings: Findings, *, num_scans: int, max_marks: int = MAX_MARKS
) -> Scored:
  """Returns the entries of the FROC analysis.

  Of a scan with more than `max_marks` marks, those above the probability of the first one over the
  limit are kept; marks that tie with it are dropped too.
  """
  kept = _strongest(marks, max_marks)
  diameter = np.where(findings.diameter < 0, UNKNOWN_DIAMETER, findings.diameter)
  mark_order, mark_edges = _by_scan(marks.scan[kept], num_scans)
  mark_order = kept[mark_order]
  finding_order, finding_edges = _by_scan(findings.scan, num_scans)
  best = np.full(len(findings.scan), -np.inf)  # probability of the best mark on each finding
  on_nodule = np.zeros(len(marks.scan), bool)
  on_other = np.zeros(len(marks.scan), bool)
  doubles = 0
  for scan in np.flatnonzero((np.diff(mark_edges) > 0) & (np.diff(finding_edges) > 0)):
    mine = mark_order[mark_edges[scan] : mark_edges[scan + 1]]
    theirs = finding_order[finding_edges[scan] : finding_edges[scan + 1]]
    offset = marks.centre[mine][:, None] - findings.centre[theirs][None]
    hits = np.sum(offset**2, axis=-1) < (diameter[theirs] / 2) ** 2  # [marks, findings]
    nodule = findings.nodule[theirs]
    best[theirs] = np.where(hits, marks.probability[mine][:, None], -np.inf).max(axis=0)
    on_nodule[mine] = hits[:, nodule].any(axis=1)
    on_other[mine] = hits[:, ~nodule].any(axis=1)
    doubles += int(np.maximum(hits[:, nodule].sum(axis=0) - 1, 0).sum())
  found = findings.nodule & np.isfinite(best)
  false = kept[~(on_nodule | on_other)[kept]]
  probability = np.concatenate([best[found], marks.probability[false]])
  order = np.argsort(-probability, kind='stable')
  hit = np.arange(len(probability)) < found.sum()
  return Scored(
    probability=probability[order],
    scan=np.concatenate([findings.scan[found], marks.scan[false]])[order],
    hit=hit[order],
    nodules=np.bincount(findings.scan[findings.nodule], minlength=num_scans),
    counts={
      'scans': num_scans,
      'nodules': int(findings.nodule.sum()),
      'marks': len(kept),
      'marks over the limit': len(marks.scan) - len(kept),
      'true positives': int(found.sum()),
      'false positives': len(false),
      'missed nodules': int((findings.nodule & ~found).sum()),
      'marks on irrelevant findings': int((on_other & ~on_nodule).sum()),
      'further marks on a found nodule': doubles,
    },
  )


def _strongest(marks, limit):
  """Returns the indices of the marks within every scan's limit, in order."""
  order = np.lexsort((-marks.probability, marks.scan))
  scan, probability = marks.scan[order], marks.probability[order]
  first = np.searchsorted(scan, scan, 'left')
  count = np.searchsorted(scan, scan, 'right') - first
  border = probability[np.minimum(first + limit, first + count - 1)]
  return np.sort(order[(count <= limit) | (probability > border)])


def _by_scan(scan, num_scans):
  order = np.argsort(scan, kind='stable')
  return order, np.searchsorted(scan[order], np.arange(num_scans + 1))


def curve(scored: Scored) -> Curve:
  """Returns the free-response curve on all scans, each once."""
  ends = _ends(scored.probability)
  threshold = np.concatenate([[np.inf], scored.probability[ends - 1]])
  return Curve(threshold, *_points(scored, ends, np.ones(len(scored.nodules), np.int64)))


def sensitivity_at(scored: Scored, rates: tuple[float, ...] = RATES) -> np.ndarray:
  """Returns the sensitivities at these false positives per scan, [len(rates)].

  Linear between the points of the curve, constant beyond its end.
  """
  found = curve(scored)
  return np.interp(rates, found.rate, found.sensitivity)


def cpm(scored: Scored) -> float:
  """Returns the mean sensitivity at `RATES`."""
  return float(sensitivity_at(scored).mean())


def resampled(
  scored: Scored, *, rates: tuple[float, ...] = RATES, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
  """Returns sensitivities [resamples, len(rates)] of scans drawn with replacement.

  Equal seeds draw equal scans, so two submissions on the same scans can be compared draw by draw. A
  draw without any nodule gives nan.
  """
  ends = _ends(scored.probability)
  rng = np.random.default_rng(seed)
  num_scans = len(scored.nodules)
  parts = [np.empty((0, len(rates)))]
  block = max(1, _BLOCK // max(1, num_scans, len(scored.probability)))
  for start in range(0, resamples, block):
    drawn = rng.integers(num_scans, size=(min(block, resamples - start), num_scans))
    weight = np.zeros(drawn.shape, np.int64)
    np.add.at(weight, (np.arange(len(drawn))[:, None], drawn), 1)
    parts.append(_interpolated(rates, *_points(scored, ends, weight)))
  return np.concatenate(parts)


def _interpolated(rates, x, y):
  """Returns np.interp of every row of the rising x [n, k] and y [n, k]: [n, len(rates)]."""
  row = np.arange(len(x))
  columns = []
  for rate in rates:
    left = (x <= rate).sum(axis=1) - 1  # x begins with 0
    right = np.minimum(left + 1, x.shape[1] - 1)
    step = x[row, right] - x[row, left]
    share = (rate - x[row, left]) / np.where(step > 0, step, 1.0)
    share = np.where(step > 0, share, 0.0)
    columns.append(y[row, left] + share * (y[row, right] - y[row, left]))
  return np.stack(columns, axis=1)


def _ends(probability):
  """Returns where runs of equal probabilities end; a threshold takes all of a run or none."""
  return (
    np.flatnonzero(np.append(probability[1:] != probability[:-1], True)[: len(probability)]) + 1
  )


def _points(scored, ends, weight):
  """Returns rates and sensitivities, from (0, 0) on, with scan s counted weight[..., s] times."""
  weights = weight[..., scored.scan]
  zero = np.zeros((*weight.shape[:-1], 1), np.int64)
  found, marked = (
    np.concatenate([zero, np.cumsum(each, axis=-1)], axis=-1)[..., np.append(0, ends)]
    for each in (weights * scored.hit, weights)
  )
  nodules = (weight @ scored.nodules)[..., None]
  sensitivity = np.where(nodules > 0, found / np.maximum(nodules, 1), np.nan)
  return (marked - found) / len(scored.nodules), sensitivity


def summary(
  scored: Scored, *, rates: tuple[float, ...] = RATES, resamples: int = 1000, seed: int = 0
) -> Summary:
  """Returns sensitivities and their mean with 95 % bootstrap intervals over scans.

  At the default rates the mean is the CPM. With resamples=0 the bounds are nan.
  """
  value = sensitivity_at(scored, rates)
  drawn = resampled(scored, rates=rates, resamples=resamples, seed=seed)
  return Summary(
    sensitivity=Interval(value, *_bounds(drawn)),
    cpm=Interval(value.mean(), *_bounds(drawn.mean(axis=1))),
  )


def _bounds(drawn):
  """Returns the sorted values at floor(0.025 n) and floor(0.975 n) of the first axis."""
  known = drawn[~np.isnan(drawn).any(axis=tuple(range(1, drawn.ndim)))]
  if not len(known):
    return np.full(drawn.shape[1:], np.nan), np.full(drawn.shape[1:], np.nan)
  ordered = np.sort(known, axis=0)
  low, high = (int(share * len(known) + 1e-9) for share in BOUNDS)
  return ordered[low], ordered[high]


def compare(first: Scored, second: Scored, *, resamples: int = 1000, seed: int = 0) -> Difference:
  """Returns the difference of two submissions' CPM, paired: both have the same draws of scans."""
  if not np.array_equal(first.nodules, second.nodules):
    raise ValueError('the submissions must be scored on the same scans and nodules')
  draw = lambda scored: resampled(scored, resamples=resamples, seed=seed).mean(axis=1)
  drawn = draw(first) - draw(second)
  drawn = drawn[~np.isnan(drawn)]
  low, high = _bounds(drawn)
  side = min((drawn <= 0).sum(), (drawn >= 0).sum())
  p_value = min(1.0, 2 * (side + 1) / (len(drawn) + 1))
  return Difference(cpm(first) - cpm(second), float(low), float(high), p_value)

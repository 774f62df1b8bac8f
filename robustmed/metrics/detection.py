"""How well a score tells two kinds of images apart; a higher score speaks for the positive kind."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Roc(NamedTuple):
  """The curve from (0, 0) to (1, 1); at threshold t a score of t or more is called positive."""

  false_positive: np.ndarray  # [k]
  true_positive: np.ndarray  # [k]
  thresholds: np.ndarray  # [k], falling, the first one is inf


class Auroc(NamedTuple):
  value: float
  low: float  # bootstrap interval; nan with fewer than two groups
  high: float


def roc(negative: np.ndarray, positive: np.ndarray) -> Roc:
  """One point per distinct score; equal scores of both kinds give a slanted piece."""
  negative, positive = _known(negative), _known(positive)
  thresholds = np.unique(np.concatenate([negative, positive]))[::-1]
  above = lambda scores: 1 - np.searchsorted(np.sort(scores), thresholds, 'left') / len(scores)
  return Roc(
    np.concatenate([[0.0], above(negative)]),
    np.concatenate([[0.0], above(positive)]),
    np.concatenate([[np.inf], thresholds]),
  )


def auroc(negative: np.ndarray, positive: np.ndarray) -> float:
  """Probability that a positive scores above a negative, ties counting half (Mann-Whitney)."""
  negative, positive = _known(negative), _known(positive)
  ranks = stats.rankdata(np.concatenate([positive, negative]))[: len(positive)]
  wins = ranks.sum() - len(positive) * (len(positive) + 1) / 2
  return float(wins / (len(positive) * len(negative)))


def placements(negative: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Each negative's and each positive's share of won comparisons; the mean of either is the AUROC.

  The share is that won by the positive side, so a value above 0.5 speaks for the score in both.
  """
  won = _wins(_known(negative), _known(positive))
  return won.mean(axis=0), won.mean(axis=1)


def auroc_interval(
  negative: np.ndarray,
  positive: np.ndarray,
  *,
  negative_groups: np.ndarray,
  positive_groups: np.ndarray,
  seed: int = 0,
  resamples: int = 2000,
  level: float = 0.95,
) -> Auroc:
  """The AUROC with its percentile interval when whole groups are drawn anew.

  A group that has negatives and positives is drawn with both, so that pairs stay together. Draws
  that leave one kind empty are left out.
  """
  negative, positive = _known(negative), _known(positive)
  value = auroc(negative, positive)
  names = np.union1d(negative_groups, positive_groups)
  if len(names) < 2:
    return Auroc(value, math.nan, math.nan)
  of_negative = (np.asarray(negative_groups)[:, None] == names).astype(np.float64)
  of_positive = (np.asarray(positive_groups)[:, None] == names).astype(np.float64)
  won = of_positive.T @ _wins(negative, positive) @ of_negative  # [groups, groups]
  weights = np.random.default_rng(seed).multinomial(
    len(names), np.full(len(names), 1 / len(names)), size=resamples
  )
  pairs = (weights @ of_positive.sum(0)) * (weights @ of_negative.sum(0))
  wins = np.einsum('rg,gh,rh->r', weights, won, weights)
  drawn = wins[pairs > 0] / pairs[pairs > 0]
  low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
  return Auroc(value, float(low), float(high))


def _wins(negative, positive):
  """[positives, negatives]: 1 where the positive scores higher, 1/2 for a tie."""
  difference = positive[:, None] - negative[None, :]
  return (difference > 0) + 0.5 * (difference == 0)


def _known(scores):
  scores = np.asarray(scores, np.float64)
  if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
    raise ValueError('scores must be a non-empty row of numbers without nan')
  return scores

"""Thresholds xi of adaptive-margin training, estimated from the clean values of a trained network.

Plain numpy in float64.
"""

import numpy as np
import scipy.stats

from robustmed import errors


def estimate(
  values: np.ndarray, *, estimator: str = 'mean', k: float = 0.0, c: float = 1.5
) -> np.ndarray:
  """Returns xi [K] = location + k * scale of each column of `values` [n, K].

  estimator: 'mean' (mean and standard deviation, as in the paper), 'huber' (robust, see `huber`,
  with constant c) or 'max' (the largest value; takes no k).
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not values.size:
    raise errors.UserError(f'thresholds need values of shape [n, K], not {values.shape}')
  broken = int(np.sum(~np.isfinite(values).all(axis=1)))
  if broken:
    raise errors.UserError(
      f'{broken} of {len(values)} training examples have no finite clean value; thresholds cannot '
      'be estimated from that network'
    )
  location_and_scale = errors.lookup(ESTIMATORS, estimator, kind='estimator of thresholds')
  if estimator == 'max' and k:
    raise errors.UserError(f"the estimator 'max' of thresholds takes no k, got {k}")
  found = [location_and_scale(column, c) for column in values.T]
  return np.array([location + k * scale for location, scale in found])


def within(values: np.ndarray, strata: np.ndarray, *, number: int, **options) -> np.ndarray:
  """Returns xi [number, K] of the values [n, K] of each stratum, nan for one without values.

  strata: [n], of each value, below `number`; `options` are those of `estimate`.
  """
  values, strata = np.asarray(values, np.float64), np.asarray(strata)
  if not len(values):
    raise errors.UserError('thresholds need the clean values of at least one example')
  found = np.full((number, values.shape[1]), np.nan)
  for stratum in np.unique(strata):
    found[stratum] = estimate(values[strata == stratum], **options)
  return found


def huber(values: np.ndarray, *, c: float = 1.5) -> tuple[float, float]:
  """Returns location mu and scale s of values [n] by Huber's proposal 2 (1981, section 6.4).

  They solve sum psi(z) = 0 and sum psi(z)^2 = (n - 1) E[psi(Z)^2], where z = (x - mu) / s, psi
  clips to [-c, c] and Z is a standard normal: for normal values s is the standard deviation.
  """
  if not c > 0:
    raise errors.UserError(f'the constant c of the Huber estimator must be above 0, not {c}')
  values = np.asarray(values, np.float64)
  location = np.median(values)
  scale = np.median(np.abs(values - location)) / scipy.stats.norm.ppf(0.75)
  scale = scale or np.std(values)
  if len(values) < 2 or scale == 0:
    return float(location), 0.0
  inside = 2 * scipy.stats.norm.cdf(c) - 1
  expected = inside + c**2 * (1 - inside) - 2 * c * scipy.stats.norm.pdf(c)
  for _ in range(1000):
    clipped = np.clip(values, location - c * scale, location + c * scale)
    moved = np.mean(clipped)
    grown = np.sqrt(np.sum(np.square(clipped - location)) / ((len(values) - 1) * expected))
    change = max(abs(moved - location), abs(grown - scale))
    location, scale = moved, grown
    if change <= 1e-13 * (abs(location) + scale):
      break
  return float(location), float(scale)


ESTIMATORS = {
  'mean': lambda values, c: (np.mean(values), np.std(values)),
  'huber': lambda values, c: huber(values, c=c),
  'max': lambda values, c: (np.max(values), 0.0),
}

"""Dice of sets of slices from their pixel counts, numpy."""

from collections.abc import Mapping

import numpy as np

TINY = 1e-8


def tvdi(columns: Mapping[str, np.ndarray]) -> float:
  """Returns the TVDI (Ma and Liang 2022): Dice over the pixels of all slices, mean over classes.

  `columns` has the pixel counts '_tp<k>', '_fp<k>', '_fn<k>' of every slice [n] and foreground
  class k = 1, 2, ...; other columns are ignored. A class in no slice and no prediction counts 0.
  """
  scores = []
  while f'_tp{len(scores) + 1}' in columns:
    tp, fp, fn = (
      float(np.sum(columns[f'_{kind}{len(scores) + 1}'])) for kind in ('tp', 'fp', 'fn')
    )
    scores.append(2 * tp / (2 * tp + fp + fn + TINY))
  if not scores:
    raise ValueError('no counted pixels: columns _tp1, _fp1, _fn1 are missing')
  return float(np.mean(scores))


def adi(columns: Mapping[str, np.ndarray], *, absent: float = 0.0) -> float:
  """Returns the ADI (Ma and Liang 2022, eq. 2): Dice per slice and class, mean over both.

  The mean is over classes, then over slices. `columns` as for `tvdi`. `absent` is the Dice of a
  class that is neither in a slice nor in its prediction: 0 as published, or 1, or nan to leave it
  out of the slice's mean.
  """
  scores = []
  while f'_tp{len(scores) + 1}' in columns:
    tp, fp, fn = (
      np.asarray(columns[f'_{kind}{len(scores) + 1}'], np.float64) for kind in ('tp', 'fp', 'fn')
    )
    size = 2 * tp + fp + fn
    scores.append(np.where(size > 0, 2 * tp / (size + TINY), absent))
  if not scores:
    raise ValueError('no counted pixels: columns _tp1, _fp1, _fn1 are missing')
  scores = np.stack(scores, axis=1)
  scores = scores[~np.isnan(scores).all(axis=1)]
  return float(np.mean(np.nanmean(scores, axis=1)))

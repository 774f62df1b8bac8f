"""Overlap of sets of slices from counted pixels, numpy."""

from collections.abc import Mapping

import numpy as np

TINY = 1e-8


def tvdi(columns: Mapping[str, np.ndarray]) -> float:
  """Dice of the pixels of all slices together, averaged over the foreground classes.

  `columns` has the pixel counts '_tp<k>', '_fp<k>', '_fn<k>' of every slice [n] and class k = 1, 2,
  ... (Ma and Liang 2022, their TVDI); all other columns are ignored. A class that is in no slice
  and in no prediction counts 0.
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

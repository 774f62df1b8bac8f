"""The units of images: a shift and a scale per channel, which turn them back into stored values.

'stored': as in the file. 'zscore': deviations of the case, of its inside where a quarter of the
image is zero. 'ct': deviations of the foreground of all cases, as nnU-Net scales CT; a network
clips what lies outside of the foreground's 0.5 and 99.5 % quantiles (`clip`). 'range': 0 to 1 over
the range of the stored type.
"""

from typing import NamedTuple

import numpy as np

from robustmed.data.labelled import study as studies
from robustmed.data.labelled import survey


class Units(NamedTuple):
  """image = (stored - shift) / scale."""

  name: str
  shift: np.ndarray  # [cases, c]
  scale: np.ndarray  # [cases, c]
  bounds: tuple[float, float] | None = None  # of images, where the stored type has any
  clip: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # per channel, in these units
  words: str = ''


def of(study: studies.Study) -> Units:
  """Returns the units of a folder by its field `intensity`."""
  name, surveys = studies.intensity_of(study), study.surveys
  shape = (len(surveys), study.channels)
  zero, one = np.zeros(shape), np.ones(shape)
  if name == 'zscore':
    scale = np.maximum([s.std for s in surveys], 1e-8)
    return Units(name, np.array([s.mean for s in surveys]), scale, words='deviations of the case')
  if name == 'range':
    kinds = {np.dtype(s.dtype) for s in surveys}
    top = max(_top(kind, surveys) for kind in kinds)
    words = f'the range of the files, 1 is {top:g}'
    return Units(name, zero, one * top, (0.0, 1.0), words=words)
  if name == 'ct':
    chosen = study.partition.parts.get('train') or range(len(surveys))
    rows = []
    for c in range(study.channels):
      inner = survey.pooled([surveys[n].inner[c] for n in chosen if surveys[n].inner])
      spread = [
        np.mean([surveys[n].low[c] for n in chosen]),
        np.mean([surveys[n].high[c] for n in chosen]),
        np.mean([surveys[n].mean[c] for n in chosen]),
        np.mean([surveys[n].std[c] for n in chosen]),
      ]
      rows.append(inner or spread)
    low, high, mean, std = np.array(rows).T
    std = np.maximum(std, 1e-8)
    clip = tuple(tuple(((edge - mean) / std).tolist()) for edge in (low, high))
    words = f'deviations of the foreground, 1 is {_numbers(std)} HU or file units'
    return Units(name, one * mean, one * std, clip=clip, words=words)
  return Units(name, zero, one, words='units of the file')


def _top(kind, surveys):
  if kind.kind in 'iu' and kind.itemsize == 1:
    return 255.0
  return 1.0 if kind.kind == 'b' else float(max(max(s.high) for s in surveys)) or 1.0


def _numbers(values):
  return ', '.join(f'{value:.4g}' for value in values)

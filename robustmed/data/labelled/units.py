"""The units of images: a shift and a scale per channel, which turn them back into stored values.

'stored': as in the file. 'range': 0 to 1 over the range of the stored type. 'case': 0 to 1 over the
case's own 0.5 to 99.5 % quantiles (of what is not 0, where a quarter of the image is). 'ct': 0 to 1
over these quantiles of the foreground of all training cases, outside of which a network sees
nothing (`Units.clip`), as nnU-Net treats CT. 'zscore': standard deviations of the case.
"""

from typing import NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.labelled import study as studies
from robustmed.data.labelled import survey


class Units(NamedTuple):
  """image = (stored - shift) / scale."""

  name: str
  shift: np.ndarray  # [cases, c]
  scale: np.ndarray  # [cases, c]
  words: str  # what a level is measured in
  detail: str  # what 1 is in the units of the files
  bounds: tuple[float, float] | None = None  # of images, where the stored type has any
  clip: tuple[float, float] | None = None  # what a network sees


def of(study: studies.Study) -> Units:
  """Returns the units of a folder by its field `intensity`."""
  name, surveys = studies.intensity_of(study), study.surveys
  shape = (len(surveys), study.channels)
  zero, one = np.zeros(shape), np.ones(shape)
  if name == 'zscore':
    scale = np.maximum([s.std for s in surveys], 1e-8)
    words = 'standard deviations of the case'
    return Units(name, np.array([s.mean for s in surveys]), scale, words, _median(scale))
  if name == 'case':
    low, high = (np.array([getattr(s, end) for s in surveys]) for end in ('low', 'high'))
    scale = np.maximum(high - low, 1e-8)
    words = "share of the case's intensity range (0.5 to 99.5 %)"
    return Units(name, low, scale, words, _median(scale))
  if name == 'range':
    top = max(_top(s) for s in surveys)
    words, detail = 'share of the intensity range of the files', f'1 is {top:g}'
    return Units(name, zero, one * top, words, detail, bounds=(0.0, 1.0))
  if name == 'ct':
    ends = _ct_ends(study)
    scale = np.maximum(ends[:, 1] - ends[:, 0], 1e-8)
    words = "share of the organs' intensity range (0.5 to 99.5 %)"
    detail = f'1 is {", ".join(f"{v:.4g}" for v in scale)} HU; data.ct_range={_pair(ends[0])}'
    return Units(name, one * ends[:, 0], one * scale, words, detail, clip=(0.0, 1.0))
  return Units(name, zero, one, 'units of the files', '1 is 1')


def _ct_ends(study) -> np.ndarray:
  """[c, 2]: the field ct_range, else the quantiles of the training cases."""
  given = study.fields['ct_range']
  if given:
    if len(given) != 2 or not given[0] < given[1]:
      raise errors.UserError(f'data field ct_range must be (low, high), not {given}')
    return np.array([given] * study.channels, np.float64)
  chosen = [study.surveys[n] for n in study.partition.parts.get('train') or range(len(study.grids))]
  return np.array([_foreground(chosen, c) for c in range(study.channels)])


def _pair(ends) -> str:
  return f'({ends[0]:.6g},{ends[1]:.6g})'


def _foreground(surveys, channel) -> tuple[float, float]:
  """The mean quantiles of the foreground, of whole images where none has any."""
  inner = survey.pooled([s.inner[channel] for s in surveys if s.inner])
  if inner is not None:
    return inner[0], inner[1]
  ends = np.array([(s.low[channel], s.high[channel]) for s in surveys])
  return tuple(ends.mean(axis=0).tolist())


def _top(one) -> float:
  kind = np.dtype(one.dtype)
  if kind.kind in 'iu' and kind.itemsize == 1:
    return 255.0
  return 1.0 if kind.kind == 'b' else max(*one.high, 1e-8)


def _median(scale) -> str:
  low, middle, high = np.quantile(scale, [0.0, 0.5, 1.0])
  return f'1 is {middle:.4g} in the files (median; {low:.4g} to {high:.4g})'

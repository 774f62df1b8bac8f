"""The size of an attack in the user's units; the attacked image is always the stored one."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.attacks import space as spaces
from robustmed.data.labelled import study as studies
from robustmed.data.labelled import units as intensities

_SHARES = (0.01, 0.02, 0.04, 0.08)
# name -> (what eps is measured in, intensity of data/labelled/units.py, default levels)
UNITS = {
  'range': ("of the image's intensity range (0.5 to 99.5 %)", 'case', _SHARES),
  'type': ('of the range of the stored type', 'range', _SHARES),
  'std': ('standard deviations of the image', 'zscore', (0.05, 0.1, 0.2, 0.4)),
  'hu': ('HU', 'stored', (5.0, 10.0, 20.0, 40.0)),
  'raw': ('units of the files', 'stored', ()),
}
_AUTO = {'ct': 'hu', 'range': 'type'}
_ROUNDING = 1e-3  # of a step of the stored type, float32 error of a change


class Threat(NamedTuple):
  """shift, scale: [cases, c]; the attacked x is (stored - shift) / scale."""

  name: str
  words: str
  shift: np.ndarray
  scale: np.ndarray
  levels: tuple[float, ...]
  bounds: tuple[float, float] | None  # of stored values
  step: float | None  # to multiples of which changes are rounded
  ct: bool

  @property
  def units(self) -> str:
    """What levels are given in."""
    return f'shares {self.words}' if self.words.startswith('of ') else self.words

  def stored(self, eps: float) -> tuple[float, float, float]:
    """Returns the median, smallest and largest change of a stored value that `eps` allows."""
    found = eps * self.scale
    return tuple(float(f'{value:.4g}') for value in (np.median(found), found.min(), found.max()))

  def text(self, eps: float) -> str:
    """Returns 'eps = 0.04 of ... = 24 in the files (20 to 31)'."""
    own = f'eps = {eps:g} {self.words}'
    if self.name in ('hu', 'raw'):
      return own
    middle, low, high = self.stored(eps)
    spread = f' (median; {low:g} to {high:g})' if high > low else ''
    return f'{own} = {middle:g} {"HU" if self.ct else "in the units of the files"}{spread}'

  def space(self) -> spaces.Space:
    """Returns the attack's units: changes of 'image' by batch['target']['level'], its scale."""

    def encode(batch):
      shift, scale = _ends(batch)
      return (batch['image'] - shift) / scale

    def decode(x, batch):
      image = batch['image'] + (x - encode(batch)) * _ends(batch)[1]  # exactly it where x is equal
      if self.bounds is None:
        return image
      # The gradient passes, so that a value at the border can come back.
      return image + jax.lax.stop_gradient(jnp.clip(image, *self.bounds) - image)

    def finish(image, batch):
      if self.step is None:
        return image
      change = (image - batch['image']) / self.step
      whole = jnp.trunc(change + _ROUNDING * jnp.sign(change))  # towards the clean image
      return batch['image'] + whole * self.step

    return spaces.Space(encode, decode, finish)


def _ends(batch) -> tuple[jax.Array, jax.Array]:
  ends = batch['target']['level']  # [b, 2, c]
  shape = (len(ends), *(1,) * (batch['image'].ndim - 2), ends.shape[-1])
  return ends[:, 0].reshape(shape), ends[:, 1].reshape(shape)


def make(study: studies.Study, options: Mapping[str, Any], levels) -> Threat:
  """Returns the threat of config.threat (units, rounded); levels () are those of the units."""
  kind = studies.intensity_of(study._replace(fields={**study.fields, 'intensity': 'auto'}))
  name = options['units']
  name = _AUTO.get(kind, 'range') if name == 'auto' else name
  words, intensity, usual = errors.lookup(UNITS, name, kind='threat.units')
  made = intensities.of(study._replace(fields={**study.fields, 'intensity': intensity}))
  levels = tuple(levels) or usual
  if not levels:
    span = float(np.median([np.subtract(one.high, one.low) for one in study.surveys]))
    levels = tuple(float(f'{share * span:.2g}') for share in _SHARES)
  types = {(one.dtype, *one.rescale) for one in study.surveys}
  bounds, step = None, None
  if len(types) == 1:
    kind_of, slope, intercept = next(iter(types))
    if np.dtype(kind_of).kind in 'iu':
      ends = np.iinfo(kind_of)
      both = sorted(float(end) * slope + intercept for end in (ends.min, ends.max))
      bounds, step = tuple(both), abs(float(slope))
  if options['rounded'] and (step is None or study.fields['spacing']):
    raise errors.UserError(
      'threat.rounded: attacked images are rounded where all files have one integer type and are '
      'not resampled; set it to False'
    )
  if not all(isinstance(e, int | float) and 0 < e < math.inf for e in levels):
    raise errors.UserError(f'evaluate.levels must be numbers above 0, not {levels}')
  return Threat(
    name,
    words,
    np.asarray(made.shift, np.float32),
    np.asarray(made.scale, np.float32),
    tuple(sorted(float(e) for e in levels)),
    bounds,
    step if options['rounded'] else None,
    kind == 'ct',
  )

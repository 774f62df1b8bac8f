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
LEVEL, ARTEFACT, STORED = 'level', 'artefact', 'stored'
_AUTO = {'ct': 'hu', 'range': 'type'}
_ROUNDING = 1e-3  # of a step of the stored type, float32 error of a change


class Threat(NamedTuple):
  """shift, scale: [cases, c]; the attacked x is (stored - shift) / scale.

  `artefact` and `images` are such a pair too: in the units of the first, severities of artefacts
  are meant; the second are those of the examples' images, None: as stored. `bounds` and `step` are
  of stored values, but of `images` where these are pictures.
  """

  name: str
  words: str
  shift: np.ndarray
  scale: np.ndarray
  levels: tuple[float, ...]
  bounds: tuple[float, float] | None
  step: float | None  # to multiples of which changes are rounded
  ct: bool
  artefact: tuple[np.ndarray, np.ndarray] | None = None
  images: tuple[np.ndarray, np.ndarray] | None = None
  pictures: bool = False

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
      return own + self._rounded(eps)
    middle, low, high = self.stored(eps)
    spread = f' (median; {low:g} to {high:g})' if high > low else ''
    unit = 'HU' if self.ct else 'in the units of the files'
    return f'{own} = {middle:g} {unit}{spread}{self._rounded(eps)}'

  def plain(self, eps: float) -> str:
    """Returns '4 % of the image's intensity range, about 24 HU' (the median over cases)."""
    if self.name in ('hu', 'raw'):
      return f'{eps:g} {self.words}{self._rounded(eps)}'
    share = f'{100 * eps:g} %' if self.words.startswith('of ') else f'{eps:g}'
    words = self.words.partition(' (')[0]
    unit = 'HU' if self.ct else 'in the units of the files'
    middle, low, high = self.stored(eps)
    about = 'about ' if high > low else ''
    return f'{share} {words}, {about}{middle:g} {unit}{self._rounded(eps)}'

  def _rounded(self, eps: float) -> str:
    """', 2 after rounding' where images are rounded to what a file can hold, '' else."""
    if self.step is None:
      return ''
    whole = np.trunc(self.stored(eps)[0] / self.step + _ROUNDING) * self.step
    return '' if f'{whole:g}' == f'{self.stored(eps)[0]:g}' else f', {whole:g} after rounding'

  def sizes(self, case: int) -> dict[str, np.ndarray]:
    """Returns what `space` reads from the target of an example of a case, each [2, c]."""
    shift, scale = (0.0, 1.0) if self.images is None else (part[case] for part in self.images)
    own = lambda pair: np.stack([(pair[0][case] - shift) / scale, pair[1][case] / scale])
    one = np.ones_like(self.scale)
    pairs = {LEVEL: (self.shift, self.scale), ARTEFACT: self.artefact, STORED: (0 * one, one)}
    found = {name: own(pair).astype(np.float32) for name, pair in pairs.items()}
    if self.pictures:
      found[STORED] = np.stack([0 * one[case], one[case]])
    return found

  def space(self, name: str = LEVEL) -> spaces.Space:
    """Returns the units of changes of 'image' that batch['target'][name] holds, see `sizes`."""

    def encode(batch):
      shift, scale = _ends(batch, name)
      return (batch['image'] - shift) / scale

    def decode(x, batch):
      change = (x - encode(batch)) * _ends(batch, name)[1]  # 0 where x is equal
      labels = batch['target'].get('labels')
      if labels is not None:  # what pads images to one size is no part of a file
        change = jnp.where(labels[..., None] == -1, 0, change)
      image = batch['image'] + change
      if self.bounds is None:
        return image
      zero, one = _ends(batch, STORED)
      low, high = (zero + one * bound for bound in self.bounds)
      # The gradient passes, so that a value at the border can come back.
      return image + jax.lax.stop_gradient(jnp.clip(image, low, high) - image)

    def finish(image, batch):
      if self.step is None:
        return image
      step = self.step * _ends(batch, STORED)[1]
      change = (image - batch['image']) / step
      whole = jnp.trunc(change + _ROUNDING * jnp.sign(change))  # towards the clean image
      return batch['image'] + whole * step

    return spaces.Space(encode, decode, finish, lambda batch: jnp.abs(_ends(batch, name)[1]))


def _ends(batch, name) -> tuple[jax.Array, jax.Array]:
  ends = batch['target'][name]  # [b, 2, c]
  shape = (len(ends), *(1,) * (batch['image'].ndim - 2), ends.shape[-1])
  return ends[:, 0].reshape(shape), ends[:, 1].reshape(shape)


def make(study: studies.Study, options: Mapping[str, Any], levels) -> Threat:
  """Returns the threat of config.threat (units, rounded); levels () are those of the units.

  Artefacts have the 0.5 to 99.5 % range of the image as unit, whatever the units of attacks. Their
  zero is that of the file, which magnitudes have no values below; in files with negative values it
  is the lower end of that range.
  """
  pictures = study.folder.kind != 'segmentation'
  images, keep = None, slice(None)
  if study.fields['intensity'] in ('case', 'zscore'):  # networks that are normalised by the case
    own = intensities.of(study)
    images = own.shift, own.scale
  if pictures:  # examples are shares of the stored type, and resized
    own = intensities.of(study)
    if study.folder.kind != 'classes':
      keep = slice(3 if study.channels >= 3 else 1)
    images = own.shift[:, keep], own.scale[:, keep]
    study = study._replace(folder=study.folder._replace(kind='segmentation'))
  kind = studies.intensity_of(study._replace(fields={**study.fields, 'intensity': 'auto'}))
  name = options['units']
  name = _AUTO.get(kind, 'range') if name == 'auto' else name
  words, intensity, usual = errors.lookup(UNITS, name, kind='threat.units')
  made = intensities.of(study._replace(fields={**study.fields, 'intensity': intensity}))
  levels = tuple(levels) or usual
  if not levels:
    span = float(np.median([np.subtract(one.high, one.low) for one in study.surveys]))
    levels = tuple(float(f'{share * span:.2g}') for share in _SHARES)
  low, high = (np.array([getattr(s, end) for s in study.surveys]) for end in ('low', 'high'))
  types = {(one.dtype, *one.rescale) for one in study.surveys}
  bounds, step = None, None
  if len(types) == 1:
    kind_of, slope, intercept = next(iter(types))
    if np.dtype(kind_of).kind in 'iu':
      ends = np.iinfo(kind_of)
      both = sorted(float(end) * slope + intercept for end in (ends.min, ends.max))
      bounds, step = tuple(both), abs(float(slope))
  if pictures:
    bounds = (0.0, 1.0)
  if options['rounded'] and (step is None or study.fields['spacing'] or pictures):
    raise errors.UserError(
      'threat.rounded: attacked images are rounded where all files have one integer type and are '
      'not resampled; set it to False'
    )
  if not all(isinstance(e, int | float) and 0 < e < math.inf for e in levels):
    raise errors.UserError(f'evaluate.levels must be numbers above 0, not {levels}')
  return Threat(
    name,
    words,
    np.asarray(made.shift[:, keep], np.float32),
    np.asarray(made.scale[:, keep], np.float32),
    tuple(sorted(float(e) for e in levels)),
    bounds,
    step if options['rounded'] else None,
    kind == 'ct',
    (np.minimum(low, 0)[:, keep], np.maximum(high - low, 1e-8)[:, keep]),
    images,
    pictures,
  )

"""Synthetic twin of the source `brats`: skull-stripped heads of four MR series with a glioma.

A brain of grey and white matter, ventricles and sulci; in it an oedema around a core, and in the
core an enhancing rim around necrosis. About one case in eight has no enhancing tumour, like a
low-grade glioma. No series shows a region by its brightness alone: fluid is as bright as oedema in
T2, grey matter and the ventricles' lining are nearly so in FLAIR, vessels are as bright as the rim
in T1ce. Case i of a seed is the same whatever the number of cases; its anatomy is the same at every
side.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage

from robustmed import errors
from robustmed.data import store
from robustmed.data.brain import brains
from robustmed.data.files import cubes, nifti

DEFAULTS = {
  'side': 32,
  'planes': 'volume',
  'slice_step': 1,
  'seed': 0,
  'train_cases': 40,
  'test_cases': 16,
  'without_enhancing': 0.12,  # probability
  'noise': 0.04,  # standard deviation, in units of white matter's brightness
  'bias': 0.3,  # largest logarithm of the bias field
}
_TEST_OFFSET = 1_000_000  # random streams of test cases
# Brightness per series; skull-stripped background is exactly 0.
_TISSUES = ('white', 'grey', 'fluid', 'lining', 'vessel', 'necrosis', 'oedema', 'enhancing')
_CONTRAST = {
  't1': (1.00, 0.75, 0.28, 0.85, 0.80, 0.45, 0.66, 0.70),
  't1ce': (1.00, 0.78, 0.28, 0.88, 1.60, 0.45, 0.68, 1.55),
  't2': (0.55, 0.72, 1.45, 0.80, 0.45, 1.20, 1.15, 0.90),
  'flair': (0.62, 0.90, 0.25, 1.20, 0.50, 0.75, 1.18, 1.05),
}
_WHITE, _GREY, _FLUID, _LINING, _VESSEL, _NECROSIS, _OEDEMA, _ENHANCING = range(8)


class Case(NamedTuple):
  series: np.ndarray  # [d, h, w, 4] brightness, 0 outside the brain
  brain: np.ndarray  # [d, h, w] bool
  labels: np.ndarray  # [d, h, w] 0 ... 3


def sizes(fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the number of examples per split, without drawing any."""
  count = brains.per_case(fields)
  return {name: fields[f'{name}_cases'] * count for name in ('train', 'test')}


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of cases of the test split."""
  return fields['test_cases']


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns all fields, on which the drawn data depend; a value out of range is a `UserError`."""
  brains.check_fields(fields)
  for name in ('train_cases', 'test_cases'):
    if fields[name] < 1:
      raise errors.UserError(f'data field {name} must be at least 1, not {fields[name]}')
  for name in ('without_enhancing', 'noise', 'bias'):
    if not 0 <= fields[name] <= 1:
      raise errors.UserError(f'data field {name} must lie in [0, 1], not {fields[name]}')
  return {name: fields[name] for name in DEFAULTS}


class PhantomBrats(store.Builder):
  """Draws 'train' and 'test', by default 40 and 16 cases."""

  def features(self):
    return brains.features(self.fields)

  def splits(self):
    train, test = self.fields['train_cases'], self.fields['test_cases']
    return {
      'train': self._cases(range(train), first=0),
      'test': self._cases(range(test), first=train),
    }

  def _cases(self, numbers, *, first) -> Iterator[dict[str, Any]]:
    side = self.fields['side']
    geometry = nifti.Geometry(
      np.diag([-1.0, -1.0, 1.0, 1.0]), np.full(3, side), np.array([[0, side]] * 3)
    )
    for number in numbers:
      stream = number + (_TEST_OFFSET if first else 0)
      case = draw(np.random.default_rng([self.fields['seed'], stream]), self.fields)
      self.counts['cases_without_enhancing'] += not (case.labels == 3).any()
      yield from brains.examples(
        standardise(case),
        case.labels,
        fields=self.fields,
        geometry=geometry,
        case=first + number,
        name=f'phantom{first + number:04d}',
      )


def standardise(case: Case) -> np.ndarray:
  """Returns the series scaled to [0, 1], as for real cases."""
  channels = [cubes.standardise(one, case.brain) for one in np.moveaxis(case.series, -1, 0)]
  return np.stack(channels, axis=-1)


def draw(rng: np.random.Generator, fields: Mapping[str, Any]) -> Case:
  """Draws one head, which fills its cube as a cropped one does."""
  side = fields['side']
  ticks = (np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1
  d, h, w = np.meshgrid(ticks, ticks, ticks, indexing='ij')
  depth = 1 - np.sqrt((d / 0.98) ** 2 + (h / 0.98) ** 2 + (w / 0.98) ** 2)
  depth = depth + 0.025 * _smooth(rng, 6, side)  # 0 at the brain's surface, 1 at its centre
  brain = depth > 0
  tissue = _anatomy(rng, depth, (d, h, w))
  fluid = tissue == _FLUID
  labels = _tumour(rng, (d, h, w), brain, enhances=rng.uniform() >= fields['without_enhancing'])
  labels[(labels == 2) & fluid] = 0
  for label, value in ((1, _NECROSIS), (2, _OEDEMA), (3, _ENHANCING)):
    tissue[labels == label] = value
  series = [_series(rng, tissue, brain, name, fields) for name in brains.SERIES]
  return Case(np.stack(series, axis=-1), brain, labels)


def _anatomy(rng, depth, axes):
  """Returns the index in `_TISSUES` of every voxel."""
  d, h, w = axes
  side = len(d)
  folds = _smooth(rng, 12, side)
  tissue = np.full(depth.shape, _WHITE)
  tissue[depth < 0.2 + 0.07 * folds] = _GREY
  nuclei = ((d + 0.1) / 0.2) ** 2 + (h / 0.3) ** 2 + ((np.abs(w) - 0.28) / 0.12) ** 2
  tissue[nuclei < 1] = _GREY
  tissue[(depth < 0.12) & (folds > 1.0)] = _FLUID  # sulci
  width, length, bend = rng.uniform(0.08, 0.16), rng.uniform(0.35, 0.55), rng.uniform(0.0, 0.15)
  across = (np.abs(w) - 0.13 - bend * np.abs(h)) / width
  ventricles = ((d - 0.12) / (1.6 * width)) ** 2 + (h / length) ** 2 + across**2
  tissue[ventricles < 1.5] = _LINING
  tissue[ventricles < 1] = _FLUID
  tubes = np.abs(_smooth(rng, 8, side)) + np.abs(_smooth(rng, 8, side))
  tissue[(tubes < 0.22) & (depth < 0.45) & (tissue != _FLUID)] = _VESSEL
  tissue[(np.abs(w) < 0.05) & (depth < 0.12) & (d > 0)] = _VESSEL  # the sagittal sinus
  return tissue


def _tumour(rng, axes, brain, *, enhances):
  """Returns the labels of an oedema, in it a core, and in that an enhancing rim around necrosis."""
  side = len(brain)
  direction = rng.normal(size=3)
  centre = direction / np.linalg.norm(direction) * rng.uniform(0.25, 0.55)
  stretch = rng.uniform(0.8, 1.25, 3)
  radius = rng.uniform(0.38, 0.55) * (1.0 if enhances else 0.85)
  core = radius * (rng.uniform(0.55, 0.7) if enhances else rng.uniform(0.7, 0.9))
  shift = rng.normal(size=3) * 0.1 * radius
  rough = _smooth(rng, 7, side), _smooth(rng, 7, side), _smooth(rng, 7, side)

  def distance(middle):
    return np.sqrt(sum(((x - m) / s) ** 2 for x, m, s in zip(axes, middle, stretch)))

  outer, inner = distance(centre), distance(centre + shift)
  labels = np.zeros(brain.shape, np.int32)
  labels[outer + 0.09 * rough[0] < radius] = 2
  centre_of_core = inner + 0.05 * rough[1]
  in_core = (centre_of_core < core) & (labels == 2)
  labels[in_core] = 1
  if enhances:
    necrosis = rng.uniform(0.35, 0.7) * core
    labels[in_core & (inner + 0.05 * rough[2] >= necrosis)] = 3
  labels[~brain] = 0
  return labels


def _series(rng, tissue, brain, name, fields):
  """Returns the brightness of one series: random contrast, blur, bias field, noise."""
  side = len(tissue)
  contrast = np.array(_CONTRAST[name]) * rng.uniform(0.9, 1.1, len(_TISSUES))
  clean = contrast[tissue] * (1 + 0.05 * _smooth(rng, 14, side)) * brain
  clean = scipy.ndimage.gaussian_filter(clean, side / 64)
  field = _smooth(rng, 4, side)
  clean = clean * np.exp(fields['bias'] * field / np.abs(field).max())
  real, imaginary = rng.normal(scale=fields['noise'], size=(2, *clean.shape))
  return (np.hypot(clean + real, imaginary) * brain).astype(np.float32)


def _smooth(rng, cells, side):
  """Returns a smooth random field of about `cells` bumps along a side, of deviation about 1."""
  coarse = rng.normal(size=(cells + 3,) * 3).astype(np.float32)
  at = (np.arange(side) + 0.5) / side * cells + 0.5
  weights = _hat(at[:, None] - np.arange(cells + 3)[None])
  weights = weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))
  for _ in range(3):  # tensordot contracts the first axis and appends the new one
    coarse = np.tensordot(coarse, weights.astype(np.float32), ((0,), (1,)))
  return coarse


def _hat(x):
  """Returns the cubic B-spline at `x`, which is 0 beyond 2."""
  x = np.abs(x)
  return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.maximum(2 - x, 0) ** 3 / 6)


Builder = PhantomBrats

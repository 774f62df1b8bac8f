"""What the phantoms of labelled volumes share: fields, cases, splits. An organ adds its `Anatomy`.

The volumes are drawn in memory and then treated as the files of `msd` are: with the same splits,
preprocessing, examples and sampling. Case i of a seed is the same whatever the number of cases.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors
from robustmed.data.decathlon import folds, preprocess, volumes

VERSION = '2'  # to be raised when the same fields give other voxels
_SMALLEST = (6, 16, 16)  # slices, rows and columns, at least
_DRAWN_AT_ONCE = 3_000_000  # voxels
_COARSE = 48  # rows and columns


class Layout(NamedTuple):
  """The grid of one case [z, y, x], before scaling."""

  shape: tuple[int, int, int]
  spacing: tuple[float, float, float]


class Anatomy(NamedTuple):
  name: str
  cases: int  # of the real data set
  patch: tuple[int, int]
  modalities: tuple[str, ...]
  classes: tuple[str, ...]
  filled: bool  # no voxel is zero, so nothing is cropped
  layout: Callable[[np.random.Generator], Layout]
  # (rng, shape) -> image [z, y, x, c] with values >= 0, in every slice some > 0, labels [z, y, x];
  # random numbers for the labels are drawn before any whose count depends on the shape
  draw: Callable[..., tuple[np.ndarray, np.ndarray]]


def defaults(anatomy: Anatomy) -> dict[str, Any]:
  """Returns the default fields; scale: voxels per axis over those of the real data."""
  return {'cases': anatomy.cases, 'seed': 0, 'scale': 1.0, **volumes.FIELDS}


def fingerprint(anatomy: Anatomy, fields: Mapping[str, Any]) -> Any:
  volumes.check_fields(fields)
  least = fields['folds'] or folds.FOLDS
  if fields['cases'] < least:
    raise errors.UserError(f'data field cases must be at least {least}, not {fields["cases"]}')
  if not 0.05 <= fields['scale'] <= 4:
    raise errors.UserError(f'data field scale must lie in [0.05, 4], not {fields["scale"]}')
  return study(anatomy, fields).key


def sizes(anatomy: Anatomy, fields: Mapping[str, Any]) -> dict[str, int]:
  """Returns the slices per split, of the test split approximately if the volumes are large.

  Large test cases, which take long, are drawn with fewer pixels, which may miss parts of an organ.
  """
  fingerprint(anatomy, fields)
  whole = study(anatomy, fields)
  found = volumes.split(whole)
  shapes = [_grid(anatomy, number, fields)[1] for number in range(fields['cases'])]
  if not _large(shapes, found):
    return volumes.sizes(whole, fields)

  def shown(number):
    rng, shape, _ = _grid(anatomy, number, fields)
    _, labels = anatomy.draw(rng, (shape[0], *(min(n, _COARSE) for n in shape[1:])))
    return volumes.class_bits(labels, len(anatomy.classes))

  slices = {name: sum(shapes[i][0] for i in chosen) for name, chosen in found.items()}
  return volumes.count_selected(slices, fields, lambda: map(shown, found['test']))


def depths(anatomy: Anatomy, fields: Mapping[str, Any]) -> list[int]:
  """Returns the slices of every test volume; of large ones before cropping."""
  fingerprint(anatomy, fields)
  whole = study(anatomy, fields)
  found = volumes.split(whole)
  shapes = [_grid(anatomy, number, fields)[1] for number in range(fields['cases'])]
  return [shapes[i][0] for i in found['test']] if _large(shapes, found) else volumes.depths(whole)


def groups(anatomy: Anatomy, fields: Mapping[str, Any]) -> int:
  """Returns the number of test volumes."""
  fingerprint(anatomy, fields)
  return len(volumes.split(study(anatomy, fields))['test'])


def _large(shapes, found):
  return sum(int(np.prod(shapes[number])) for number in found['test']) > _DRAWN_AT_ONCE


def study(anatomy: Anatomy, fields: Mapping[str, Any]) -> volumes.Study:
  cases = []
  for number in range(fields['cases']):
    name = f'{anatomy.name}_{number:03d}'
    _, shape, spacing = _grid(anatomy, number, fields)
    known = preprocess.Survey(shape, spacing, 1.0) if anatomy.filled else None
    reader = functools.partial(case, anatomy, number, fields)
    cases.append(volumes.Case(name, reader, name, known))
  names = ('cases', 'seed', 'scale', 'fold', 'train_cases', 'test_cases')
  content = {**fields, 'fold': folds.key(fields)}
  return volumes.Study(
    key=json.dumps([anatomy.name, VERSION, *(content[name] for name in names)]),
    cases=tuple(cases),
    modalities=anatomy.modalities,
    classes=anatomy.classes,
    fold=fields['fold'],
    folds=fields['folds'],
    all_test=fields['all_test'],
    limits=volumes.limits_of(fields),
  )


def case(anatomy: Anatomy, number: int, fields: Mapping[str, Any]) -> preprocess.Volume:
  """Draws one case."""
  rng, shape, spacing = _grid(anatomy, number, fields)
  image, labels = anatomy.draw(rng, shape)
  gain = np.float32(np.exp(rng.normal(0, 0.8)) * 300)  # scanners have no common unit
  return preprocess.Volume((gain * image).astype(np.float32), labels.astype(np.int8), spacing)


def _grid(anatomy, number, fields):
  """Returns the random generator, the shape and the spacing of a case."""
  rng = np.random.default_rng([fields['seed'] % 2**32, number])
  layout = anatomy.layout(rng)
  shape = tuple(max(n, round(side * fields['scale'])) for n, side in zip(_SMALLEST, layout.shape))
  spacing = tuple(n * mm / new for n, mm, new in zip(layout.shape, layout.spacing, shape))
  return rng, shape, spacing


class Phantom(volumes.VolumeBuilder):
  """Base class of the builders of one anatomy, an attribute of the subclass."""

  anatomy: Anatomy

  def study(self):
    return study(self.anatomy, self.fields)


def arrange(anatomy: Anatomy, source, fields: Mapping[str, Any], facts: Mapping[str, Any]):
  """Returns the source with patches of the published size, scaled to a multiple of 8."""
  return volumes.arrange(source, fields, facts, patch=_patch(anatomy, fields))


def windows(anatomy: Anatomy, fields: Mapping[str, Any]):
  """Returns the `volumes.windows` of these patches."""
  return volumes.windows(fields, patch=_patch(anatomy, fields))


def _patch(anatomy, fields):
  scaled = tuple(max(8, 8 * round(n * fields['scale'] / 8)) for n in anatomy.patch)
  return fields['patch'] or scaled

"""Synthetic twin of the source `bccd`: a stained blood smear with overlapping cells.

Red cells are pale rose discs, lighter in the middle, that may overlap by half; white cells are
large and pale with a violet nucleus of several lobes; platelets are small and violet. Sizes follow
the medians of BCCD (52, 95 and 20 of 320 pixels). Image i of a split is the same whatever the
number of images.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage

from robustmed.data import store, streams
from robustmed.data.cells import boxed

DEFAULTS = {
  'height': 96,
  'width': 128,
  'long_side': 128,
  'max_boxes': 24,
  'seed': 0,
  'train_images': 96,
  'validation_images': 8,
  'test_images': 24,
  'noise': 0.02,  # standard deviation, of the range [0, 1]
}
_PLATELET, _RED, _WHITE = range(3)
_RADII = {_PLATELET: 10 / 320, _RED: 26 / 320, _WHITE: 47 / 320}  # of the long side
_BACKGROUND = np.array([0.80, 0.82, 0.80])
_ROSE = np.array([0.74, 0.52, 0.50])
_LILAC = np.array([0.78, 0.70, 0.82])
_VIOLET = np.array([0.42, 0.33, 0.68])


class Cell(NamedTuple):
  kind: int
  x: float
  y: float
  radii: tuple[float, float]
  angle: float


sizes = streams.sizes


def groups(fields: Mapping[str, Any]) -> int:
  """Returns the number of images of the test split, each of which is a group."""
  return sizes(fields)['test']


def fingerprint(fields: Mapping[str, Any]) -> Any:
  """Returns all fields, on which the drawn data depend; a value out of range is a `UserError`."""
  boxed.check(fields)
  streams.check(fields)
  return {name: fields[name] for name in DEFAULTS}


class PhantomBccd(store.Builder):
  """Draws 'train', 'validation' and 'test', by default 96, 8 and 24 images."""

  def features(self):
    return boxed.features(self.fields)

  def splits(self):
    return streams.splits(self.fields, self._example)

  def _example(self, rng, *, index, name) -> dict[str, Any]:
    fields = self.fields
    size = {name: fields[name] for name in ('height', 'width', 'long_side')}
    long_side = fields['long_side']
    scale = min(1, fields['height'] / (0.75 * long_side), fields['width'] / long_side)
    shape = round(0.75 * long_side * scale), round(long_side * scale)
    cells = scatter(rng, shape, most=fields['max_boxes'])
    picture = draw(rng, cells, shape, noise=fields['noise'])
    boxes = [box_of(cell, shape) for cell in cells]
    return boxed.example(
      boxed.letterbox(picture, np.array(boxes), **size),
      np.array([cell.kind for cell in cells]),
      max_boxes=fields['max_boxes'],
      index=index,
      name=name,
    )


def scatter(rng: np.random.Generator, shape: tuple[int, int], *, most: int) -> list[Cell]:
  """Draws cells with their centres inside [h, w]: at least one, at most `most`.

  Red cells may overlap by up to half a diameter, other kinds hardly.
  """
  wanted = [_WHITE] * int(rng.choice([0, 1, 2], p=[0.15, 0.7, 0.15]))
  wanted += [_PLATELET] * int(rng.integers(0, 4)) + [_RED] * int(rng.integers(5, 15))
  cells = []
  for kind in wanted[:most]:
    for _ in range(20):
      cell = _cell(rng, kind, shape)
      if all(_apart(cell, other) for other in cells):
        cells.append(cell)
        break
  return cells


def _cell(rng, kind, shape):
  radius = _RADII[kind] * max(shape) * rng.uniform(0.85, 1.15)
  stretch = rng.uniform(0.88, 1.14)
  x, y = rng.uniform(0.03, 0.97, 2) * [shape[1], shape[0]]
  return Cell(kind, x, y, (radius * stretch, radius / stretch), rng.uniform(0, np.pi))


def _apart(one, other):
  reach = max(one.radii) + max(other.radii)
  closest = 0.5 if one.kind == other.kind == _RED else 0.85
  return np.hypot(one.x - other.x, one.y - other.y) > closest * reach


def box_of(cell: Cell, shape: tuple[int, int]) -> np.ndarray:
  """Returns the bounding box of the part of a cell that lies in [h, w]."""
  c, s = np.cos(cell.angle), np.sin(cell.angle)
  half = np.hypot(np.multiply([c, s], cell.radii[0]), np.multiply([s, c], cell.radii[1]))
  box = [cell.x - half[0], cell.y - half[1], cell.x + half[0], cell.y + half[1]]
  return np.clip(box, 0, [shape[1], shape[0]] * 2)


def draw(
  rng: np.random.Generator, cells: list[Cell], shape: tuple[int, int], *, noise: float
) -> np.ndarray:
  """Draws the picture [h, w, 3] of cells, float32 in [0, 1]."""
  y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
  picture = np.broadcast_to(_BACKGROUND, (*shape, 3)) + rng.normal(0, 0.02, 3)
  picture = picture + (0.04 * (x / shape[1] - 0.5) * rng.normal())[..., None]
  for cell in sorted(cells, key=lambda cell: (_RED, _WHITE, _PLATELET).index(cell.kind)):
    rho = _distance(cell, x, y)
    shade = rng.normal(0, 0.03, 3)
    if cell.kind == _RED:
      middle = np.exp(-((rho / rng.uniform(0.35, 0.5)) ** 2)) * rng.uniform(0.3, 0.7)
      picture = _paint(picture, _ROSE + shade, 0.85 * _inside(rho, cell) * (1 - middle))
    elif cell.kind == _PLATELET:
      picture = _paint(picture, _VIOLET + 0.1 + shade, 0.9 * _inside(rho, cell))
    else:
      picture = _paint(picture, _LILAC + shade, 0.9 * _inside(rho, cell))
      for lobe in _lobes(rng, cell):
        picture = _paint(picture, _VIOLET + shade, 0.9 * _inside(_distance(lobe, x, y), lobe))
  picture = scipy.ndimage.gaussian_filter(picture, (0.4, 0.4, 0))
  picture = picture + rng.normal(0, noise, picture.shape)
  return np.clip(picture, 0, 1).astype(np.float32)


def _distance(cell, x, y):
  """Returns the distance from the cell's centre, 1 on its outline."""
  c, s = np.cos(cell.angle), np.sin(cell.angle)
  across, down = x - cell.x, y - cell.y
  return np.hypot((c * across + s * down) / cell.radii[0], (c * down - s * across) / cell.radii[1])


def _inside(rho, cell):
  """Returns 1 inside, 0 outside, with a ramp of about a pixel on the outline."""
  return np.clip((1 - rho) * min(cell.radii) + 0.5, 0, 1)


def _lobes(rng, cell):
  radius = min(cell.radii)
  count = int(rng.integers(2, 5))
  for angle in rng.uniform(0, 2 * np.pi) + np.arange(count) * 2 * np.pi / count:
    x, y = cell.x + 0.38 * radius * np.cos(angle), cell.y + 0.38 * radius * np.sin(angle)
    yield Cell(_WHITE, x, y, (0.42 * radius, 0.34 * radius), angle)


def _paint(picture, colour, alpha):
  return picture + alpha[..., None] * (colour - picture)


Builder = PhantomBccd

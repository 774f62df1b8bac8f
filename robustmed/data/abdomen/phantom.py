"""Synthetic twin of the source `abdomen`: CT in HU with pancreas, kidneys, liver and spleen.

Pose, shape, contrast and texture vary by subject. Spine, muscle, fat, vessels, stomach and bowel
lie between, some as bright as an organ, so that brightness alone does not identify an organ.
Lengths are fractions of the volume's sides, axes z (feet to head), y (front to back), x (right to
left).
"""

import functools
import json

import numpy as np

from robustmed import errors
from robustmed.data import painting
from robustmed.data.abdomen import ct_slices
from robustmed.data.decathlon import preprocess

VERSION = '1'  # to be raised when the same fields give other voxels
_WIDTH = 384.0  # millimetres of a slice
_GAP = 8.0  # millimetres between slices
DEFAULTS = {
  **ct_slices.FIELDS,
  'side': 64,
  'spacing': _WIDTH / 64,  # the phantom is drawn in 64 pixels; another value resamples
  'subjects': (40, 8, 20),
  'depth': 12,  # slices
  'noise': 12.0,  # HU
  'seed': 0,
}
_DRAWN = 64  # pixels, at the spacing of 6 millimetres


def sizes(fields):
  fingerprint(fields)
  return ct_slices.sizes(cases(fields), fields)


def depths(fields):
  fingerprint(fields)
  return ct_slices.depths(cases(fields), fields)


def fingerprint(fields):
  ct_slices.check_fields(fields)
  if fields['depth'] < 1:
    raise errors.UserError(f'data field depth must be at least 1, not {fields["depth"]}')
  if not 0 <= fields['noise'] <= 200:
    raise errors.UserError(f'data field noise must lie in [0, 200], not {fields["noise"]}')
  return json.dumps(
    [VERSION, *ct_slices.key(fields), *(fields[n] for n in ('depth', 'noise', 'seed'))]
  )


def cases(fields) -> list[ct_slices.Case]:
  return [
    ct_slices.Case(
      f'abdomen_{number:03d}',
      fields['depth'],
      functools.partial(draw, number, fields),
      f'abdomen_{number:03d}',
    )
    for number in range(sum(fields['subjects']))
  ]


def draw(number: int, fields) -> preprocess.Volume:
  """Draws subject `number` with at least 64 pixels a side, more for a spacing below 6 mm."""
  rng = np.random.default_rng([fields['seed'] % 2**32, number, 0xABD])
  pixels = max(_DRAWN, round(_WIDTH / fields['spacing']))
  shape = (fields['depth'], pixels, pixels)
  image, labels = _paint(rng, shape)
  blur = rng.uniform(0.4, 0.7)
  image += fields['noise'] * painting.texture(rng, shape, width=blur)
  return preprocess.Volume(
    image[..., None].astype(np.float32), labels, (_GAP, _WIDTH / pixels, _WIDTH / pixels)
  )


def _paint(rng, shape):
  canvas = painting.Canvas(rng, shape, warp=0.014)
  about = lambda *centre: np.array(centre) + rng.normal(0, 0.013, 3)
  sized = lambda *radii: np.array(radii) * rng.uniform(0.86, 1.14, 3)
  lean = rng.normal(0, 0.012, 3)
  hu = lambda mean, spread: rng.normal(mean, spread)

  image = np.full(shape, -1000, np.float32)
  skin = canvas.ellipsoid(lean, sized(np.inf, 0.36, 0.45))
  canvas.paint(image, hu(-100, 6), skin)
  canvas.paint(image, hu(55, 6), skin + rng.uniform(0.025, 0.05))  # muscle under the fat
  canvas.paint(image, hu(-95, 8), skin + rng.uniform(0.07, 0.09))  # fat between the organs
  bone = canvas.ellipsoid(lean + about(0, 0.2, 0), sized(np.inf, 0.07, 0.065))
  for side in (-1, 1):
    muscle = canvas.ellipsoid(lean + about(0, 0.2, side * 0.1), sized(np.inf, 0.05, 0.045))
    canvas.paint(image, hu(58, 6), muscle)
  for _ in range(rng.integers(4, 8)):  # bowel, some of it as bright as an organ
    loop = canvas.ellipsoid(
      lean + [rng.uniform(-0.5, 0.3), rng.uniform(-0.24, -0.02), rng.uniform(-0.1, 0.3)],
      sized(rng.uniform(0.15, 0.4), 0.06, 0.06),
    )
    canvas.paint(image, hu(50, 15), loop)
    canvas.paint(image, rng.choice([-400.0, 20.0, 160.0], p=[0.3, 0.5, 0.2]), loop + 0.025)
  stomach = canvas.ellipsoid(lean + about(0.3, -0.12, 0.16), sized(0.4, 0.09, 0.12))
  canvas.paint(image, hu(35, 12), stomach)
  canvas.paint(image, hu(220, 25), bone)
  canvas.paint(image, hu(130, 15), bone + 0.022)

  labels, bright = np.zeros(shape, np.int8), hu(0, 8)
  organs = (
    (3, hu(108, 9), _liver(canvas, lean, about, sized)),
    (4, hu(122, 9), canvas.ellipsoid(lean + about(0.2, 0.11, 0.29), sized(0.4, 0.12, 0.075))),
    (1, hu(88, 9), _pancreas(canvas, rng, lean)),
    *((2, hu(165, 14), one) for one in _kidneys(canvas, lean, about, sized)),
  )
  grain = 7 * painting.smooth_field(rng, shape, cells=9)
  for label, value, where in organs:
    where = np.maximum(where, 0.012 - bone)
    canvas.paint(image, value + bright + grain, where)
    labels[where < 0] = label
  for place in ((0.0, 0.1, 0.03), (0.0, 0.09, -0.045)):  # aorta and cava
    vessel = canvas.ellipsoid(lean + about(*place), sized(np.inf, 0.024, 0.024))
    canvas.paint(image, hu(150, 10) + bright, vessel)
    labels[vessel < 0] = 0
  return image, labels


def _liver(canvas, lean, about, sized):
  right = canvas.ellipsoid(lean + about(0.15, 0.0, -0.23), sized(0.55, 0.2, 0.15))
  left = canvas.ellipsoid(lean + about(0.25, -0.14, -0.06), sized(0.35, 0.08, 0.15))
  return np.minimum(right, left)


def _kidneys(canvas, lean, about, sized):
  return [
    canvas.ellipsoid(lean + about(-0.2 + high, 0.16, side * 0.18), sized(0.36, 0.075, 0.06))
    for side, high in ((-1, 0.0), (1, 0.05))
  ]


def _pancreas(canvas, rng, lean):
  t = np.linspace(0, 1, 9)[:, None]
  bend = rng.uniform(0.02, 0.06) * np.sin(np.pi * t)
  head, tail = np.array([-0.12, 0.01, -0.09]), np.array([0.16, 0.07, 0.2])
  line = lean + rng.normal(0, 0.015, 3) + head + t * (tail - head) - bend * [0, 1, 0]
  radii = rng.uniform(0.042, 0.052) * (1.15 - 0.4 * t[:, 0])
  thick = shape_ratio(canvas.shape)
  balls = [canvas.ellipsoid(at, (thick * 1.3 * r, r, 1.3 * r)) for at, r in zip(line, radii)]
  return np.minimum.reduce(balls)


def shape_ratio(shape) -> float:
  """Returns the width of the volume over its depth, both in millimetres."""
  return _WIDTH / (_GAP * shape[0])


arrange = ct_slices.arrange
windows = ct_slices.windows


class PhantomAbdomen(ct_slices.CtBuilder):
  def cases(self):
    return cases(self.fields)


Builder = PhantomAbdomen

"""Synthetic twin of Task02_Heart: a left atrium with its veins among other pools of bright blood.

Ventricles, right atrium and aorta are as bright as the atrium, which differs by place and form.
Air beside the body is zero, so that about a quarter of the volume is cropped away.
"""

import functools

import numpy as np

from robustmed.data import painting
from robustmed.data.decathlon import phantom_organs

_BLOOD, _MUSCLE, _TISSUE, _LUNG, _FAT = 0.8, 0.42, 0.5, 0.12, 0.65


def _layout(rng):
  return phantom_organs.Layout((int(rng.integers(100, 131)), 320, 320), (1.37, 1.25, 1.25))


def _draw(rng, shape):
  canvas = painting.Canvas(rng, shape, warp=0.012)
  jitter = lambda *centre: np.array(centre) + rng.normal(0, 0.008, 3)
  size = lambda *radii: np.array(radii) * rng.uniform(0.88, 1.12, 3)
  blood = lambda: _BLOOD + rng.normal(0, 0.02)
  heart = rng.normal(0, 0.012, 3)

  atrium = canvas.ellipsoid(heart + jitter(0.04, 0.05, 0.02), size(0.34, 0.075, 0.105))
  for side in (-1, 1):  # veins to both lungs
    for z in (-0.04, 0.12):
      along = np.linspace(0.3, 1, 8)[:, None]
      root = heart + jitter(0.04 + z, 0.06, 0.02)
      vein = canvas.tube(
        root + along * [0, 0.035, side * 0.15], np.full(8, rng.uniform(0.017, 0.024))
      )
      atrium = np.minimum(atrium, vein)
  pools = [
    canvas.ellipsoid(heart + jitter(*centre), size(*radii))
    for centre, radii in (
      ((-0.15, -0.09, 0.11), (0.3, 0.08, 0.075)),  # left ventricle
      ((-0.12, -0.15, -0.04), (0.3, 0.05, 0.1)),  # right ventricle
      ((0.02, -0.03, -0.125), (0.26, 0.075, 0.06)),  # right atrium
      ((0.4, -0.06, 0.0), (0.3, 0.04, 0.04)),  # ascending aorta
      ((0.0, 0.18, 0.05), (np.inf, 0.028, 0.028)),  # descending aorta
    )
  ]

  image = np.full(shape, _FAT, np.float32)
  canvas.paint(image, _TISSUE, canvas.ellipsoid((0, 0, 0), (np.inf, 0.44, 0.32)))
  for side in (-1, 1):
    lung = canvas.ellipsoid(jitter(0, 0.02, side * 0.24), size(np.inf, 0.33, 0.12))
    canvas.paint(image, _LUNG + 0.03 * painting.smooth_field(rng, shape, cells=9), lung)
  canvas.paint(image, 0.3, canvas.ellipsoid(jitter(0, 0.3, 0), (np.inf, 0.07, 0.06)))  # spine
  sac = canvas.ellipsoid(heart + [-0.03, -0.04, 0.01], size(0.6, 0.2, 0.22))
  canvas.paint(image, _MUSCLE, sac)
  image += 0.03 * painting.smooth_field(rng, shape, cells=9)
  for pool in pools:
    canvas.paint(image, blood(), np.maximum(pool, 0.014 - atrium), soft=2.5)
  canvas.paint(image, blood(), atrium, soft=2.5)
  image *= np.exp(0.15 * painting.smooth_field(rng, shape, cells=3))
  image += rng.uniform(0.05, 0.08) * painting.texture(rng, shape, width=0.6)
  image = np.maximum(image, 0.01)
  half = rng.uniform(0.35, 0.375)
  image[canvas.ellipsoid((0, 0, 0), (np.inf, 0.62, half)) > 0] = 0  # air
  return image[..., None], (atrium < 0).astype(np.int8)


ANATOMY = phantom_organs.Anatomy(
  name='heart',
  cases=20,
  patch=(320, 256),
  modalities=('MRI',),
  classes=('background', 'left atrium'),
  filled=False,
  layout=_layout,
  draw=_draw,
)
DEFAULTS = phantom_organs.defaults(ANATOMY)
sizes = functools.partial(phantom_organs.sizes, ANATOMY)
depths = functools.partial(phantom_organs.depths, ANATOMY)
groups = functools.partial(phantom_organs.groups, ANATOMY)
fingerprint = functools.partial(phantom_organs.fingerprint, ANATOMY)
arrange = functools.partial(phantom_organs.arrange, ANATOMY)
windows = functools.partial(phantom_organs.windows, ANATOMY)


class PhantomHeart(phantom_organs.Phantom):
  anatomy = ANATOMY


Builder = PhantomHeart

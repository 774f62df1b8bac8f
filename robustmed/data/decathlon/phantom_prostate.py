"""Synthetic twin of Task05_Prostate: a transition zone in a peripheral zone, on T2 and ADC.

Slices are thick. Some cases have another pixel size, so that resampling matters. The bladder is as
bright as the peripheral zone, the muscles beside it are as dark as the transition zone.
"""

import functools

import numpy as np

from robustmed.data import painting
from robustmed.data.decathlon import phantom_organs

_GRIDS = ((320, 0.625), (320, 0.625), (320, 0.6), (256, 0.75))  # pixels and their millimetres


def _layout(rng):
  side, spacing = _GRIDS[rng.integers(len(_GRIDS))]
  return phantom_organs.Layout((int(rng.integers(16, 25)), side, side), (3.6, spacing, spacing))


def _draw(rng, shape):
  canvas = painting.Canvas(rng, shape, warp=0.01)
  centre = rng.normal(0, [0.03, 0.03, 0.02])
  radii = np.array([0.36, 0.115, 0.15]) * rng.uniform(0.88, 1.15, 3)
  gland = canvas.ellipsoid(centre, radii)
  inner = canvas.ellipsoid(
    centre + radii * [0, rng.uniform(-0.32, -0.24), rng.normal(0, 0.04)],
    radii * rng.uniform([0.78, 0.6, 0.62], [0.88, 0.72, 0.76]),
  )
  inner = np.maximum(inner, gland + 0.01)  # a capsule of peripheral zone all round
  muscles = [
    canvas.ellipsoid(centre + [0, 0.03, side * rng.uniform(0.24, 0.28)], (0.8, 0.15, 0.05))
    for side in (-1, 1)
  ]
  bladder = canvas.ellipsoid(
    centre + [0.45, rng.uniform(-0.2, -0.14), 0], (0.35, 0.1, rng.uniform(0.13, 0.2))
  )
  rectum = canvas.ellipsoid(
    centre + [0, radii[1] + rng.uniform(0.07, 0.1), 0], (np.inf, 0.06, 0.075)
  )
  nodules = [
    (
      centre + radii * rng.uniform(-0.5, 0.5, 3) * [1, 0.8, 1],
      rng.uniform(0.02, 0.05),
      rng.normal(),
    )
    for _ in range(8)
  ]

  channels = []
  # fat, muscle, bladder, rectal wall and content, peripheral, transition zone
  for fat, muscle, water, wall, gas, outer, core, blur, noise in (
    (0.62, 0.3, 0.78, 0.4, 0.08, 0.72, 0.42, 0.6, 0.06),
    (0.2, 0.45, 0.95, 0.45, 0.1, 0.75, 0.52, 1.4, 0.07),
  ):
    image = np.full(shape, fat, np.float32) + 0.08 * painting.smooth_field(rng, shape, cells=9)
    for distance, value in (
      *((part, muscle) for part in muscles),
      (bladder, water),
      (rectum, wall),
      (rectum + 0.018, gas),
      (gland, outer + rng.normal(0, 0.02)),
      (inner, core + rng.normal(0, 0.02)),
    ):
      canvas.paint(image, value, distance, soft=2 + blur)
    for place, radius, sign in nodules:
      nodule = np.maximum(canvas.ellipsoid(place, (0.15, radius, radius)), inner)
      canvas.paint(image, core + 0.1 * np.tanh(sign), nodule, soft=4)
    image *= np.exp(0.15 * painting.smooth_field(rng, shape, cells=3))
    channels.append(np.maximum(image + noise * painting.texture(rng, shape, width=blur), 0.01))

  labels = np.zeros(shape, np.int8)
  labels[gland < 0] = 1
  labels[inner < 0] = 2
  return np.stack(channels, axis=-1), labels


ANATOMY = phantom_organs.Anatomy(
  name='prostate',
  cases=32,
  patch=(320, 320),
  modalities=('T2', 'ADC'),
  classes=('background', 'PZ', 'TZ'),
  filled=True,
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


class PhantomProstate(phantom_organs.Phantom):
  anatomy = ANATOMY


Builder = PhantomProstate

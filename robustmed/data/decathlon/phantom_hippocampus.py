"""Synthetic twin of Task04_Hippocampus: a bent, tilted body with a thick head, 1 mm voxels.

The head (anterior) lies at large y and small z, the tail (posterior) at small y and large z. The
border between them shows in the thickness and in white matter that mixes into the tail, so it is
visible in every slice of any orientation; amygdala, cortex and head are grey matter of the same
brightness.
"""

import functools

import numpy as np

from robustmed.data import painting
from robustmed.data.decathlon import phantom_organs

_WHITE, _GREY, _FLUID = 0.8, 0.48, 0.18
_TAIL = 0.14  # brightness of the tail above that of the head


def _layout(rng):
  shape = np.round(np.array([36, 50, 35]) * rng.uniform(0.88, 1.12, 3)).astype(int)
  return phantom_organs.Layout(tuple(shape.tolist()), (1.0, 1.0, 1.0))


def _draw(rng, shape):
  canvas = painting.Canvas(rng, shape, warp=0.012)
  step = rng.uniform(0.5, 0.62)  # where the head begins, along the body
  t = np.linspace(0, 1, 17)
  middle = rng.normal(0, 0.02, 3)
  bend = rng.uniform(0.06, 0.14)
  points = middle + np.stack(
    [0.24 - 0.42 * t, 0.68 * t - 0.34, bend * np.sin(np.pi * t) - 0.04], axis=1
  )
  thin, thick = rng.uniform(0.085, 0.105), rng.uniform(0.16, 0.19)
  radii = thin + (thick - thin) / (1 + np.exp(-(t - step) / 0.025))
  radii *= 1 - 0.35 * np.clip((t - 0.85) / 0.15, 0, 1)
  grey = _GREY + rng.normal(0, 0.02)
  body = canvas.tube(points, radii)

  image = np.full(shape, _WHITE + rng.normal(0, 0.02), np.float32)
  image += 0.04 * painting.smooth_field(rng, shape, cells=7)
  for _ in range(3):  # folds of cortex beside
    z, side = rng.uniform(-0.5, 0.5), rng.choice([-1, 1])
    fold = canvas.ellipsoid(
      (z, rng.uniform(-0.4, 0.4), side * rng.uniform(0.36, 0.5)),
      (0.25, rng.uniform(0.15, 0.4), rng.uniform(0.05, 0.12)),
    )
    canvas.paint(image, grey, np.maximum(fold, 0.02 - body))
  amygdala = canvas.ellipsoid(
    points[-1] + [-0.12, 0.1, rng.normal(0.02, 0.03)], rng.uniform(0.1, 0.17, 3)
  )
  canvas.paint(image, grey, np.maximum(amygdala, 0.015 - body))
  horn = canvas.tube(points + [0.01, 0, rng.choice([-1, 1]) * 0.08], radii)  # fluid at one side
  canvas.paint(image, _FLUID, np.maximum(horn, 0.01 - body))
  border = middle[1] + 0.68 * step - 0.34
  behind = 1 / (1 + np.exp((canvas.places[1] - border) / 0.02))
  canvas.paint(image, np.broadcast_to(grey + _TAIL * behind, shape), body)
  image *= np.exp(0.12 * painting.smooth_field(rng, shape, cells=3))
  image += rng.uniform(0.04, 0.07) * painting.texture(rng, shape, width=0.5)

  labels = np.zeros(shape, np.int8)
  head = canvas.places[1] > border
  labels[body < 0] = 2
  labels[(body < 0) & head] = 1
  return np.maximum(image, 0.01)[..., None], labels


ANATOMY = phantom_organs.Anatomy(
  name='hippocampus',
  cases=260,
  patch=(56, 40),
  modalities=('MRI',),
  classes=('background', 'Anterior', 'Posterior'),
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


class PhantomHippocampus(phantom_organs.Phantom):
  anatomy = ANATOMY


Builder = PhantomHippocampus

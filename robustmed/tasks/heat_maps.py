"""Landmarks at the largest value of one heat map each, as most networks from elsewhere give them.

Points are (x, y) in pixels of the image. For heat maps with offsets and votes see `landmarks`.
"""

import jax
import jax.numpy as jnp

from robustmed import types
from robustmed.metrics import landmarks

Array = jax.Array
RADIUS = 0.05  # of the longer side of a map
_TINY = 1e-8
_NEAREST = 0.25  # of a square of a distance in pixels of the map


def make(*, image_shape: tuple[int, int, int], units: str) -> types.Task:
  """Returns the task of n landmarks on images [b, h, w, c], without a network and its training.

  Targets: 'landmarks' [b, n, 2] and 'scale' [b, 2], mm per pixel. Outputs: {'heat': [b, h', w',
  n]}, on a grid of any size. Objectives, of maps divided by their deviation, mean over landmarks:
  'loss', the logarithm of the expected square of the distance under the softmax over a map;
  'margin', the largest value further than `RADIUS` from the landmark minus the largest nearer
  one, at most 1. Metrics: MRE in mm, the largest error MAX in mm, and SDR_<t>mm.
  """

  def metrics(outputs, batch):
    target = batch['target']
    found = points(outputs['heat'], image_shape)
    wanted = target['landmarks'], target['scale']
    distances = landmarks.radial_errors(found, *wanted)
    return {
      'MRE': jnp.mean(distances, axis=-1),
      'MAX': jnp.max(distances, axis=-1),
      **{
        f'SDR_{limit:g}mm': landmarks.detection_rate(found, *wanted, threshold=limit)
        for limit in landmarks.SDR_MM
      },
    }

  def parts(outputs, batch):
    """Values of the maps by their deviation, and squares of distances, [b, h' * w', n]."""
    heat = outputs['heat']
    _, height, width, count = heat.shape
    scale = jnp.array([[[width / image_shape[1], height / image_shape[0]]]])
    place = (batch['target']['landmarks'] + 0.5) * scale - 0.5  # [b, n, 2]
    x, y = jnp.arange(width, dtype=heat.dtype), jnp.arange(height, dtype=heat.dtype)
    across = x[None, None, :, None] - place[:, None, None, :, 0]
    down = y[None, :, None, None] - place[:, None, None, :, 1]
    flat = lambda maps: maps.reshape(len(heat), height * width, count)
    values = flat(heat)
    deviation = jax.lax.stop_gradient(jnp.std(values, axis=1, keepdims=True))
    return values / (deviation + _TINY), flat(across**2 + down**2)

  def expected(outputs, batch):
    values, square = parts(outputs, batch)
    weighted = jax.nn.logsumexp(values + jnp.log(square + _NEAREST), axis=1)
    return jnp.mean(weighted - jax.nn.logsumexp(values, axis=1), axis=-1)

  def margin(outputs, batch):
    values, square = parts(outputs, batch)
    near = square <= max(1.0, RADIUS * max(outputs['heat'].shape[1:3])) ** 2
    best = lambda where: jnp.max(values, axis=1, where=where, initial=-jnp.inf)
    return jnp.mean(jnp.minimum(best(~near) - best(near), 1.0), axis=-1)

  def none(*_):
    raise ValueError('the network of heat maps comes from elsewhere')

  return types.Task(
    init=none,
    predict=none,
    forward=none,
    losses=lambda outputs, batch: {'heat': expected(outputs, batch)},
    objectives={'loss': expected, 'margin': margin},
    metrics=metrics,
    image_shape=tuple(image_shape),
    units=units,
    compared=lambda outputs, batch: {
      'landmarks': (points(outputs['heat'], image_shape), batch['target']['landmarks'])
    },
  )


def points(heat: Array, image_shape: tuple[int, ...]) -> Array:
  """Returns the landmarks [b, n, 2] at the largest values of maps [b, h, w, n], the first of equal
  ones, in pixels of images [*image_shape]."""
  _, height, width, count = heat.shape
  place = jnp.argmax(heat.reshape(len(heat), height * width, count), axis=1)
  found = jnp.stack([place % width, place // width], axis=-1).astype(jnp.float32)
  return (found + 0.5) * jnp.array([[[image_shape[1] / width, image_shape[0] / height]]]) - 0.5

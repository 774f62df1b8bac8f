"""Landmarks at the largest value of one heat map each, as most networks from elsewhere give them.

Points are (x, y) in pixels of the image. For heat maps with offsets and votes see `landmarks`.
"""

import jax
import jax.numpy as jnp

from robustmed import types
from robustmed.metrics import landmarks

Array = jax.Array
RADIUS = 0.05  # of the longer side of a map
SHIFT = 0.1  # of the longer side
_TINY = 1e-8
_NEAREST = 0.25  # of a square of a distance in pixels of the map


def make(*, image_shape: tuple[int, int, int], units: str) -> types.Task:
  """Returns the task of n landmarks on images [b, h, w, c], without a network and its training.

  Targets: 'landmarks' [b, n, 2] and 'scale' [b, 2], mm per pixel. Outputs: {'heat': [b, h', w',
  n]}, on a grid of any size. Objectives, of maps divided by their deviation, mean over landmarks:
  'loss', the logarithm of the expected square of the distance under the softmax over a map;
  'margin', the largest value further than `RADIUS` from the landmark minus the largest nearer
  one, at most 1; 'radial', the expected distance in mm; 'shift', minus 'loss' for `wanted` points.
  Metrics: MRE in mm, the largest error MAX in mm, and SDR_<t>mm.
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

  def parts(outputs, places):
    """Values of the maps by their deviation, and squares of distances, [b, h' * w', n]."""
    heat = outputs['heat']
    _, height, width, count = heat.shape
    scale = jnp.array([[[width / image_shape[1], height / image_shape[0]]]])
    place = (places + 0.5) * scale - 0.5  # [b, n, 2]
    x, y = jnp.arange(width, dtype=heat.dtype), jnp.arange(height, dtype=heat.dtype)
    across = x[None, None, :, None] - place[:, None, None, :, 0]
    down = y[None, :, None, None] - place[:, None, None, :, 1]
    flat = lambda maps: maps.reshape(len(heat), height * width, count)
    values = flat(heat)
    deviation = jax.lax.stop_gradient(jnp.std(values, axis=1, keepdims=True))
    return values / (deviation + _TINY), flat(across**2 + down**2)

  def near(outputs, places):
    values, square = parts(outputs, places)
    weighted = jax.nn.logsumexp(values + jnp.log(square + _NEAREST), axis=1)
    return jnp.mean(weighted - jax.nn.logsumexp(values, axis=1), axis=-1)

  def expected(outputs, batch):
    return near(outputs, batch['target']['landmarks'])

  def radial(outputs, batch):
    places, heat = batch['target']['landmarks'], outputs['heat']
    values, _ = parts(outputs, places)
    height, width = heat.shape[1:3]
    at = _in_image(jnp.arange(height * width), heat.shape, image_shape)  # [h' * w', 2]
    apart = (at[None, :, None] - places[:, None]) * batch['target']['scale'][:, None, None]
    distance = jnp.linalg.norm(apart, axis=-1)
    return jnp.mean(jnp.sum(jax.nn.softmax(values, axis=1) * distance, axis=1), axis=-1)

  def margin(outputs, batch):
    values, square = parts(outputs, batch['target']['landmarks'])
    close = square <= max(1.0, RADIUS * max(outputs['heat'].shape[1:3])) ** 2
    best = lambda where: jnp.max(values, axis=1, where=where, initial=-jnp.inf)
    return jnp.mean(jnp.minimum(best(~close) - best(close), 1.0), axis=-1)

  def none(*_):
    raise ValueError('the network of heat maps comes from elsewhere')

  return types.Task(
    init=none,
    predict=none,
    forward=none,
    losses=lambda outputs, batch: {'heat': expected(outputs, batch)},
    objectives={
      'loss': expected,
      'margin': margin,
      'radial': radial,
      'shift': lambda outputs, batch: -near(outputs, wanted(batch['target'], image_shape)),
    },
    metrics=metrics,
    image_shape=tuple(image_shape),
    units=units,
    compared=lambda outputs, batch: {
      'landmarks': (points(outputs['heat'], image_shape), batch['target']['landmarks'])
    },
  )


def wanted(target: types.PyTree, image_shape: tuple[int, ...]) -> Array:
  """Returns where landmarks are to be shifted, [b, n, 2]: target['wanted'] if it is given.

  Else they are moved by `SHIFT` of the longer side towards the centre of the image, those that are
  on it along x.
  """
  if 'wanted' in target:
    return target['wanted']
  height, width = image_shape[:2]
  way = jnp.array([[[(width - 1) / 2, (height - 1) / 2]]]) - target['landmarks']
  length = jnp.linalg.norm(way, axis=-1, keepdims=True)
  way = jnp.where(length > 0, way / jnp.where(length > 0, length, 1), jnp.array([[[1.0, 0.0]]]))
  return target['landmarks'] + SHIFT * max(height, width) * way


def points(heat: Array, image_shape: tuple[int, ...]) -> Array:
  """Returns the landmarks [b, n, 2] at the largest values of maps [b, h, w, n], the first of equal
  ones, in pixels of images [*image_shape]."""
  _, height, width, count = heat.shape
  place = jnp.argmax(heat.reshape(len(heat), height * width, count), axis=1)
  return _in_image(place, heat.shape, image_shape)


def _in_image(place, shape, image_shape):
  """Places [...] of flattened maps of a shape as points [..., 2] in pixels of images."""
  _, height, width, _ = shape
  found = jnp.stack([place % width, place // width], axis=-1).astype(jnp.float32)
  cell = jnp.array([image_shape[1] / width, image_shape[0] / height])
  return (found + 0.5) * cell.reshape((1,) * place.ndim + (2,)) - 0.5

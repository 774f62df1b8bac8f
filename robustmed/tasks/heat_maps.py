"""Landmarks at the largest value of one heat map each, as most networks from elsewhere give them.

Points are (x, y) in pixels of the image. For heat maps with offsets and votes see `landmarks`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustmed import types
from robustmed.metrics import landmarks

Array = jax.Array
PyTree = object
_TINY = 1e-8


def make(
  predict: Callable[[PyTree, Array], dict[str, Array]],
  *,
  image_shape: tuple[int, int, int],
  units: str,
) -> types.Task:
  """Returns the task of n landmarks on images [b, h, w, c]; there is no training.

  Targets: 'landmarks' [b, n, 2] and 'scale' [b, 2], mm per pixel. predict's outputs are {'heat':
  [b, h', w', n]}, on a grid of any size. Objectives: 'loss', the cross-entropy of the softmax over
  a map, divided by its deviation, at the pixel of the landmark, mean over landmarks; 'margin', the
  largest of these values minus the one at the landmark, at most 1. Metrics: MRE in mm, the largest
  error MAX in mm, and SDR_<t>mm.
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

  def at_landmark(outputs, batch):
    heat = outputs['heat']
    _, height, width, count = heat.shape
    grid = jnp.array([width, height]) / jnp.array([image_shape[1], image_shape[0]])
    place = (batch['target']['landmarks'] + 0.5) * grid - 0.5
    x, y = (
      jnp.clip(jnp.round(place[..., k]).astype(jnp.int32), 0, size - 1)
      for k, size in enumerate((width, height))
    )
    flat = heat.reshape(len(heat), height * width, count)
    flat = flat / (jax.lax.stop_gradient(jnp.std(flat, axis=1, keepdims=True)) + _TINY)
    return flat, jnp.take_along_axis(flat, (y * width + x)[:, None], axis=1)[:, 0]

  def cross_entropy(outputs, batch):
    flat, own = at_landmark(outputs, batch)
    return jnp.mean(jax.nn.logsumexp(flat, axis=1) - own, axis=-1)

  def margin(outputs, batch):
    flat, own = at_landmark(outputs, batch)
    return jnp.mean(jnp.minimum(jnp.max(flat, axis=1) - own, 1.0), axis=-1)

  return types.Task(
    init=lambda key: {},
    predict=predict,
    forward=lambda variables, image, key: (predict(variables, image), {}),
    losses=lambda outputs, batch: {'heat': cross_entropy(outputs, batch)},
    objectives={'loss': cross_entropy, 'margin': margin},
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
  return (found + 0.5) * jnp.array([image_shape[1] / width, image_shape[0] / height]) - 0.5

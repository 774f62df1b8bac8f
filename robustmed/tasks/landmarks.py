"""Landmarks by heat maps and offsets (Yao et al. 2020), as Ma & Liang 2022 train and attack them.

Points are (x, y) in pixels of the image.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.metrics import landmarks
from robustmed.metrics import losses as loss_terms
from robustmed.tasks import heat_maps, networks

Array = jax.Array
TERMS = ('heat', 'offset_x', 'offset_y')
_TINY = 1e-8


class TargetMaps(NamedTuple):
  """The targets of a point's maps, each [b, h, w, n]."""

  mask: Array  # 1 closer to the point than the radius
  gauss: Array  # exp(-d^2 / (2 radius^2)) in the mask, 0 elsewhere
  offset_x: Array  # in the mask: from the pixel to the point, in radii
  offset_y: Array


def make(
  module: nn.Module,
  *,
  image_shape: tuple[int, int, int],
  radius: int = 0,
  legacy_targets: bool = False,
  units: str = 'L2 norm of the change of the image, whose values are in [-1, 1]',
) -> types.Task:
  """Returns the task of n landmarks on images [b, h, w, c].

  Targets: 'landmarks' [b, n, 2] and 'scale' [b, 2], mm per pixel. The module's outputs are {'heat'
  (logits), 'offset_x', 'offset_y': [b, h, w, n]}. `radius` 0 is a twentieth of the longer side.
  Losses, per example: 'heat', half of 1 - Dice of the heat with the mask (mean over landmarks),
  'offset_x' and 'offset_y', mean |error| within the masks. Objectives: 'loss', their sum, for
  attacks on every network; 'bce', where the heat's term is twice the cross-entropy with the
  Gaussian; 'heat', 'offset' alone; 'radial', see `expected_error`; 'shift', minus the loss for
  `heat_maps.wanted`. Metrics: MRE in mm and SDR_<t>mm of the points decoded by
  votes.

  `legacy_targets`: masks lie one pixel up and left of the point and are cropped on the wrong side
  at borders, as in the public code of both papers.
  """
  network = networks.bind(module, image_shape=image_shape)
  radius = radius or radius_of(image_shape)
  if radius < 1:
    raise errors.UserError(
      f'landmarks: a radius of {radius} pixels is too small; set radius to 1 or more'
    )

  def targets(outputs, batch):
    return target_maps(
      batch['target']['landmarks'], outputs['heat'].shape[1:3], radius=radius, legacy=legacy_targets
    )

  def terms(outputs, target):
    return {'heat': 0.5 * (1 - heat_dice(outputs['heat'], target.mask)), **offsets(outputs, target)}

  def losses(outputs, batch):
    return terms(outputs, targets(outputs, batch))

  def shift(outputs, batch):
    places = heat_maps.wanted(batch['target'], image_shape)
    target = target_maps(places, outputs['heat'].shape[1:3], radius=radius, legacy=legacy_targets)
    return -sum(terms(outputs, target).values())

  def cross_entropy(outputs, batch):
    target = targets(outputs, batch)
    return 2 * loss_terms.binary_cross_entropy(outputs['heat'], target.gauss) + sum(
      offsets(outputs, target).values()
    )

  def metrics(outputs, batch):
    target = batch['target']
    found = points(outputs, radius=radius)
    wanted = target['landmarks'], target['scale']
    return {
      'MRE': landmarks.mean_radial_error(found, *wanted),
      **{
        f'SDR_{limit:g}mm': landmarks.detection_rate(found, *wanted, threshold=limit)
        for limit in landmarks.SDR_MM
      },
    }

  return types.Task(
    init=network.init,
    predict=network.predict,
    forward=network.forward,
    losses=losses,
    objectives={
      'loss': lambda outputs, batch: sum(losses(outputs, batch).values()),
      'bce': cross_entropy,
      'heat': lambda outputs, batch: losses(outputs, batch)['heat'],
      'offset': lambda outputs, batch: sum(offsets(outputs, targets(outputs, batch)).values()),
      'radial': lambda outputs, batch: expected_error(outputs, batch['target'], radius=radius),
      'shift': shift,
    },
    metrics=metrics,
    image_shape=tuple(image_shape),
    units=units,
    diagnostics=diagnostics,
    compared=lambda outputs, batch: {
      'landmarks': (points(outputs, radius=radius), batch['target']['landmarks'])
    },
  )


def radius_of(shape: tuple[int, ...]) -> int:
  """Returns a twentieth of the longer side of images [h, w, ...]: 10 at 200 x 160."""
  return int(0.05 * max(shape[:2]))


def points(outputs: dict[str, Array], *, radius: int) -> Array:
  """Returns the landmarks [b, n, 2] that the maps predict, see `metrics.landmarks.vote`."""
  return landmarks.vote(outputs['heat'], outputs['offset_x'], outputs['offset_y'], radius=radius)


def target_maps(
  where: Array, grid: tuple[int, int], *, radius: int, legacy: bool = False
) -> TargetMaps:
  """Returns the targets around the pixels nearest to points [b, n, 2] on a grid of (h, w)."""
  distance, offset, near = [], [], []
  for axis in (0, 1):
    pixel = jnp.arange(grid[1 - axis], dtype=jnp.float32)[None, :, None]
    centre = where[:, None, :, axis]
    if legacy:
      centre = jnp.trunc(centre)
      place = pixel - jnp.maximum(centre - radius, 0)
      distance.append(place + 1 - radius)
      offset.append((radius - place) / radius)
      near.append((place >= 0) & (place < 2 * radius) & (pixel < centre + radius))
    else:
      centre = jnp.round(centre)
      distance.append(pixel - centre)
      offset.append((centre - pixel) / radius)
      near.append(jnp.ones_like(pixel, bool))
  across = lambda value: value[:, None]  # [b, w, n] -> [b, 1, w, n]
  down = lambda value: value[:, :, None]
  square = across(distance[0]) ** 2 + down(distance[1]) ** 2
  mask = ((square < radius**2) & across(near[0]) & down(near[1])).astype(jnp.float32)
  gauss = jnp.exp(-square / (2 * radius**2)) * mask
  return TargetMaps(mask, gauss, across(offset[0]) * mask, down(offset[1]) * mask)


def heat_dice(logits: Array, mask: Array) -> Array:
  """Returns the Dice of probabilities and masks, unsmoothed, mean over landmarks, [b]."""
  probability = jax.nn.sigmoid(logits)
  both = jnp.sum(probability * mask, axis=(1, 2))
  return jnp.mean(2 * both / (jnp.sum(probability, axis=(1, 2)) + mask.sum((1, 2)) + 1e-8), axis=-1)


def offsets(outputs: dict[str, Array], target: TargetMaps) -> dict[str, Array]:
  """Returns mean |predicted - true| in the masks of all landmarks, 'offset_x', 'offset_y' [b]."""
  count = jnp.maximum(target.mask.sum((1, 2, 3)), 1.0)
  return {
    name: jnp.sum(jnp.abs(outputs[name] - getattr(target, name)) * target.mask, axis=(1, 2, 3))
    / count
    for name in TERMS[1:]
  }


def expected_error(outputs: dict[str, Array], target: types.PyTree, *, radius: int) -> Array:
  """Returns the mean distance of voted points to the landmarks in mm, mean over landmarks, [b].

  Each pixel counts with the sigmoid of its heat and votes as in `metrics.landmarks.vote`, without
  rounding and for all pixels.
  """
  _, height, width, _ = outputs['heat'].shape
  weight, square = jax.nn.sigmoid(outputs['heat']), 0.0
  places = jnp.arange(width)[None, None, :, None], jnp.arange(height)[None, :, None, None]
  for axis, name in enumerate(TERMS[1:]):
    vote = places[axis] + radius * outputs[name]
    apart = vote - target['landmarks'][:, None, None, :, axis]
    square += jnp.square(apart * target['scale'][:, None, None, axis : axis + 1])
  distance = jnp.sqrt(square + _TINY)
  mean = jnp.sum(weight * distance, axis=(1, 2)) / (jnp.sum(weight, axis=(1, 2)) + _TINY)
  return jnp.mean(mean, axis=-1)


def diagnostics(outputs: dict[str, Array]) -> dict[str, Array]:
  """Returns the share of the pixels whose float32 probability is exactly 0 or 1."""
  probability = jax.nn.sigmoid(outputs['heat'])
  ends = (probability == 0) | (probability == 1)
  return {'_saturated': jnp.mean(ends.astype(jnp.float32), axis=(1, 2, 3))}

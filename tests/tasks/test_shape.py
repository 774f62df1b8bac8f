"""The contour's objectives of the disk-shape task."""

import jax
import jax.numpy as jnp
import numpy as np

from robustmed.metrics import overlap
from robustmed.ops import polygon
from robustmed.tasks import shape

SIDE = 24


def _circle(radius, x=11.3, y=12.1, count=60):
  angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
  return jnp.asarray(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], -1))


def test_polygon_dice_is_near_the_dice_and_climbs_to_what_lowers_it():
  mask = polygon.fill(_circle(6.0), SIDE)[None, ..., None].astype(jnp.float32)
  contours = jnp.stack([_circle(6.0), _circle(8.0), _circle(5.0, x=15.0), _circle(6.0, y=40.0)])
  batch = {'target': {'mask': jnp.repeat(mask, 4, axis=0)}}
  found = shape.OBJECTIVES['polygon_dice']({'contour': contours}, batch)
  filled = jax.vmap(lambda contour: polygon.fill(contour, SIDE))(contours)
  np.testing.assert_allclose(1 - found, overlap.dice(filled, mask[..., 0] > 0), atol=0.03)
  np.testing.assert_allclose(found[3], 1, atol=1e-6)
  covered = np.asarray([polygon.coverage(one, SIDE) for one in contours], np.float64)
  both = (covered * np.asarray(mask)[..., 0]).sum((1, 2))
  size = covered.sum((1, 2)) + np.asarray(mask).sum()
  np.testing.assert_allclose(found, 1 - 2 * both / size, rtol=1e-5)
  one = {'target': {'mask': mask}}
  value = lambda contour: shape.OBJECTIVES['polygon_dice']({'contour': contour[None]}, one)[0]
  contour = _circle(6.5)
  slope = jax.grad(value)(contour)
  assert np.isfinite(slope).all() and np.abs(slope).max() > 0
  assert value(contour + 0.2 * jnp.sign(slope)) > value(contour)

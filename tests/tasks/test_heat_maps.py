"""Landmarks at the largest values of heat maps, on grids of other sizes, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.tasks import heat_maps

SHAPE = (16, 24, 3)


def batch(points):
  points = jnp.asarray(points, jnp.float32)
  return {
    'target': {'landmarks': points, 'scale': jnp.tile(jnp.array([[2.0, 1.0]]), (len(points), 1))}
  }


def peaks(places, shape):
  """Maps [1, h, w, n] with the largest value at (row, column), a Gaussian of width 1.5."""
  rows, columns = np.mgrid[: shape[0], : shape[1]]
  maps = [np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 4.5) for r, c in places]
  return jnp.asarray(np.stack(maps, axis=-1)[None], jnp.float32)


def test_distances_in_mm():
  task = heat_maps.make(image_shape=SHAPE, units='')
  outputs = {'heat': peaks([(3, 5), (10, 20)], SHAPE[:2])}
  found = task.metrics(outputs, batch([[[5, 3], [17, 14]]]))
  np.testing.assert_allclose(found['MRE'], [np.hypot(2 * 3, 4) / 2], rtol=1e-6)
  np.testing.assert_allclose(found['MAX'], [np.hypot(6, 4)], rtol=1e-6)
  np.testing.assert_allclose(found['SDR_4mm'], [0.5])


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_a_coarse_map_is_placed_at_the_centres_of_its_cells(factor):
  heat = peaks([(1, 2)], (SHAPE[0] // factor, SHAPE[1] // factor))
  found = heat_maps.points(heat, SHAPE)[0, 0]
  np.testing.assert_allclose(found, [(2 + 0.5) * factor - 0.5, 1.5 * factor - 0.5])


@pytest.mark.parametrize('scale', [1.0, 1e-3])
def test_the_loss_moves_the_largest_value_away_whatever_its_scale(scale):
  task = heat_maps.make(image_shape=SHAPE, units='')
  target = batch([[[5, 3]]])
  heat = scale * peaks([(3, 5)], SHAPE[:2])
  right = task.objectives['loss']({'heat': heat}, target)
  wrong = task.objectives['loss']({'heat': scale * peaks([(10, 20)], SHAPE[:2])}, target)
  assert wrong > right
  assert task.objectives['margin']({'heat': heat}, target) < 0
  moved = {'heat': scale * peaks([(10, 20)], SHAPE[:2])}
  np.testing.assert_allclose(task.objectives['margin'](moved, target), 1)
  for _ in range(60):
    slope = jax.grad(lambda heat: task.objectives['loss']({'heat': heat}, target).sum())(heat)
    heat = heat + 0.02 * scale * jnp.sign(slope)
  # out of the radius, which is 1.2 pixels of 2 and 1 mm
  assert task.metrics({'heat': heat}, target)['MRE'] > 1.5


@pytest.mark.parametrize('factor', [1, 2])
def test_expected_error_and_shift_by_hand(factor):
  height, width = SHAPE[0] // factor, SHAPE[1] // factor
  heat = np.random.default_rng(0).normal(size=(2, height, width, 2)).astype(np.float32)
  target = batch([[[5, 3], [11.5, 7.5]], [[0, 0], [20, 10]]])
  places = np.asarray(target['target']['landmarks'], np.float64)
  way = np.array([11.5, 7.5]) - places
  way[0, 1] = 1, 0  # in the centre of the image
  aims = places + 2.4 * way / np.linalg.norm(way, axis=-1, keepdims=True)
  radial, near = np.zeros((2, 2)), np.zeros((2, 2))
  for b, n in np.ndindex(2, 2):
    values = heat[b, ..., n].astype(np.float64)
    p = np.exp(values / values.std())
    p /= p.sum()
    for row, column in np.ndindex(height, width):
      at = (np.array([column, row]) + 0.5) * factor - 0.5
      x, y = at - places[b, n]
      radial[b, n] += p[row, column] * np.hypot(2 * x, y)
      x, y = (at - aims[b, n]) / factor
      near[b, n] += p[row, column] * (x**2 + y**2 + 0.25)
  made = heat_maps.make(image_shape=SHAPE, units='')
  outputs = {'heat': jnp.asarray(heat)}
  found = made.objectives['radial'](outputs, target)
  np.testing.assert_allclose(found, radial.mean(1), rtol=1e-5)
  shifted = made.objectives['shift'](outputs, target)
  np.testing.assert_allclose(shifted, -np.log(near).mean(1), rtol=1e-4)
  target['target']['wanted'] = jnp.asarray(aims, jnp.float32)
  np.testing.assert_allclose(made.objectives['shift'](outputs, target), shifted, rtol=1e-5)

"""The landmark task by hand and against plain loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import errors
from robustmed.tasks import landmarks

GRID = (20, 16)


class Maps(nn.Module):
  @nn.compact
  def __call__(self, image, *, train=False):
    maps = nn.Dense(6, name='maps')(image)
    return dict(zip(landmarks.TERMS, jnp.split(maps, 3, axis=-1)))


def task(**fields):
  return landmarks.make(Maps(), image_shape=(*GRID, 3), radius=4, **fields)


def batch(points):
  points = np.asarray(points, np.float32)
  return {'target': {'landmarks': points, 'scale': np.tile([[1.0, 2.0]], (len(points), 1))}}


def plain(point, radius, legacy):
  """Stamps of one point by loops over pixels: mask, gauss, x, y."""
  maps = np.zeros((4, *GRID))
  cut = np.trunc if legacy else np.round
  x, y = (int(cut(value)) for value in point)
  left, top = max(x - radius, 0), max(y - radius, 0)
  for row in range(GRID[0]):
    for column in range(GRID[1]):
      if legacy:
        i, j = column - left, row - top
        if not (0 <= i < 2 * radius and 0 <= j < 2 * radius):
          continue
        if column >= x + radius or row >= y + radius:
          continue
        dx, dy, to_x, to_y = i + 1 - radius, j + 1 - radius, radius - i, radius - j
      else:
        dx, dy = column - x, row - y
        to_x, to_y = -dx, -dy
      if np.hypot(dx, dy) < radius:
        gauss = np.exp(-(dx**2 + dy**2) / (2 * radius**2))
        maps[:, row, column] = [1, gauss, to_x / radius, to_y / radius]
  return maps


@pytest.mark.parametrize('legacy', [False, True])
def test_stamps_agree_with_plain_loops_also_at_borders(legacy):
  where = np.array([[[7.4, 9.6], [1.2, 18.7]], [[15.0, 0.0], [-3.0, 4.0]]], np.float32)
  found = landmarks.target_maps(jnp.asarray(where), GRID, radius=4, legacy=legacy)
  for b in range(2):
    for n in range(2):
      want = plain(where[b, n], 4, legacy)
      for have, wanted in zip(found, want, strict=True):
        np.testing.assert_allclose(have[b, ..., n], wanted, atol=1e-6)


def test_the_published_stamp():
  mask, gauss, x, _ = landmarks.target_maps(jnp.array([[[80.0, 100.0]]]), (200, 160), radius=10)
  assert float(gauss.max()) == 1 and float(gauss[mask > 0].min()) > 0.607
  assert float(x[0, 100, 71, 0]) == pytest.approx(0.9) and float(mask[0, 100, 70, 0]) == 0
  legacy = landmarks.target_maps(jnp.array([[[80.0, 100.0]]]), (200, 160), radius=10, legacy=True)
  assert float(legacy.gauss[0, 99, 79, 0]) == 1 and float(legacy.offset_x[0, 99, 80, 0]) == 0


def perfect(target):
  wide = jnp.where(target.mask > 0, 60.0, -60.0)
  return {'heat': wide, 'offset_x': target.offset_x, 'offset_y': target.offset_y}


def test_perfect_maps_have_no_loss_and_vote_for_the_nearest_pixel():
  data = batch([[[7.4, 9.6], [11.0, 5.0]]])
  target = landmarks.target_maps(jnp.asarray(data['target']['landmarks']), GRID, radius=4)
  outputs, made = perfect(target), task()
  losses = made.losses(outputs, data)
  assert tuple(losses) == landmarks.TERMS
  assert max(float(value[0]) for value in losses.values()) < 1e-6
  np.testing.assert_array_equal(landmarks.points(outputs, radius=4), [[[7, 10], [11, 5]]])
  metrics = made.metrics(outputs, data)
  error = np.hypot(0.4 * 1, 0.4 * 2)
  assert float(metrics['MRE'][0]) == pytest.approx(error / 2, rel=1e-4)
  assert {name: float(value[0]) for name, value in metrics.items() if name != 'MRE'} == {
    'SDR_2mm': 1.0,
    'SDR_2.5mm': 1.0,
    'SDR_3mm': 1.0,
    'SDR_4mm': 1.0,
  }
  found, wanted = made.compared(outputs, data)['landmarks']
  assert found.shape == np.shape(wanted) == (1, 2, 2)
  assert float(made.diagnostics(outputs)['_saturated'][0]) > 0.1  # sigmoid(60) is 1 in float32


def test_losses_by_hand():
  data = batch([[[7.0, 9.0], [11.0, 5.0]]] * 2)
  rng = np.random.default_rng(0)
  outputs = {name: rng.normal(size=(2, *GRID, 2)).astype(np.float32) for name in landmarks.TERMS}
  made = task()
  losses, objectives = made.losses(outputs, data), made.objectives
  target = landmarks.target_maps(jnp.asarray(data['target']['landmarks']), GRID, radius=4)
  mask, gauss, x, y = (np.asarray(leaf, np.float64) for leaf in target)
  p = 1 / (1 + np.exp(-outputs['heat'].astype(np.float64)))
  dice = 2 * (p * mask).sum((1, 2)) / (p.sum((1, 2)) + mask.sum((1, 2)))
  entropy = -(gauss * np.log(p) + (1 - gauss) * np.log(1 - p)).mean((1, 2, 3))
  sides = [
    (np.abs(outputs[name] - want) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    for name, want in (('offset_x', x), ('offset_y', y))
  ]
  np.testing.assert_allclose(losses['heat'], 0.5 * (1 - dice.mean(-1)), rtol=1e-5)
  np.testing.assert_allclose(losses['offset_x'], sides[0], rtol=1e-5)
  np.testing.assert_allclose(losses['offset_y'], sides[1], rtol=1e-5)
  np.testing.assert_allclose(objectives['bce'](outputs, data), 2 * entropy + sum(sides), rtol=1e-5)
  whole = 0.5 * (1 - dice.mean(-1)) + sum(sides)
  np.testing.assert_allclose(objectives['loss'](outputs, data), whole, rtol=1e-5)


def test_examples_are_apart_and_points_outside_harm_nobody():
  data = batch([[[7.0, 9.0], [11.0, 5.0]], [[-90.0, 9.0], [11.0, 900.0]]])
  made, image = task(), np.random.default_rng(1).normal(size=(2, *GRID, 3)).astype(np.float32)
  outputs = made.predict(made.init(jax.random.key(0)), image)
  both = made.losses(outputs, data)
  first = jax.tree.map(lambda leaf: leaf[:1], (outputs, data))
  for name, value in made.losses(*first).items():
    np.testing.assert_allclose(both[name][:1], value, rtol=1e-5)
    assert np.isfinite(both[name]).all()
  with pytest.raises(errors.UserError, match='too small'):
    landmarks.make(Maps(), image_shape=(16, 16, 3))


def test_expected_error_and_shift_by_hand():
  data = batch([[[7.0, 9.0], [11.0, 5.0]], [[7.5, 9.5], [2.0, 19.0]]])
  rng = np.random.default_rng(2)
  outputs = {name: rng.normal(size=(2, *GRID, 2)).astype(np.float32) for name in landmarks.TERMS}
  weight = 1 / (1 + np.exp(-outputs['heat'].astype(np.float64)))
  each = np.zeros((2, 2))
  for b, n in np.ndindex(2, 2):
    place, total = data['target']['landmarks'][b, n], 0
    for row, column in np.ndindex(*GRID):
      x = column + 4 * outputs['offset_x'][b, row, column, n] - place[0]
      y = row + 4 * outputs['offset_y'][b, row, column, n] - place[1]
      total += weight[b, row, column, n] * np.hypot(1 * x, 2 * y)
    each[b, n] = total / weight[b, ..., n].sum()
  made = task()
  np.testing.assert_allclose(made.objectives['radial'](outputs, data), each.mean(1), rtol=1e-5)
  # a tenth of 20 pixels towards (7.5, 9.5); the landmark in the centre goes along x
  centre, length = np.array([7.5, 9.5]), lambda v: np.linalg.norm(v, axis=-1, keepdims=True)
  way = centre - data['target']['landmarks']
  way[1, 0] = 1, 0
  there = data['target']['landmarks'] + 2 * way / length(way)
  moved = {'target': {**data['target'], 'landmarks': there.astype(np.float32)}}
  stated = {'target': {**data['target'], 'wanted': moved['target']['landmarks']}}
  for some in (data, stated):
    found = made.objectives['shift'](outputs, some)
    np.testing.assert_allclose(found, -made.objectives['loss'](outputs, moved), rtol=1e-5)

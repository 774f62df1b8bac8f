"""Heat maps: the target by its formula, the loss by hand, metrics, and a little training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.tasks import blobs

FAST = {'xla_backend_optimization_level': 0}
GRID = (10, 9, 8)


def task(**fields):
  """Its functions are one program each, which compile faster than their steps one by one."""
  made = blobs.make(nn.Module(), image_shape=(*GRID, 1), **fields)
  fast = lambda function: jax.jit(function, compiler_options=FAST)
  return made._replace(
    losses=fast(made.losses),
    metrics=fast(made.metrics),
    objectives={name: fast(function) for name, function in made.objectives.items()},
  )


def batch():
  """Two nodules, one, none; the last slot of the first lies beyond the image."""
  centre = np.array(
    [
      [[3, 4, 2], [6.5, 5, 6.25], [30, 4, 4]],
      [[5, 4, 4], [0, 0, 0], [0, 0, 0]],
      [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ],
    np.float32,
  )
  diameter = np.array([[4, 6, 3], [5, 0, -1], [0, 0, 0]], np.float32)
  return {
    'image': np.zeros((3, *GRID, 1), np.float32),
    'target': {'centre': centre, 'diameter': diameter},
    'mask': np.ones(3, bool),
  }


def wanted(data, spacing=1.0):
  cells = np.stack(np.meshgrid(*map(np.arange, GRID), indexing='ij'), axis=-1)
  heat = np.zeros((3, *GRID))
  for i in range(3):
    for c, d in zip(data['target']['centre'][i], data['target']['diameter'][i] / spacing):
      if d > 0:
        square = ((cells - c) ** 2).sum(-1)
        heat[i] = np.maximum(heat[i], np.exp(-square / (2 * (d / 4) ** 2)))
  return heat


def test_the_target_is_the_largest_of_the_gaussians():
  data = batch()
  goal = data['target']
  target = jax.jit(blobs.target, static_argnums=2, compiler_options=FAST)
  for spacing in (1.0, 0.5):
    found = target(goal['centre'], goal['diameter'] / spacing, GRID)
    np.testing.assert_allclose(found, wanted(data, spacing), atol=1e-6)
  assert found[0, 3, 4, 2] == 1 and found[2].max() == 0
  flat = target(goal['centre'][..., :2], goal['diameter'], GRID[:2])
  assert flat.shape == (3, *GRID[:2]) and flat[1, 5, 4] == 1


@pytest.mark.parametrize('focus', [0.0, 1.0, 2.0])
def test_the_loss_weighs_cells_by_their_error(focus):
  data = batch()
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (3, *GRID, 1)).astype(np.float32)
  heat = wanted(data)
  error = np.abs(1 / (1 + np.exp(-logits[..., 0].astype(np.float64))) - heat)
  want = (error ** (2 + focus)).sum((1, 2, 3)) / (1 + heat.sum((1, 2, 3)))
  found = task(focus=focus).losses({'heat': logits}, data)['heat']
  np.testing.assert_allclose(found, want, rtol=1e-5)


def test_metrics_count_nodules_and_false_peaks():
  data = batch()
  heat = np.full((3, *GRID, 1), -9, np.float32)
  heat[0, 3, 4, 2] = heat[2, 9, 8, 7] = 9
  heat[1, 0, 0, 0] = 1
  found = task().metrics({'heat': heat}, data)
  np.testing.assert_allclose(found['found'], [0.5, 0, 1])  # the one beyond does not count
  high = lambda logit: 1 / (1 + np.exp(-logit))
  np.testing.assert_allclose(found['false_peak'], [high(-9), high(1), high(9)], rtol=1e-4)
  error = (1 / (1 + np.exp(-heat[..., 0].astype(np.float64))) - wanted(data)) ** 2
  np.testing.assert_allclose(found['error'], error.mean((1, 2, 3)), rtol=1e-4)
  missed = task().objectives['found']({'heat': heat}, data)
  log = lambda logit: np.log1p(np.exp(-float(logit)))
  np.testing.assert_allclose(missed, [(log(9) + log(-9)) / 2, log(-9), 0], rtol=1e-4)


def test_every_function_is_per_example():
  data, rng = batch(), np.random.default_rng(2)
  out = rng.normal(size=(3, *GRID, 1)).astype(np.float32)
  other = np.concatenate([out[:1], 1 - out[1:]])
  made = task()
  for function in (made.losses, made.metrics, made.objectives['found']):
    first, second = (jax.tree.leaves(function({'heat': o}, data)) for o in (out, other))
    for a, b in zip(first, second, strict=True):
      assert a.shape == (3,) and np.isfinite(a).all()
      np.testing.assert_allclose(a[0], b[0], rtol=1e-6)


def test_descent_makes_the_map_of_one_nodule():
  made, data = task(), jax.tree.map(lambda leaf: leaf[1:2], batch())
  whole = blobs.make(nn.Module(), image_shape=(*GRID, 1)).objectives['heat']
  loss = lambda heat: jnp.sum(whole({'heat': heat}, data))
  gradient = jax.jit(jax.grad(loss), compiler_options=FAST)
  heat = np.full((1, *GRID, 1), -2, np.float32)
  for _ in range(40):
    heat -= 0.3 * np.sign(gradient(heat))
  metrics = made.metrics({'heat': heat}, data)
  assert metrics['found'][0] == 1 and metrics['false_peak'][0] < 0.2
  assert metrics['error'][0] < 0.02

"""Published objectives pixel by pixel, with loops and in float64, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed import attacks, errors
from robustmed.tasks import dense_objectives

SHAPE, CLASSES = (3, 4, 5), 3


@pytest.fixture(scope='module')
def case():
  rng = np.random.default_rng(0)
  labels = rng.integers(-1, CLASSES, SHAPE).astype(np.int32)
  labels[2] = np.minimum(labels[2], 1)  # a class is missing
  counted = rng.uniform(size=SHAPE) < 0.7
  logits = rng.normal(size=(*SHAPE, CLASSES)).astype(np.float32)
  return logits, labels, counted


def _pixels(case, use_counted):
  """For every image its pixels: (p [k], label)."""
  logits, labels, counted = case
  raw = np.exp(logits.astype(np.float64))
  p = raw / raw.sum(-1, keepdims=True)
  return [
    [
      (p[b, i, j], max(labels[b, i, j], 0))
      for i in range(SHAPE[1])
      for j in range(SHAPE[2])
      if counted[b, i, j] or not use_counted
    ]
    for b in range(SHAPE[0])
  ]


def _divergence(p, y):
  wanted = np.eye(CLASSES)[y]
  middle = (p + wanted) / 2
  relative = lambda a: sum(x * np.log(x / m) for x, m in zip(a, middle) if x > 0)
  return (relative(p) + relative(wanted)) / 2


def _balanced(pixels):
  by_class = [[-np.log(p[y]) for p, y in pixels if y == k] for k in range(CLASSES)]
  return np.mean([np.mean(values) for values in by_class if values])


def _mean(value):
  return lambda pixels: np.mean([value(p, y) for p, y in pixels])


def _on_structures(pixels):
  return np.mean([np.log(p[0]) for p, y in pixels if y > 0])


FORMULAS = {
  'masked_ce': _mean(lambda p, y: -np.log(p[y]) * (np.argmax(p) == y)),
  'balanced_ce': _balanced,
  'js': _mean(_divergence),
  'segpgd': _mean(lambda p, y: -np.log(p[y]) * 0.5),
  'erase': _on_structures,
  'cospgd': _mean(lambda p, y: -np.log(p[y]) * p[y] / np.linalg.norm(p)),
}


def test_one_structure_is_erased(case):
  logits, labels, _ = case
  for label in range(1, CLASSES):
    found = dense_objectives.erase_one(label)(
      {'head0': jnp.asarray(logits)}, {'target': {'labels': labels}}
    )
    log_p = np.log(np.exp(logits[..., 0]) / np.exp(logits).sum(-1))
    for value, own, there in zip(found, log_p, np.asarray(labels) == label, strict=True):
      np.testing.assert_allclose(value, own[there].mean() if there.any() else 0, rtol=1e-5)


@pytest.mark.parametrize('use_counted', [False, True])
@pytest.mark.parametrize('name', sorted(FORMULAS))
def test_formula(case, name, use_counted):
  logits, labels, counted = case
  target = {'labels': labels, **({'counted': counted} if use_counted else {})}
  found = dense_objectives.OBJECTIVES[name]({'head0': jnp.asarray(logits)}, {'target': target})
  wanted = [FORMULAS[name](pixels) for pixels in _pixels(case, use_counted)]
  np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_every_objective_has_a_formula():
  assert {*FORMULAS, 'plant'} == {*dense_objectives.OBJECTIVES}


@pytest.mark.parametrize('use_counted', [False, True])
def test_plant_takes_the_best_of_the_emptiest_blocks(use_counted):
  rng = np.random.default_rng(1)
  shape = (4, 16, 11)
  logits = rng.normal(size=(*shape, CLASSES)).astype(np.float32)
  labels = (rng.uniform(size=shape) < 0.2).astype(np.int32)
  labels[1] = 1  # no background at all: nothing can be planted
  labels[2, 3:] = -1  # outside of the scan
  counted = rng.uniform(size=shape) < 0.9 if use_counted else np.ones(shape, bool)
  p = np.exp(logits.astype(np.float64))
  value = np.log(1 - (p / p.sum(-1, keepdims=True))[..., 0])
  wanted = []
  for b in range(shape[0]):
    blocks = {}
    for i, j in np.argwhere((labels[b] == 0) & counted[b]):
      blocks.setdefault((i * 8 // 16, j * 8 // 11), []).append(value[b, i, j])
    most = max(map(len, blocks.values()), default=0)
    wanted.append(max((np.mean(v) for v in blocks.values() if len(v) == most), default=0))
  target = {'labels': labels, 'counted': counted}
  plant = lambda logits: dense_objectives.plant({'head0': logits}, {'target': target})
  np.testing.assert_allclose(plant(jnp.asarray(logits)), wanted, rtol=1e-5, atol=1e-7)
  assert np.isfinite(jax.grad(lambda x: plant(x).sum())(jnp.asarray(50 * logits))).all()


def test_weights_of_segpgd_are_those_of_its_steps(case):
  logits, labels, _ = case
  steps = 5
  for step in range(1, steps + 1):
    share = (step - 1) / (2 * steps)
    found = dense_objectives.segpgd(
      {'head0': jnp.asarray(logits)}, {'target': {'labels': labels}}, (step - 1) / steps
    )
    wanted = [
      np.mean([-np.log(p[y]) * (1 - share if np.argmax(p) == y else share) for p, y in pixels])
      for pixels in _pixels(case, False)
    ]
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_gradients(case):
  """Only right pixels pull in masked_ce; the weight of cospgd has none; js is flat at the ends."""
  logits, labels, _ = case
  batch = {'target': {'labels': labels}}
  grad = lambda name, at: np.asarray(
    jax.grad(lambda x: jnp.sum(dense_objectives.OBJECTIVES[name]({'head0': x}, batch)))(
      jnp.asarray(at)
    )
  )
  right = np.argmax(logits, -1) == np.maximum(labels, 0)
  moved = np.abs(grad('masked_ce', logits)).max(-1)
  assert np.all(moved[~right] == 0)
  assert np.all(moved[right] > 0)
  # d CE = p - y, times the weight, over the number of pixels
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  wanted = np.eye(CLASSES)[np.maximum(labels, 0)]
  own = (p * wanted).sum(-1)
  weight = own / np.linalg.norm(p, axis=-1) / np.prod(SHAPE[1:])
  np.testing.assert_allclose(
    grad('cospgd', logits), (p - wanted) * weight[..., None], rtol=1e-3, atol=1e-7
  )
  for sure in (200.0, -200.0):
    assert np.abs(grad('js', sure * wanted)).max() < 1e-6
    assert np.isfinite(grad('js', sure * wanted)).all()


def test_segpgd_in_the_loop(case):
  """It is told its progress, and refuses to choose among its own values."""
  _, labels, _ = case
  image = jnp.zeros((*SHAPE, CLASSES))
  batch = {'target': {'labels': labels}}
  objective = lambda x, progress: dense_objectives.segpgd({'head0': x}, batch, progress)
  run = lambda select, **more: attacks.pgd(
    num_steps=4, select=select, random_start=False, norm='l2'
  )(objective, image, eps=1.0, key=jax.random.key(0), **more)
  wrong = lambda x: 1 - jnp.mean((jnp.argmax(x, -1) == jnp.maximum(labels, 0)) * 1.0, (1, 2))
  found = run('monitor', monitor=wrong)
  assert np.all(wrong(found.x) > wrong(image))
  with pytest.raises(errors.UserError, match='changes with the steps'):
    run('best')

"""Anchors: where they lie, which they match, losses by hand, and boxes there and back."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from robustmed import errors
from robustmed.metrics.froc import volume_boxes
from robustmed.tasks import proposals

FAST = {'xla_backend_optimization_level': 0}
GRID, COARSE, SIDES = (16, 16, 12), (8, 8, 6), (4.0, 8.0)


def task(**fields):
  made = proposals.make(nn.Module(), image_shape=(*GRID, 1), sides=SIDES, **fields)
  return compiled(made)


def compiled(made):
  """Its functions as one program each, which compile faster than their steps one by one."""
  fast = lambda function: jax.jit(function, compiler_options=FAST)
  return made._replace(
    losses=fast(made.losses),
    metrics=fast(made.metrics),
    objectives={name: fast(function) for name, function in made.objectives.items()},
  )


def batch():
  """Two nodules (8 and 3 cells wide), and none."""
  centre = np.array([[[4.5, 4.5, 4.5], [12, 11, 8]], [[0, 0, 0], [0, 0, 0]]], np.float32)
  diameter = np.array([[8, 3], [0, 0]], np.float32)
  return {
    'image': np.zeros((2, *GRID, 1), np.float32),
    'target': {'centre': centre, 'diameter': diameter},
    'mask': np.ones(2, bool),
  }


def outputs(numbers=7, seed=0):
  rng = np.random.default_rng(seed)
  return {'boxes': rng.normal(size=(2, *COARSE, 2, numbers)).astype(np.float32)}


def test_anchors_lie_in_the_middle_of_their_cells():
  centre, side = proposals.anchors(COARSE, GRID, SIDES)
  assert centre.shape == (8 * 8 * 6 * 2, 3)
  np.testing.assert_allclose(centre[:2], 0.5)  # of cells 0 and 1
  np.testing.assert_allclose(centre[-1], [14.5, 14.5, 10.5])
  np.testing.assert_array_equal(side[:4], [4, 8, 4, 8])
  np.testing.assert_allclose(centre[2], [0.5, 0.5, 2.5])  # the last axis next


MATCH = jax.jit(proposals.match, compiler_options=FAST)


@functools.cache
def matched():
  centre, side = map(np.asarray, proposals.anchors(COARSE, GRID, SIDES))
  goal = batch()['target']
  found = MATCH(centre, side, goal['centre'][0], goal['diameter'][0])
  return centre, side, jax.tree.map(np.asarray, found)


def test_matching_is_by_overlap_and_no_nodule_goes_without():
  centre, side, found = matched()
  goal = batch()['target']
  cube = lambda s: np.asarray(s)[..., None]
  overlap = np.asarray(
    volume_boxes.iou(
      centre[:, None], cube(side)[:, None], goal['centre'][0][None], cube(goal['diameter'][0])[None]
    )
  )
  want = (overlap >= 0.5).any(1)
  want[overlap.argmax(0)] = True
  np.testing.assert_array_equal(found.positive, want)
  assert overlap[:, 1].max() < 0.5  # the second nodule has its best one alone
  own = np.linalg.norm(found.centre[found.positive] - goal['centre'][0][1], axis=1) == 0
  assert own.sum() == 1 and (found.side[found.positive][own] == 3).all()
  np.testing.assert_array_equal(found.negative, ~want & (overlap.max(1) < 0.02))
  exact = (centre == 4.5).all(1) & (side == 8)
  assert found.positive[exact].all() and exact.sum() == 1
  none = MATCH(centre, side, goal['centre'][1], goal['diameter'][1])
  assert not none.positive.any() and none.negative.all()


@pytest.mark.parametrize('numbers', [5, 7])
def test_losses_by_hand(numbers):
  data, out = batch(), outputs(numbers)
  centre, side, aim = matched()
  told = out['boxes'].astype(np.float64).reshape(2, -1, numbers)
  terms = task(hard=5).losses(out, data)
  yes, no = np.logaddexp(0, -told[..., 0]), np.logaddexp(0, told[..., 0])
  worst = np.sort(no[0][aim.negative])[-5:]
  want = [
    0.5 * yes[0][aim.positive].mean() + 0.5 * worst.mean(),
    0.5 * np.sort(no[1])[-5:].mean(),  # no nodule: the negative half alone
  ]
  np.testing.assert_allclose(terms['score'], want, rtol=1e-5)
  boxes = 0.0
  for i in np.flatnonzero(aim.positive):
    offset = (aim.centre[i] - centre[i]) / side[i]
    scale = [np.log(aim.side[i] / side[i])] * (numbers - 4)
    error = np.abs(told[0, i, 1:] - np.concatenate([offset, scale]))
    boxes += np.where(error < 1, 0.5 * error**2, error - 0.5).sum()
  np.testing.assert_allclose(terms['box'], [boxes / aim.positive.sum(), 0], rtol=1e-5)
  whole = task(hard=5).objectives['loss'](out, data)
  np.testing.assert_allclose(whole, sum(terms.values()), rtol=1e-6)
  np.testing.assert_allclose(task().objectives['plant'](out, data), no.mean(1), rtol=1e-5)
  np.testing.assert_allclose(task().objectives['hide'](out, data), -no.mean(1), rtol=1e-5)


@pytest.mark.parametrize('numbers', [5, 7])
def test_the_numbers_that_are_asked_for_give_the_nodule_back(numbers):
  centre, side, aim = matched()
  told = np.full((1, len(centre), numbers), -5, np.float32)
  offset = (aim.centre - centre) / side[:, None]
  told[0, :, 1:4] = offset
  told[0, :, 4:] = np.log(aim.side / side)[:, None]
  which = np.flatnonzero(aim.positive)
  told[0, which, 0] = np.linspace(3, 1, len(which))
  boxes = told.reshape(1, *COARSE, 2, numbers)
  found = proposals.decode(boxes, grid=GRID, sides=SIDES, limit=len(which))
  np.testing.assert_allclose(found.centre[0], aim.centre[which], atol=1e-4)
  np.testing.assert_allclose(found.size[0], np.repeat(aim.side[which, None], 3, 1), rtol=1e-4)
  np.testing.assert_allclose(found.score[0], 1 / (1 + np.exp(-told[0, which, 0])), rtol=1e-5)
  data = jax.tree.map(lambda leaf: leaf[:1], batch())
  losses = task().losses({'boxes': boxes}, data)
  assert losses['box'][0] < 1e-9
  metrics = task().metrics({'boxes': boxes}, data)
  assert metrics['found'][0] == 1 and metrics['false_peak'][0] < 0.01
  blind = task().metrics({'boxes': np.minimum(boxes, -0.5)}, data)
  assert blind['found'][0] == 0


def test_spacing_turns_millimetres_into_cells():
  data, out = batch(), outputs()
  sides = tuple(s / 2 for s in SIDES)
  fine = compiled(proposals.make(nn.Module(), image_shape=(*GRID, 1), sides=sides, spacing=0.5))
  halved = {**data, 'target': {**data['target'], 'diameter': data['target']['diameter'] / 2}}
  for name, value in fine.losses(out, halved).items():
    np.testing.assert_allclose(value, task().losses(out, data)[name], rtol=1e-6)


def test_every_function_is_per_example():
  data, out = batch(), outputs()
  other = {'boxes': np.concatenate([out['boxes'][:1], 1 - out['boxes'][1:]])}
  made = task()
  for function in (made.losses, made.metrics):
    for a, b in zip(*(jax.tree.leaves(function(o, data)) for o in (out, other)), strict=True):
      assert a.shape == (2,) and np.isfinite(a).all()
      np.testing.assert_allclose(a[0], b[0], rtol=1e-6)


def test_another_number_of_anchors_is_named():
  with pytest.raises(errors.UserError, match='has 2 anchors, the network 3; set model'):
    task().losses({'boxes': np.zeros((2, *COARSE, 3, 7), np.float32)}, batch())

"""The detector's task: decoding, assignment and losses by hand, detections against float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import types
from robustmed.data.cells import bccd
from robustmed.defenses import standard
from robustmed.metrics.boxes import average_precision, geometry, matching
from robustmed.tasks import anchors, objects
from robustmed.training import state as train_state
from robustmed.training import step

SIDE, CLASSES = 64, ('cell', 'disc')


class Grids(nn.Module):
  @nn.compact
  def __call__(self, image, *, train=False):
    pick = lambda s: image[:, s // 2 :: s, s // 2 :: s]
    heads = {s: nn.Dense(21, name=f'p{s}')(pick(s)) for s in (8, 16, 32)}
    return {f'p{s}': y.reshape(*y.shape[:3], 3, 7) for s, y in heads.items()}


def task(**fields):
  shape = (SIDE, SIDE, 3)
  return objects.make(
    Grids(), image_shape=shape, classes=CLASSES, train_size=320, max_detections=6, **fields
  )


def batch(size=2, seed=0):
  rng = np.random.default_rng(seed)
  corner, side = rng.uniform(0, 40, (size, 3, 2)), rng.uniform(8, 24, (size, 3, 2))
  target = {
    'boxes': np.concatenate([corner, corner + side], -1).astype(np.float32),
    'classes': rng.integers(0, 2, (size, 3)).astype(np.int32),
    'mask': np.arange(3)[None] < rng.integers(1, 4, (size, 1)),
  }
  number = np.arange(size, dtype=np.int32)
  return {
    'image': rng.uniform(0, 1, (size, SIDE, SIDE, 3)).astype(np.float32),
    'target': target,
    'mask': np.ones(size, bool),
    'index': number,
    'group': number,
    'draw': number,
  }


def outputs(size=2, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  made = lambda s: scale * rng.normal(size=(size, SIDE // s, SIDE // s, 3, 7)).astype(np.float32)
  return {f'p{s}': made(s) for s in (8, 16, 32)}


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_decoding_by_hand():
  raw = np.zeros((1, 2, 3, 3, 7), np.float32)
  raw[0, 1, 2, 0, :4] = [0, np.log(3), -np.log(3), 0]  # sigmoids 1/2, 3/4, 1/4, 1/2
  sizes = objects.LEVELS[16][0]
  found = anchors.decode(raw, stride=16, anchors=sizes)[0, 1, 2]
  x, y, w, h = (2.5) * 16, (1.5 - 0.5 + 1) * 16, 0.25 * 30, 61
  np.testing.assert_allclose(found[0], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], rtol=1e-6)
  x, y, (w, h) = 2.5 * 16, 1.5 * 16, sizes[2]
  np.testing.assert_allclose(found[2], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], rtol=1e-6)


def assigned(x, y, w, h, *, stride=8, grid=(8, 8)):
  box = jnp.asarray([[[x - w / 2, y - h / 2, x + w / 2, y + h / 2], [0, 0, 0, 0]]], jnp.float32)
  at = anchors.assign(
    box,
    jnp.asarray([[True, False]]),
    grid=grid,
    stride=stride,
    anchors=objects.LEVELS[stride][0],
  )
  chosen = np.asarray(at.mask[0])
  assert not np.asarray(at.box[0])[chosen].any()
  return {
    tuple(int(v) for v in cell) for cell in np.stack([at.anchor, at.row, at.column], -1)[0][chosen]
  }


@pytest.mark.parametrize(
  ('place', 'cells'),
  [
    ((3.4, 2.2), {(2, 3), (2, 2), (1, 3)}),  # (row, column): own, left, above
    ((3.6, 2.7), {(2, 3), (2, 4), (3, 3)}),  # own, right, below
    ((0.4, 7.8), {(7, 0)}),  # there is nothing to the left of it, nor below
    ((1.2, 6.9), {(6, 1), (6, 0), (7, 1)}),
  ],
)
def test_the_own_cell_and_its_nearest_neighbours_answer(place, cells):
  found = assigned(8 * place[0], 8 * place[1], 12, 20)
  assert {cell[1:] for cell in found} == cells and len(found) == 3 * len(cells)


@pytest.mark.parametrize(
  ('size', 'which'),
  [
    ((10, 13), {0, 1, 2}),
    ((39, 51), {0, 1, 2}),
    ((41, 50), {1, 2}),
    ((8, 8), {0, 1}),
    ((3, 3), set()),
  ],
)
def test_anchors_answer_within_a_ratio_of_four(size, which):
  # anchors of stride 8: (10, 13), (16, 30), (33, 23)
  assert {cell[0] for cell in assigned(20, 20, *size)} == which


def test_anchors_answer_for_every_real_cell(shared_data):
  files = sorted((shared_data / 'bccd' / 'BCCD' / 'Annotations').glob('*.xml'))
  found = np.concatenate([bccd.parse(path).boxes for path in files])
  found = found[(found[:, 2:] > found[:, :2]).all(axis=1)] / 2  # images of 320 pixels
  fitting = 0
  for stride, (sizes, _) in objects.LEVELS.items():
    one = jnp.asarray(found[None], jnp.float32)
    at = anchors.assign(
      one, jnp.ones(one.shape[:2], bool), grid=(40, 40), stride=stride, anchors=sizes
    )
    fitting = fitting + np.asarray(at.mask).reshape(len(found), 3, 5)[..., 0].sum(axis=1)
  assert (fitting > 0).mean() > 0.995  # the best possible recall, 1.00
  assert fitting.mean() == pytest.approx(6.3, abs=0.1)


def plain_losses(found, target, size, *, train_size=320):
  """Losses of one example with the authors' grids and gains in float64, positives by loops."""
  terms = {'box': 0.0, 'obj': 0.0, 'cls': 0.0}
  sums = []
  for stride, (sizes, weight) in objects.LEVELS.items():
    raw = np.asarray(found[f'p{stride}'], np.float64)
    wanted, lost, entropy, count = np.zeros(raw.shape[:3]), 0.0, 0.0, 0
    for box, label, real in zip(target['boxes'], target['classes'], target['mask']):
      if not real:
        continue
      centre, side = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
      for anchor, row, column in sorted(
        assigned(*centre, *side, stride=stride, grid=(size // stride,) * 2)
      ):
        out = raw[row, column, anchor]
        middle = (2 * sigmoid(out[:2]) - 0.5 + [column, row]) * stride
        half = 0.5 * (2 * sigmoid(out[2:4])) ** 2 * sizes[anchor]
        overlap = float(geometry.ciou(np.concatenate([middle - half, middle + half]), box))
        lost, count = lost + 1 - overlap, count + 1
        p = sigmoid(out[5:])
        entropy -= np.mean(np.log(np.where(np.arange(2) == label, p, 1 - p)))
        wanted[row, column, anchor] = max(wanted[row, column, anchor], overlap, 0)
    sums.append((lost, entropy, count))
    p = sigmoid(raw[..., 4])
    terms['obj'] -= weight * np.mean(wanted * np.log(p) + (1 - wanted) * np.log(1 - p))
    terms['box'] += lost / max(count, 1)
    terms['cls'] += entropy / max(count, 1)
  gains = {'box': 0.05, 'obj': (train_size / 640) ** 2, 'cls': 0.5 * 2 / 80}
  return {name: gains[name] * value for name, value in terms.items()}, sums


def test_losses_per_example_agree_with_plain_loops():
  data, found, made = batch(), outputs(), task()
  losses = made.losses(found, data)
  assert tuple(losses) == objects.TERMS
  for i in range(2):
    one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], (found, data['target']))
    want, _ = plain_losses(*one, SIDE)
    for name, value in want.items():
      assert float(losses[name][i]) == pytest.approx(value, rel=2e-4), name
  total = made.objectives['loss'](found, data)
  np.testing.assert_allclose(total, sum(losses.values()), rtol=1e-6)


def test_false_boxes_are_the_objectness_loss_without_objects():
  found, made = outputs(), task()
  empty = jax.tree.map(lambda leaf: leaf[0] * 0, batch()['target'])
  for i in range(2):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], found)
    # without the gain, which is 1 / 4 here
    want = 4 * plain_losses(one, {**empty, 'mask': np.zeros(3, bool)}, SIDE)[0]['obj']
    assert float(made.objectives['plant'](found, None)[i]) == pytest.approx(want, rel=1e-5)
    assert float(made.objectives['hide'](found, None)[i]) == pytest.approx(-want, rel=1e-5)


@pytest.mark.slow
def test_an_image_without_boxes_has_only_objectness_and_finite_gradients():
  data, made = batch(), task()
  data['target'] = {**data['target'], 'mask': np.zeros((2, 3), bool)}
  loss = lambda found: made.objectives['loss'](found, data).sum()
  value, gradient = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, outputs(scale=30.0)))
  assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  losses = made.losses(outputs(), data)
  assert not losses['box'].any() and not losses['cls'].any() and losses['obj'].all()
  assert np.isnan(made.metrics(outputs(), data)['IOU']).all()


@pytest.mark.slow
def test_coupled_losses_are_means_over_the_positives_of_the_batch():
  data, made = batch(4), task()
  defense = standard.make(made, coupled=True)
  rules = {'main': optax.sgd(0.1)}
  start = train_state.create(
    made,
    defense,
    step.for_phases(defense, rules),
    key=jax.random.key(0),
    num_examples=4,
    average=False,
  )
  run = step.make(defense, optimisers=rules, num_steps=2)
  new, scalars = run(start, data, jax.random.key(1))
  found = jax.tree.map(np.asarray, made.predict({'params': start.params}, data['image']))
  sums = np.sum(
    [
      plain_losses(*jax.tree.map(lambda leaf, i=i: leaf[i], (found, data['target'])), SIDE)[1]
      for i in range(4)
    ],
    axis=0,
  )
  lost, entropy, count = sums.T
  assert float(scalars['main/box']) == pytest.approx(0.05 * (lost / count.clip(1)).sum(), rel=1e-3)
  want = 0.5 * 2 / 80 * (entropy / count.clip(1)).sum()
  assert float(scalars['main/cls']) == pytest.approx(want, rel=1e-3)
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), new.params, start.params)
  assert min(jax.tree.leaves(moved)) > 0


def greedy(found, *, limit, most):
  """Class-wise suppression in float64 numpy: [(score, class, box)] of one image."""
  candidates = []
  for stride, (sizes, _) in objects.LEVELS.items():
    raw = np.asarray(found[f'p{stride}'], np.float64)
    for row, column, anchor in np.ndindex(raw.shape[:3]):
      out = raw[row, column, anchor]
      middle = (2 * sigmoid(out[:2]) - 0.5 + [column, row]) * stride
      half = 0.5 * (2 * sigmoid(out[2:4])) ** 2 * sizes[anchor]
      for label, p in enumerate(sigmoid(out[4]) * sigmoid(out[5:])):
        if p > 0.001:
          candidates.append((p, label, np.concatenate([middle - half, middle + half])))
  candidates.sort(key=lambda line: -line[0])
  kept = []
  for line in candidates:
    same = [other[2] for other in kept if other[1] == line[1]]
    if not same or average_precision.iou(line[2], np.array(same)).max() <= limit:
      kept.append(line)
  return kept[:most]


def test_detections_and_metrics_agree_with_float64():
  data, found, made = batch(seed=3), outputs(scale=2.0, seed=3), task()
  fresh = jax.jit(lambda o: made.metrics(o, data))
  metrics = fresh(found)
  ranked = []
  for i in range(2):
    one, target = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], (found, data['target']))
    real = target['mask']
    image = lambda kept, t=target, real=real: average_precision.Image(
      np.array([line[2] for line in kept]),
      np.array([line[0] for line in kept]),
      np.array([line[1] for line in kept]),
      t['boxes'][real],
      t['classes'][real],
    )
    wide = image(greedy(one, limit=0.5, most=6))
    assert float(metrics['IOU'][i]) == pytest.approx(
      average_precision.label_ious(wide).mean(), abs=1e-4
    )
    ranked.append(image(greedy(one, limit=0.6, most=6)))
    scores = [float(metrics[f'_score{k:03d}'][i]) for k in range(6)]
    np.testing.assert_allclose(scores, ranked[-1].scores, rtol=1e-4)
  np.testing.assert_array_equal(metrics['IOU_found'], metrics['IOU'])
  ours = matching.precision({name: np.asarray(value) for name, value in metrics.items()})
  theirs = average_precision.average_precision(ranked, num_classes=2)
  np.testing.assert_allclose(ours.by_class, theirs.by_class, atol=1e-6)


def test_a_network_that_finds_nothing_scores_zero_or_is_left_out():
  data, made = batch(), task()
  silent = jax.tree.map(lambda leaf: np.full_like(leaf, -30), outputs())
  metrics = made.metrics(silent, data)
  assert not np.asarray(metrics['IOU']).any() and np.isnan(metrics['IOU_found']).all()
  assert (np.asarray(metrics['_match000']) == -1).all()
  assert float(made.diagnostics(silent)['_saturated'][0]) == 0
  assert isinstance(made, types.Task)

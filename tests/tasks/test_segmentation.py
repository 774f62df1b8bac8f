"""The segmentation task by hand, in float64, and on one, two and four devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from skimage import transform

from robustmed import errors
from robustmed.defenses import adversarial, standard, weighted
from robustmed.process import parallel
from robustmed.tasks import segmentation
from robustmed.training import state as train_state
from robustmed.training import step

CLASSES = ('anterior', 'posterior')


class Pyramid(nn.Module):
  """A linear head at three resolutions; compiles in no time."""

  @nn.compact
  def __call__(self, image, *, train=False):
    pick = lambda f: image[:, f // 2 :: f, f // 2 :: f]
    return {f'head{i}': nn.Dense(3, name=f'head{i}')(pick(2**i)) for i in range(3)}


def task():
  return segmentation.make(Pyramid(), image_shape=(8, 4, 2), classes=CLASSES)


def batch(size=4, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.normal(size=(size, 8, 4, 2)).astype(np.float32),
    'target': {'labels': rng.integers(-1, 3, (size, 8, 4)).astype(np.int32)},
    'mask': np.ones(size, bool),
    'index': np.arange(size, dtype=np.int32),
    'group': np.arange(size, dtype=np.int32),
    'draw': np.arange(size, dtype=np.int32),
  }


def outputs(size=4, seed=1):
  rng = np.random.default_rng(seed)
  grids = [(8, 4), (4, 2), (2, 1)]
  return {
    f'head{i}': rng.normal(size=(size, *g, 3)).astype(np.float32) for i, g in enumerate(grids)
  }


def test_strata_are_the_classes_that_an_image_shows():
  labels = np.zeros((5, 8, 4), np.int32)
  labels[1, 0, 0], labels[2, 3, 3], labels[4] = 1, 2, -1
  labels[3, :2, 0] = (2, 1)
  strata = task().strata
  assert strata.of({'target': {'labels': labels}}).tolist() == [0, 1, 2, 3, 0]
  assert strata.names == ('no class', 'anterior', 'posterior', 'anterior and posterior')
  many = tuple('abcdefghi')
  assert segmentation.make(Pyramid(), image_shape=(8, 4, 2), classes=many).strata is None


def test_weights_of_the_heads():
  six, three = segmentation.head_weights(6), segmentation.head_weights(3)
  np.testing.assert_allclose(six, [0.51613, 0.25806, 0.12903, 0.06452, 0.03226, 0], atol=5e-6)
  np.testing.assert_allclose(three, [2 / 3, 1 / 3, 0])
  assert segmentation.head_weights(1) == (1.0,)


@pytest.mark.parametrize('grid', [(8, 4), (4, 2), (2, 1), (8, 2), (4, 4)])
def test_coarse_targets_are_skimage_s_order_0(grid):
  labels = np.random.default_rng(0).integers(0, 3, (2, 8, 4))
  ours = segmentation.one_hot(jnp.asarray(labels), jnp.zeros((2, *grid, 3))).argmax(-1)
  for one, mine in zip(labels, ours):
    theirs = transform.resize(one.astype(float), grid, order=0, mode='edge', anti_aliasing=False)
    np.testing.assert_array_equal(mine, theirs)


def by_hand(logits, labels):
  """(cross-entropy [b], soft TP, size [b, 2]) in float64."""
  logits = logits.astype(np.float64)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  t = np.eye(3)[np.maximum(labels, 0)]
  entropy = -np.log((p * t).sum(-1)).mean((1, 2))
  tp, fp, fn = ((a * b).sum((1, 2))[:, 1:] for a, b in ((p, t), (p, 1 - t), (1 - p, t)))
  return entropy, tp, 2 * tp + fp + fn


def soft_dice(tp, size):
  return ((2 * tp + 1e-5) / (size + 1e-5 + 1e-8)).mean(-1)


def test_losses_and_objectives_are_the_formulas():
  data, out = batch(), outputs()
  coarse = data['target']['labels'][:, 1::2, 1::2]
  e0, tp0, size0 = by_hand(out['head0'], data['target']['labels'])
  e1, tp1, size1 = by_hand(out['head1'], coarse)
  terms = segmentation.loss_terms(out, data)
  want = 1 - (2 * soft_dice(tp0, size0) + soft_dice(tp1, size1)) / 3
  np.testing.assert_allclose(terms['ce'], (2 * e0 + e1) / 3, rtol=1e-5)
  np.testing.assert_allclose(terms['dice'], want, rtol=1e-5)
  value = lambda name: segmentation.OBJECTIVES[name](out, data)
  np.testing.assert_allclose(value('loss'), terms['ce'] + terms['dice'], rtol=1e-6)
  np.testing.assert_allclose(value('ce'), e0, rtol=1e-5)
  np.testing.assert_allclose(value('dice'), 1 - soft_dice(tp0, size0), rtol=1e-5)
  np.testing.assert_allclose(value('head0'), value('ce') + value('dice'), rtol=1e-6)


def test_the_margin_by_hand():
  logits = np.array([[[[0.0, 2.0, 1.0], [5.0, 1.0, 4.5]]]], np.float32)
  at = lambda labels: float(
    segmentation.margin({'head0': logits}, {'target': {'labels': np.array([[labels]])}})[0]
  )
  assert at([1, 0]) == pytest.approx((-1 - 0.5) / 2)
  assert at([0, -1]) == pytest.approx((1 - 0.5) / 2)  # capped; outside is background
  assert at([2, 1]) == pytest.approx((1 + 1) / 2)


def test_metrics_count_pixels_per_class():
  data, out = batch(), outputs()
  found, true = out['head0'].argmax(-1), np.maximum(data['target']['labels'], 0)
  metrics = task().metrics(out, data)
  scores = []
  for k, name in enumerate(CLASSES, start=1):
    a, b = found == k, true == k
    for kind, pixels in (('tp', a & b), ('fp', a & ~b), ('fn', ~a & b)):
      np.testing.assert_array_equal(metrics[f'_{kind}{k}'], pixels.sum((1, 2)))
    scores.append(2 * (a & b).sum((1, 2)) / (a.sum((1, 2)) + b.sum((1, 2)) + 1e-8))
    np.testing.assert_allclose(metrics[f'DICE_{name}'], scores[-1], rtol=1e-6)
  np.testing.assert_allclose(metrics['DICE'], np.mean(scores, 0), rtol=1e-6)
  with pytest.raises(errors.UserError, match='3 outputs for 1 classes'):
    segmentation.make(Pyramid(), image_shape=(8, 4, 2), classes=('one',)).metrics(out, data)


def test_three_axes_are_stacked_slices_of_two():
  logits = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
  labels = np.random.default_rng(1).integers(-1, 3, (2, 4, 4))
  flat = segmentation.loss_terms({'head0': logits}, {'target': {'labels': labels}})
  deep = segmentation.loss_terms(
    {'head0': logits[:, None]}, {'target': {'labels': labels[:, None]}}
  )
  for name in flat:
    np.testing.assert_allclose(flat[name], deep[name], rtol=1e-6)


def test_every_function_is_per_example():
  data, out = batch(), outputs()
  other = {name: np.concatenate([leaf[:1], 2 - leaf[1:]]) for name, leaf in out.items()}
  functions = {'losses': segmentation.loss_terms, 'metrics': task().metrics}
  for name, function in {**functions, **segmentation.OBJECTIVES}.items():
    run = jax.jit(lambda o, function=function: function(o, data))
    for a, b in zip(jax.tree.leaves(run(out)), jax.tree.leaves(run(other)), strict=True):
      assert a.shape == (4,) and np.isfinite(a).all(), name
      np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
      assert not np.allclose(a[1:], b[1:]), name


def test_probabilities_are_compared_with_the_labels():
  labels = np.array([[[0, 1], [2, 0]]], np.int32)
  logits = 50.0 * np.eye(3, dtype=np.float32)[labels]
  found, truth = segmentation.compared({'head0': logits}, {'target': {'labels': labels}})[
    'segmentation'
  ]
  assert found.shape == truth.shape == (1, 2, 2, 2)
  np.testing.assert_allclose(found, truth, atol=1e-6)


def test_saturation_is_counted():
  logits = np.zeros((1, 2, 2, 3), np.float32)
  logits[0, 0, 0, 1] = 200
  assert float(segmentation.diagnostics({'head0': logits})['_saturated'][0]) == 0.25


def batch_dice_loss(out, data):
  """Stock loss of the whole batch, padding left out, plainly."""
  keep = data['mask'].astype(np.float32)
  total = 0.0
  for weight, head, labels in (
    (2 / 3, out['head0'], data['target']['labels']),
    (1 / 3, out['head1'], data['target']['labels'][:, 1::2, 1::2]),
  ):
    p = jax.nn.softmax(head)
    t = jnp.eye(3)[np.maximum(labels, 0)]
    entropy = -jnp.log((p * t).sum(-1)).mean((1, 2))
    tp = jnp.tensordot(keep, (p * t).sum((1, 2))[:, 1:], 1)
    size = jnp.tensordot(keep, (p + t).sum((1, 2))[:, 1:], 1)
    dice = ((2 * tp + 1e-5) / (size + 1e-5 + 1e-8)).mean()
    total += weight * ((keep * entropy).sum() / keep.sum() + 1 - dice)
  return total


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_the_coupled_gradient_is_that_of_the_batch_on_any_number_of_devices(devices):
  data, out = batch(), outputs()
  data['mask'] = np.array([True, True, False, True])
  value, want = jax.jit(jax.value_and_grad(lambda o: batch_dice_loss(o, data)))(out)
  cut = lambda leaf: leaf.reshape(devices, 4 // devices, *leaf.shape[1:])

  def one_device(out, data):
    def mean(out):
      values = sum(segmentation.coupled_terms(out, data).values())
      return jnp.sum(jnp.where(data['mask'], values, 0.0)) / 3

    return jax.value_and_grad(mean)(out)

  mapped = jax.jit(jax.vmap(one_device, axis_name=parallel.AXIS))
  parts, gradient = mapped(*jax.tree.map(cut, (out, data)))
  assert float(parts.sum()) == pytest.approx(float(value), rel=1e-5)
  for name, leaf in gradient.items():
    np.testing.assert_allclose(leaf.reshape(want[name].shape), want[name], atol=1e-7)
  assert not np.any(gradient['head0'].reshape(4, -1)[2])


def test_standard_training_with_batch_dice_on_two_devices():
  toy, data = task(), batch()
  defense = standard.make(toy, coupled=True)
  assert defense.coupled and not standard.make(toy).coupled
  rules = {'main': optax.sgd(1.0)}
  state = train_state.create(
    toy,
    defense,
    step.for_phases(defense, rules),
    key=jax.random.key(0),
    num_examples=4,
    average=False,
  )
  new, scalars = step.make(defense, optimisers=rules, num_steps=1)(state, data, jax.random.key(1))
  loss = lambda params: batch_dice_loss(toy.predict({'params': params}, data['image']), data)
  value, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
  want = jax.tree.map(lambda p, g: p - g, state.params, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new.params, want)
  assert float(scalars['main/loss']) == pytest.approx(float(value), rel=1e-5)


def test_coupled_training_needs_a_task_that_has_it():
  plain = task()._replace(coupled=None)
  with pytest.raises(errors.UserError, match='no coupled losses'):
    weighted.phase(plain, [weighted.CLEAN], coupled=True)
  attack = lambda objective, image, **_: None
  attack.num_gradients = attack.num_forwards = 1
  make = lambda **kw: adversarial.make(
    task(), attack=attack, objectives={'loss': 0.5}, eps=1.0, **kw
  )
  assert make(coupled=True).coupled and not make().coupled


def test_pixels_that_do_not_count_change_nothing():
  """Whatever the label and the network say there; all else is that of the pixels that count."""
  one, found = batch(), outputs()
  counted = np.ones((4, 8, 4), bool)
  counted[:, :4] = False
  one['target']['counted'] = jnp.asarray(counted)
  other = {**one, 'target': {**one['target']}}
  other['target']['labels'] = np.where(counted, one['target']['labels'], 2)
  cut = {name: value[:, value.shape[1] // 2 :] for name, value in found.items()}
  half = {**one, 'target': {'labels': one['target']['labels'][:, 4:]}}
  for name, objective in segmentation.OBJECTIVES.items():
    value = objective(found, one)
    np.testing.assert_allclose(value, objective(found, other), rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(value, objective(cut, half), rtol=1e-5, err_msg=name)
  mine = task().metrics(found, one)
  for name, value in task().metrics(cut, half).items():
    np.testing.assert_allclose(mine[name], value, rtol=1e-6)
  gradient = jax.grad(lambda head: segmentation.head0({**found, 'head0': head}, one).sum())
  assert np.abs(gradient(found['head0'])[:, :4]).max() == 0


def test_metrics_of_regions():
  one, found = batch(), outputs()
  regions = {'whole': (1, 2), 'core': (2,)}
  made = segmentation.make(Pyramid(), image_shape=(8, 4, 2), classes=CLASSES, regions=regions)
  metrics = made.metrics(found, one)
  predicted = found['head0'].argmax(-1)
  labels = np.maximum(one['target']['labels'], 0)
  for name, several in regions.items():
    ours, theirs = np.isin(predicted, several), np.isin(labels, several)
    wanted = 2 * (ours & theirs).sum((1, 2)) / (ours.sum((1, 2)) + theirs.sum((1, 2)))
    np.testing.assert_allclose(metrics[f'DICE_{name}'], wanted, rtol=1e-6)
  assert '_tp2' in metrics and '_tp3' not in metrics

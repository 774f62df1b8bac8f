"""The classifier's task: losses and metrics by hand, annealing in a train step, gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustmed import errors
from robustmed.defenses import standard
from robustmed.metrics import evidence
from robustmed.tasks import nodules
from robustmed.training import state as train_state
from robustmed.training import step

SIDE = 4


class Linear(nn.Module):
  """One matrix; compiles in no time."""

  @nn.compact
  def __call__(self, image, *, train=False):
    logits = nn.Dense(2)(image.reshape(len(image), -1))
    return {'logits': logits, 'segmentation': 2 * image - 1}


def task(**fields):
  return nodules.make(Linear(), image_shape=(SIDE,) * 3 + (1,), **fields)


def batch(size=4, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.uniform(0, 1, (size, *(SIDE,) * 3, 1)).astype(np.float32)
  label = (np.arange(size) % 2).astype(np.int32)
  soft = (image > 0.6) * label.reshape(-1, 1, 1, 1, 1)
  target = {
    'target': label,
    'soft': soft.astype(np.float32),
    'has_mask': label == 1,
  }
  return {'image': image, 'clean': image, 'target': target, 'mask': np.ones(size, bool)}


def outputs(size=4, seed=1):
  rng = np.random.default_rng(seed)
  return {
    'logits': rng.normal(0, 3, (size, 2)).astype(np.float32),
    'segmentation': rng.normal(0, 2, (size, *(SIDE,) * 3, 1)).astype(np.float32),
  }


def sigmoid(x):
  return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_cross_entropy_is_that_of_the_difference_of_the_logits():
  data, out = batch(), outputs()
  p = sigmoid(out['logits'][:, 1] - out['logits'][:, 0])
  y = data['target']['target']
  want = -np.log(np.where(y == 1, p, 1 - p))
  ce = task(loss='ce')
  np.testing.assert_allclose(ce.losses(out, data)['ce'], want, rtol=1e-5)
  np.testing.assert_allclose(ce.objectives['loss'](out, data), want, rtol=1e-5)
  np.testing.assert_allclose(task().objectives['ce'](out, data), want, rtol=1e-5)
  np.testing.assert_allclose(ce.objectives['confidence'](out, data), np.abs(y - p), rtol=1e-5)
  metrics = ce.metrics(out, data)
  assert set(metrics) == {'confidence', 'correct', 'entropy'}
  np.testing.assert_allclose(metrics['confidence'], p, rtol=1e-5)
  np.testing.assert_array_equal(metrics['correct'], (p > 0.5) == (y == 1))
  bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
  np.testing.assert_allclose(metrics['entropy'], bits, rtol=1e-4)


def test_evidence_gives_confidence_and_uncertainty():
  data, out = batch(), outputs()
  against, towards = np.logaddexp(0, out['logits'].astype(np.float64)).T
  a, b = towards + 1, against + 1
  y, p = data['target']['target'], a / (a + b)
  terms = task().losses(out, data)
  risk = 2 * ((y - p) ** 2 + p * (1 - p) / (a + b + 1))
  np.testing.assert_allclose(terms['evidence'], risk, rtol=1e-5)
  w = np.where(y == 1, b, a)
  np.testing.assert_allclose(terms['divergence'], np.log(w) - (w - 1) / w, rtol=1e-4)
  metrics = task().metrics(out, data)
  np.testing.assert_allclose(metrics['confidence'], p, rtol=1e-5)
  np.testing.assert_allclose(metrics['uncertainty'], 2 / (a + b), rtol=1e-5)
  for name in ('loss', 'beta'):
    whole = task(anneal=0.5).objectives[name](out, {**data, 'progress': np.zeros(4, np.float32)})
    np.testing.assert_allclose(whole, sum(terms.values()), rtol=1e-5)


@pytest.mark.parametrize(
  ('anneal', 'progress', 'weight'), [(0, 0, 1), (0.5, 0.2, 0.4), (0.5, 0.7, 1)]
)
def test_the_regulariser_comes_in_over_the_first_part_of_the_training(anneal, progress, weight):
  data, out = batch(), outputs()
  whole = task().losses(out, data)
  seen = {**data, 'progress': np.full(4, progress, np.float32)}
  found = task(anneal=anneal).losses(out, seen)
  np.testing.assert_allclose(found['evidence'], whole['evidence'])
  np.testing.assert_allclose(found['divergence'], weight * whole['divergence'], rtol=1e-6)
  without = task(anneal=anneal).losses(out, data)  # no training, no annealing
  np.testing.assert_allclose(without['divergence'], whole['divergence'])


def test_a_train_step_tells_the_loss_how_far_it_is():
  made, data = task(anneal=0.5), batch()
  defense = standard.make(made)
  rules = {'main': optax.sgd(0.0)}
  state = train_state.create(
    made, defense, step.for_phases(defense, rules), key=jax.random.key(0), num_examples=4,
    average=False,
  )  # fmt: skip
  one = step.make(defense, optimisers=rules, num_steps=8)
  more = {'index': np.arange(4, dtype=np.int32), 'group': np.zeros(4, np.int32)}
  full = {**data, **more, 'draw': np.arange(4, dtype=np.int32)}
  seen = []
  for _ in range(6):
    state, scalars = one(state, full, jax.random.key(1))
    seen.append(float(scalars['main/divergence']))
  assert seen[5] > 0
  np.testing.assert_allclose(np.array(seen) / seen[5], [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-5)


def test_segmentation_counts_masks_that_are_known():
  data, out = batch(), outputs()
  data['target']['has_mask'][3] = False
  terms = task(loss='segmentation').losses(out, data)
  p, t = sigmoid(out['segmentation']), data['target']['soft'].astype(np.float64)
  axes = (1, 2, 3, 4)
  dice = 1 - (2 * (p * t).sum(axes) + 1) / (p.sum(axes) + t.sum(axes) + 1)
  entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(axes)
  known = np.array([1, 1, 1, 0])  # of examples without a nodule that there is none
  np.testing.assert_allclose(terms['dice'], known * dice, rtol=1e-5)
  np.testing.assert_allclose(terms['bce'], known * entropy, rtol=1e-5)
  found, true = out['segmentation'][1] > 0, t[1] > 0.5
  dice = task(loss='segmentation').metrics(out, data)['DICE']
  assert dice[1] == pytest.approx(2 * (found & true).sum() / (found.sum() + true.sum()))


def test_attacks_have_a_gradient_that_lowers_the_confidence_in_nodules():
  made, data = task(), batch()
  variables = made.init(jax.random.key(0))

  def loss(image):
    return jnp.sum(made.objectives['loss'](made.predict(variables, image), data))

  image = jnp.asarray(data['image'])
  moved = image + 0.05 * jnp.sign(jax.grad(loss)(image))
  before, after = (
    made.metrics(made.predict(variables, x), data)['confidence'] for x in (image, moved)
  )
  y = data['target']['target']
  assert ((after - before)[y == 1] < 0).all() and ((after - before)[y == 0] > 0).all()


@pytest.mark.parametrize('loss', ['beta', 'ce', 'segmentation'])
def test_every_function_is_per_example(loss):
  made, data, out = task(loss=loss), batch(), outputs()
  other = jax.tree.map(lambda leaf: np.concatenate([leaf[:1], 1 - leaf[1:]]), out)
  state = lambda outputs, batch: made.diagnostics(outputs)
  functions = {'losses': made.losses, 'metrics': made.metrics, 'state': state, **made.objectives}
  for found, target in made.compared(out, data).values():
    assert found.shape == target.shape and found.shape[0] == 4
  for name, function in functions.items():
    first, second = (jax.tree.leaves(function(o, data)) for o in (out, other))
    for a, b in zip(first, second, strict=True):
      assert a.shape == (4,) and np.isfinite(a).all(), name
      np.testing.assert_allclose(a[0], b[0], rtol=1e-6)


def test_confidence_that_is_exactly_one_is_told():
  out = {'logits': np.array([[-200, 200], [0, 0], [0, 9]], np.float32)}
  np.testing.assert_array_equal(task(loss='ce').diagnostics(out)['_saturated'], [1, 0, 0])
  beta = evidence.from_logits(jnp.asarray(out['logits']))
  assert evidence.confidence(beta)[0] == pytest.approx(201 / 202)


def test_mistakes():
  with pytest.raises(errors.UserError, match="did you mean 'beta'"):
    task(loss='betta')
  with pytest.raises(errors.UserError, match='share of the training, not 10'):
    task(anneal=10)

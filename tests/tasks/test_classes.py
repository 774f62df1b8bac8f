"""Cross-entropy, margin and metrics of one class per image, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from robustmed.tasks import classes

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0], [0.5, 0.0, 0.4]])
BATCH = {'target': {'label': jnp.array([0, 0, 2])}}


def make():
  return classes.make(None, image_shape=(8, 8, 1), classes=('a', 'b', 'c'))


def test_by_hand():
  task, outputs = make(), {'logits': LOGITS}
  probability = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
  true = probability[[0, 1, 2], [0, 0, 2]]
  np.testing.assert_allclose(task.losses(outputs, BATCH)['ce'], -np.log(true), rtol=1e-5)
  np.testing.assert_allclose(task.objectives['margin'](outputs, BATCH), [-2, 1, 0.1], rtol=1e-5)
  found = task.metrics(outputs, BATCH)
  np.testing.assert_array_equal(found['ACCURACY'], [1, 0, 0])
  np.testing.assert_allclose(found['P_TRUE'], true, rtol=1e-6)
  np.testing.assert_allclose(found['_probability1'], probability[:, 1], rtol=1e-6)
  sure = {'logits': jnp.array([[200.0, 0, 0]])}
  assert task.diagnostics(sure)['_saturated'].tolist() == [1.0]


def test_what_is_none_of_the_classes():
  """A further logit takes probability away and can win, but never is the label."""
  task = make()
  outputs = {'logits': jnp.concatenate([LOGITS, jnp.full((3, 1), 9.0)], axis=1)}
  found = task.metrics(outputs, BATCH)
  np.testing.assert_array_equal(found['ACCURACY'], [0, 0, 0])
  ours, truth = task.compared(outputs, BATCH)['class']
  assert ours.shape == truth.shape == (3, 3) and (ours.sum(axis=1) < 0.1).all()


def test_the_objective_rises_along_its_gradient():
  task = make()
  loss = lambda logits: task.objectives['loss']({'logits': logits}, BATCH)
  slope = jax.grad(lambda logits: loss(logits).sum())(LOGITS)
  assert (loss(LOGITS + 0.1 * slope) > loss(LOGITS)).all()

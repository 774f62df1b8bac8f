"""Checks of a network before it is attacked: signs that an attack will be fooled by it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.evaluation.checks.check import Check
from robustmed.types import Array, Batch, PyTree

TINY = 1e-5  # of eps: a change of the image that must hardly change the output
NEAR = 0.05  # of eps: a change of the image that the gradient must predict
HARDLY = 0.01  # of the deviation of outputs from image to image
ZERO, MANY = 0.9, 0.5  # share of entries of a gradient that are 0: a failure, a warning


def of_network(
  predict: Callable[[Array], PyTree],
  objective: Callable[..., Array],
  badness: Callable[..., Array],
  batch: Batch,
  *,
  eps: float,
  key: Array,
  arm: str = 'network',
  region: Array | None = None,
) -> list[Check]:
  """Returns what a network, the objective of its attack and its metric do on a batch of b >= 2.

  predict: image -> outputs of [b, ...]; objective and badness: (outputs, batch) -> [b], larger is
  worse. eps: the Linf size of attacks. region: bool like image, what attacks can move; None: all.
  Found are outputs that are drawn anew, examples that depend on each other, gradients (of outputs
  by the image, of the objective by outputs) that are 0 or do not predict changes, and examples that
  the metric does not count.
  """
  image = jnp.asarray(batch['image'])
  if len(image) < 2:
    raise errors.UserError('checks of a network need a batch of two images or more')
  flat = jax.jit(lambda image: _flat(predict(image)))
  one, two = jax.random.split(key)
  noise = jax.random.uniform(one, image.shape, image.dtype, -1, 1)
  outputs = predict(image)
  clean = _flat(outputs)
  spread = jnp.mean(jnp.abs(clean - jnp.median(clean, axis=0, keepdims=True))) + 1e-30
  weights = jax.random.rademacher(two, clean.shape[1:], clean.dtype)
  projected = lambda image: flat(image) @ weights
  slope = jax.jit(jax.grad(lambda image: jnp.sum(projected(image))))(image)
  by_outputs = jax.jit(jax.grad(lambda outputs: jnp.sum(objective(outputs, batch))))(outputs)
  inside = slope if region is None else slope[jnp.asarray(region)]
  found = [
    ('same image, same output', *_repeatable(flat, image, clean, spread, TINY * eps * noise)),
    ('examples alone', *_alone(flat, image, clean, spread)),
    ('outputs have gradients', *_gradients(inside)),
    ('the objective has gradients', *_gradients(by_outputs)),
    ('gradients predict changes', *_predicted(projected, slope, image, eps, noise)),
    ('the metric counts every example', *_counted(outputs, badness, batch)),
  ]
  return [Check(name, arm, status, detail) for name, status, detail in found]


def _flat(outputs) -> Array:
  leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(outputs)]
  return jnp.concatenate([leaf.reshape(len(leaf), -1).astype(jnp.float32) for leaf in leaves], 1)


def _repeatable(flat, image, clean, spread, tiny):
  """An output that is drawn anew makes gradients noise; the best of many draws is luck."""
  # Of a median, as a rounded image may cross one border.
  changed = [jnp.mean(jnp.abs(flat(near) - clean), axis=1) for near in (image, image + tiny)]
  share = float(jnp.max(jnp.median(jnp.stack(changed), axis=1)) / spread)
  detail = f'outputs of (nearly) the same image differ by {share:.2g} of their spread'
  return ('fail' if share > HARDLY else 'pass'), detail


def _alone(flat, image, clean, spread):
  """Statistics of a batch let an attack on one example move the others."""
  half = len(image) // 2
  other = flat(jnp.concatenate([image[:half], -2 * image[half:]]))[:half]
  share = float(jnp.mean(jnp.abs(other - clean[:half])) / spread)
  detail = f'outputs change by {share:.2g} of their spread with the other images of the batch'
  return ('fail' if share > 1e-3 else 'pass'), detail


def _gradients(found):
  grad = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found)])
  if not np.isfinite(grad).all():
    return 'fail', f'{np.mean(~np.isfinite(grad)):.1%} of the gradient is not finite'
  share = float(np.mean(grad == 0))
  status = 'fail' if share >= ZERO else 'warn' if share > MANY else 'pass'
  return status, f'{share:.1%} of the gradient is exactly 0'


def _predicted(function, gradient, image, eps, noise):
  """Rounding and noise inside a network leave gradients that say nothing of its changes."""
  step = NEAR * eps * jnp.sign(noise)
  axes = tuple(range(1, image.ndim))
  # By steps in both directions and a larger one, which a rounded image shows.
  slope = jnp.sum(gradient * step, axis=axes)
  moved = (function(image + step) - function(image - step)) / 2
  rest = float(jnp.sum((moved - slope) ** 2) / (jnp.sum(moved**2) + 1e-30))
  far = function(image + step / NEAR) - function(image - step / NEAR)
  if float(jnp.max(jnp.abs(far))) == 0:
    return 'warn', 'no output moves within eps'
  if float(jnp.max(jnp.abs(moved))) == 0:
    return 'fail', f'outputs move within eps, but not within {NEAR:g} of it'
  detail = f'gradients leave {rest:.1%} of the change of outputs (squared) unexplained'
  return ('fail' if rest > 0.5 else 'pass'), detail


def _counted(outputs, badness, batch):
  """An example whose metric no output changes looks robust against everything."""
  variants = [
    outputs,
    jax.tree.map(lambda leaf: -leaf, outputs),
    jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), outputs),
    jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=-1), outputs),
  ]
  values = np.stack([np.asarray(badness(variant, batch)) for variant in variants])
  unknown = ~np.isfinite(values).all(axis=0)
  same = ~unknown & (np.ptp(np.where(np.isfinite(values), values, 0), axis=0) == 0)
  detail = (
    f'of {values.shape[1]} examples {unknown.sum()} have no metric and {same.sum()} the same one '
    'whatever the output'
  )
  return ('fail' if (unknown | same).any() else 'pass'), detail

"""Optimisers with the semantics the papers' frameworks had, from plain configuration."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustmed import errors

_SHARES = ('b1', 'b2', 'decay', 'momentum')  # of a moving average: from 0 to below 1
_SIZES = ('lr', 'eps', 'weight_decay', 'clip', 'clip_weights', 'warmup_steps', 'power')
_PARTS = ('warmup_share', 'final_fraction')  # from 0 to 1


def schedule(
  config: Mapping[str, Any], *, num_steps: int, updates_per_step: int = 1
) -> Callable[[Any], Any]:
  """Learning rate by number of updates done. 'constant'; 'poly': lr (1 - t)^power; 'cosine' and
  'linear' down to final_fraction * lr. The rate rises over `warmup_steps`, or over `warmup_share`
  of all steps. With steps_per_epoch t only moves at epoch borders, as torch schedulers do.

  All lengths are in training steps: the `updates_per_step` updates of one step have one rate, and
  t is 1 after the last update of step `num_steps`.
  """
  name, lr = config.get('schedule', 'constant'), config['lr']
  per_epoch = max(1, config.get('steps_per_epoch', 1))
  final = config.get('final_fraction', 0.0)
  power = config.get('power', 0.9)
  warmup = config.get('warmup_steps', 0) or round(config.get('warmup_share', 0.0) * num_steps)
  shapes = {
    'constant': lambda t: jnp.ones_like(t),
    'poly': lambda t: (1 - t) ** power,
    'linear': lambda t: 1 - (1 - final) * t,
    'cosine': lambda t: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * t)),
  }
  shape = errors.lookup(shapes, name, kind='learning-rate schedule')

  def rate(updates):
    step = (jnp.asarray(updates) // updates_per_step).astype(jnp.float32)
    t = jnp.floor(step / per_epoch) * per_epoch / max(1, num_steps)
    warm = jnp.minimum(1.0, (step + 1) / warmup) if warmup else 1.0
    return lr * warm * shape(jnp.clip(t, 0.0, 1.0))

  return rate


def make(
  config: Mapping[str, Any], *, num_steps: int, updates_per_step: int = 1
) -> optax.GradientTransformation:
  """An optax optimiser from {'name', 'lr', 'schedule', 'clip', 'weight_decay', ...}.

  Weight decay of sgd, adam and adamax is coupled: an L2 term added to the gradient after clipping
  and before momentum, as torch does; adamw decouples it. With `decay_of`, a regular expression on
  'a/b/c' paths, only parameters that it matches decay (in `step.FlatOptimiser`). sgd with nesterov
  is torch's g + momentum * buffer. rmsprop follows TensorFlow 1: the mean square starts at 1 and
  epsilon is inside the root. `clip` bounds the global gradient norm first. `clip_weights` c > 0
  keeps every parameter in [-c, c] after its update (Arjovsky et al. 2017). `num_steps` and
  `updates_per_step` (`step.updates_per_step`) are those of `schedule`.
  """
  _check(config)
  name = config.get('name', 'adam')
  b1, b2, eps = config.get('b1', 0.9), config.get('b2', 0.999), config.get('eps', 1e-8)
  momentum, nesterov = config.get('momentum', 0.9), config.get('nesterov', False)
  rules = {
    'sgd': lambda: optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity(),
    'adam': lambda: optax.scale_by_adam(b1, b2, eps),
    'adamw': lambda: optax.scale_by_adam(b1, b2, eps),
    'adamax': lambda: optax.scale_by_adamax(b1, b2, eps),
    'rmsprop': lambda: optax.scale_by_rms(
      config.get('decay', 0.9), config.get('eps', 1e-10), initial_scale=1.0, eps_in_sqrt=True
    ),
  }
  rule = errors.lookup(rules, name, kind='optimiser')()
  decay = config.get('weight_decay', 0.0)
  chain = []
  if config.get('clip', 0.0):
    chain.append(optax.clip_by_global_norm(config['clip']))
  if decay and name != 'adamw':
    chain.append(_decay(decay, config.get('decay_of', '')))
  chain.append(rule)
  if decay and name == 'adamw':
    chain.append(optax.add_decayed_weights(decay))
  rate = schedule(config, num_steps=num_steps, updates_per_step=updates_per_step)
  chain.append(optax.scale_by_learning_rate(rate))
  if config.get('clip_weights', 0.0):
    chain.append(_clip_parameters(config['clip_weights']))
  return optax.chain(*chain)


def _check(config):
  for names, most, words in (
    (_SHARES, np.nextafter(1.0, 0.0), 'from 0 to below 1'),
    (_SIZES, np.finfo(np.float32).max, 'at least 0'),
    (_PARTS, 1.0, 'from 0 to 1'),
  ):
    for name in names:
      value = config.get(name)
      try:
        inside = value is None or 0 <= float(value) <= most
      except (TypeError, ValueError):
        inside = False
      if not inside or isinstance(value, str):
        raise errors.UserError(f'{name} of an optimiser must be {words}, not {value!r}')


def _decay(weight: float, of: str) -> optax.GradientTransformation:
  if not of:
    return optax.add_decayed_weights(weight)

  def update(updates, state, params, *, marks, **extra):
    del extra
    add = lambda change, value, own: change + weight * own * value
    return jax.tree.map(add, updates, params, marks(of)), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _clip_parameters(limit: float) -> optax.GradientTransformation:
  def update(updates, state, params):
    inside = lambda change, value: jnp.clip(value + change, -limit, limit) - value
    return jax.tree.map(inside, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

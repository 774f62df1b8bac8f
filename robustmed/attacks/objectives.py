"""Objectives: functions of x that give a number per example, and what they share."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustmed.ops import contracts
from robustmed.types import Array, Batch, PyTree


class Shared:
  """Calls `predict` once per traced image, although objective and monitor both call it.

      predict = attacks.Shared(lambda image: task.predict(variables, image))
      attack(lambda image: loss(predict(image)), x, monitor=lambda image: dice(predict(image)), ...)

  XLA merges most of two equal networks by itself, but not all of it inside a loop. Only the result
  for the last traced image is cached, so make a new `Shared` where the variables change.
  """

  def __init__(self, predict):
    self._predict = predict
    self._last = (None, None)

  def __call__(self, image):
    # Only tracers are immutable: a NumPy array may be changed in place.
    if not isinstance(image, jax.core.Tracer):
      return self._predict(image)
    if self._last[0] is not image:
      self._last = (image, self._predict(image))
    return self._last[1]


def takes_progress(objective):
  """Returns whether an objective has a parameter `progress`, and so differs from step to step."""
  try:
    return 'progress' in inspect.signature(objective).parameters
  except (TypeError, ValueError):  # a builtin
    return False


def through(objective, decode):
  """Returns x -> objective(decode(x)), which is told the progress if the objective wants it."""
  if takes_progress(objective):
    return lambda x, progress: objective(decode(x), progress)
  return lambda x: objective(decode(x))


def bind(
  predict: Callable[[Array], PyTree], objective: Callable[..., Array], batch: Batch
) -> Callable[..., Array]:
  """Returns x -> objective(predict(x), batch with x), which is told the progress if it wants it."""
  seen = lambda x: {**batch, 'image': x}
  if takes_progress(objective):
    return lambda x, progress: objective(predict(x), seen(x), progress)
  return lambda x: objective(predict(x), seen(x))


def expected(objective, *, sigma: float, draws: int, key: jax.Array):
  """Returns x -> the mean of objective(x + sigma * noise) [b] over fixed draws, for attacks.

  Athalye et al. 2018 (expectation over transformation). The draws are the same at every step, so
  that values can be compared; more draws make the gradient that of the smoothed network. An
  objective that wants the progress is told it.
  """
  keys = jax.random.split(key, draws)

  def mean(x: Array, **told) -> Array:
    one = lambda key: objective(x + sigma * jax.random.normal(key, x.shape, x.dtype), **told)
    return jnp.mean(jax.lax.map(one, keys), axis=0)

  if takes_progress(objective):
    return lambda x, progress: mean(x, progress=progress)
  return lambda x: mean(x)


def straight_through(function, substitute=lambda x: x):
  """Returns x -> function(x) with the gradient of substitute(x), of the same shape.

  BPDA (Athalye et al. 2018), for what an attack must pass and cannot: rounding, a file format.
  """

  def passed(x: Array) -> Array:
    near = substitute(x)
    return jax.lax.stop_gradient(function(x)) + (near - jax.lax.stop_gradient(near))

  return passed


class Scored(NamedTuple):
  """What a point of an attack is worth."""

  value: Array  # [b], larger is better
  grad: Array | None
  monitored: PyTree

  @property
  def moves(self):
    """Whether the gradient has an entry that is finite and not 0, [b]."""
    if self.grad is None:
      return jnp.zeros(self.value.shape, bool)
    axes = tuple(range(1, self.grad.ndim))
    return jnp.any(jnp.isfinite(self.grad) & (self.grad != 0), axis=axes)


def evaluator(objective, monitor, sense):
  """Returns (x, index, gradient=...) -> `Scored`; objective and monitor share a forward pass."""

  def values(x, index):
    value = contracts.per_example(objective(x, index), x.shape[0], what='the objective')
    return sense * value.astype(x.dtype)

  def monitored(x):
    return None if monitor is None else monitor(x)

  def total(x, index):
    value = values(x, index)
    # A sum, not a mean: an example's gradient must not depend on the batch size.
    return jnp.sum(value), (value, monitored(x))

  def evaluate(x, index, *, gradient):
    if not gradient:
      return Scored(values(x, index), None, monitored(x))
    (_, (value, found)), grad = jax.value_and_grad(total, has_aux=True)(x, index)
    return Scored(value, grad, found)

  return evaluate

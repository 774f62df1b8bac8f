"""Objectives of a smoothed network: the mean over stated draws of noise."""

import jax
import jax.numpy as jnp

from robustmed.attacks import engine
from robustmed.types import Array


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

  if engine.takes_progress(objective):
    return lambda x, progress: mean(x, progress=progress)
  return lambda x: mean(x)

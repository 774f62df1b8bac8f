"""Two classes as a Beta distribution over the probability of one of them.

Sensoy et al. 2018, 'Evidential deep learning to quantify classification uncertainty', for two
classes, as Ghesu et al. 2019 and Liu et al. 2020 ('No Surprises', eq. 5 to 7) use it on chest
images.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Beta(NamedTuple):
  """Beta(1 + positive, 1 + negative), each evidence at least 0, [b]."""

  positive: Array
  negative: Array


def from_logits(logits: Array) -> Beta:
  """Returns the softplus of logits [b, 2], evidence against the class and for it."""
  evidence = jax.nn.softplus(logits)
  return Beta(evidence[..., 1], evidence[..., 0])


def strength(beta: Beta) -> Array:
  """Returns S, the sum of both parameters, at least 2."""
  return 2 + beta.positive + beta.negative


def confidence(beta: Beta) -> Array:
  """Returns the mean of the distribution, a / S."""
  return (1 + beta.positive) / strength(beta)


def uncertainty(beta: Beta) -> Array:
  """Returns 2 / S, in (0, 1]; 1 without any evidence."""
  return 2 / strength(beta)


def squared_error(beta: Beta, label: Array) -> Array:
  """Returns the expected squared error of both classes, [b].

  2 ((y - p)^2 + p (1 - p) / (S + 1)).
  """
  p = confidence(beta)
  return 2 * ((label - p) ** 2 + p * (1 - p) / (strength(beta) + 1))


def divergence(beta: Beta, label: Array) -> Array:
  """Returns the KL divergence to the uniform distribution, from the wrong class's evidence alone.

  KL(Beta(1, w) || Beta(1, 1)) = ln w - (w - 1) / w, [b], for labels 0 and 1.
  """
  wrong = label * beta.negative + (1 - label) * beta.positive
  return jnp.log1p(wrong) - wrong / (1 + wrong)

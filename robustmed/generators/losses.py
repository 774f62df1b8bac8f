"""The losses of Chen et al. 2019, section 3.2, one value per example."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Strength(NamedTuple):
  """The loss X of eq. 5 and the weight that it is averaged over."""

  value: Array  # X [b], nats; 0 where there are no organ pixels
  pixels: Array  # sum of the mask M [b]


def strength(clean: Array, attacked: Array) -> Strength:
  """X: the cross-entropy of the attacked output to the clean one, over its organ pixels (eq. 5).

  Logits [b, *spatial, 1 + C]. The map M * sum_c -S_0(c) log S_DV(c) with M = sum_{c >= 1} S_0(c)
  is averaged over M, so X is in nats: at 2 the old label has kept a probability of about e^-2.
  No gradient flows into S_0 = softmax(clean). Equation 4 swaps the two arguments; this follows
  equation 5.
  """
  before = jax.lax.stop_gradient(jax.nn.softmax(clean.astype(jnp.float32)))
  after = jax.nn.log_softmax(attacked.astype(jnp.float32))
  mask = before[..., 1:].sum(-1)
  space = tuple(range(1, mask.ndim))
  pixels = mask.sum(space)
  total = -(mask * (before * after).sum(-1)).sum(space)
  return Strength(total / jnp.maximum(pixels, 1e-6), pixels)


def mean_square(field: Array) -> Array:
  """||field||^2 per pixel, averaged over pixels [b] (eq. 2); a sum would depend on the size."""
  return jnp.mean(jnp.square(field).sum(-1), axis=tuple(range(1, field.ndim - 1)))


def total_variation(field: Array) -> Array:
  """Mean absolute difference of neighbours along all axes [b]; eq. 2 has no smoothness term."""
  total = 0.0
  for axis in range(1, field.ndim - 1):
    steps = jnp.abs(jnp.diff(field, axis=axis)).sum(-1)
    total += jnp.mean(steps, axis=tuple(range(1, steps.ndim)))
  return total


def kl_divergence(latent) -> Array:
  """KL(N(mean, sigma^2) || N(0, 1)), averaged over the latent's elements [b]; not in eq. 6."""
  mean, log_sigma = latent
  each = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_sigma) - 1) - log_sigma
  return each.reshape(len(each), -1).mean(-1)


def gradient_penalty(score, real: Array, fake: Array, keys: Array) -> Array:
  """(||grad score|| - 1)^2 [b] at random points between real and fake (Gulrajani et al. 2017)."""
  share = jax.vmap(lambda key: jax.random.uniform(key))(keys)
  share = share.reshape(-1, *(1,) * (real.ndim - 1))
  between = real + share * (fake - real)
  gradient = jax.grad(lambda image: score(image).sum())(between)
  squares = jnp.square(gradient).reshape(len(gradient), -1).sum(-1)
  return jnp.square(jnp.sqrt(squares + 1e-12) - 1)

"""What variational auto-encoders share (Kingma & Welling 2014)."""

from typing import Any

import jax
import jax.numpy as jnp

from robustmed.generators import losses, networks

Array = jax.Array
LOG_SIGMA = (-8.0, 4.0)


def latent(flat: Array) -> networks.Latent:
  """Splits the last axis into mean and log sigma, which is clipped to LOG_SIGMA."""
  mean, log_sigma = jnp.split(flat, 2, axis=-1)
  return networks.Latent(mean, jnp.clip(log_sigma, *LOG_SIGMA))


def draw(found: networks.Latent, keys: Array) -> Array:
  """Samples each example's code from N(mean, sigma^2) with its own key [b]."""
  return found.mean + jnp.exp(found.log_sigma) * normal(keys, found.mean.shape[1:])


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
  """Samples codes [b, *shape] from the prior N(0, 1) with keys [b]."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def divergence(found: networks.Latent) -> Array:
  """KL(N(mean, sigma^2) || N(0, 1)), summed over the code [b]."""
  return found.mean[0].size * losses.kl_divergence(found)


def spread(found: networks.Latent) -> dict[str, Any]:
  """Two statistics [b] to log: the mean sigma and the mean square of the means."""
  flat = lambda leaf: leaf.reshape(len(leaf), -1)
  return {
    'sigma': jnp.exp(flat(found.log_sigma)).mean(-1),
    'mean_square': jnp.square(flat(found.mean)).mean(-1),
  }

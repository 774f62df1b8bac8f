import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.generators import networks, vae


def test_divergence_is_that_of_two_normals_by_numerical_integration():
  mean, log_sigma = 0.7, -0.4
  x = np.linspace(-12, 12, 200_001)
  density = lambda m, s: np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))
  p, q = density(mean, np.exp(log_sigma)), density(0.0, 1.0)
  by_hand = np.sum(np.where(p > 1e-300, p * np.log(p / q), 0)) * (x[1] - x[0])
  found = networks.Latent(jnp.full((2, 5), mean), jnp.full((2, 5), log_sigma))
  np.testing.assert_allclose(vae.divergence(found), 5 * by_hand, rtol=1e-5)
  standard = networks.Latent(jnp.zeros((1, 4)), jnp.zeros((1, 4)))
  np.testing.assert_allclose(vae.divergence(standard), 0, atol=1e-7)


def test_draws_have_the_mean_and_the_deviation_and_follow_their_own_key():
  keys = jax.random.split(jax.random.key(0), 4000)
  found = networks.Latent(jnp.full((4000, 2), 3.0), jnp.log(jnp.full((4000, 2), 0.5)))
  code = np.asarray(vae.draw(found, keys))
  np.testing.assert_allclose(code.mean(0), 3, atol=0.04)
  np.testing.assert_allclose(code.std(0), 0.5, atol=0.02)
  part = networks.Latent(found.mean[5:7], found.log_sigma[5:7])
  np.testing.assert_array_equal(vae.draw(part, keys[5:7]), code[5:7])


def test_log_sigma_is_kept_within_its_range():
  found = vae.latent(jnp.array([[1.0, -2.0, 99.0, -99.0]]))
  np.testing.assert_array_equal(found.mean, [[1, -2]])
  np.testing.assert_array_equal(found.log_sigma, [[4, -8]])
  spread = vae.spread(found)
  assert float(spread['mean_square'][0]) == pytest.approx(2.5)
  assert float(spread['sigma'][0]) == pytest.approx((np.exp(4) + np.exp(-8)) / 2, rel=1e-5)

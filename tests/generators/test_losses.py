import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from robustmed.generators import losses, networks


def test_strength_is_the_masked_cross_entropy_against_the_clean_output():
  rng = np.random.default_rng(0)
  clean, attacked = rng.normal(size=(2, 3, 4, 4, 5))
  found = losses.strength(jnp.asarray(clean, jnp.float32), jnp.asarray(attacked, jnp.float32))
  for b in range(3):
    total, weight = 0.0, 0.0
    for i in range(4):
      for j in range(4):
        before, after = special.softmax(clean[b, i, j]), special.softmax(attacked[b, i, j])
        mask = before[1:].sum()
        total += mask * -sum(before[c] * np.log(after[c]) for c in range(5))
        weight += mask
    np.testing.assert_allclose(found.value[b], total / weight, rtol=1e-5)
    np.testing.assert_allclose(found.pixels[b], weight, rtol=1e-5)


def test_strength_means_the_probability_that_is_left_of_the_old_label():
  clean = jnp.full((1, 2, 2, 3), -40.0).at[..., 1].set(40.0).at[0, 0, 0].set([40.0, -40.0, -40.0])
  left = np.exp(-2.0)
  attacked = jnp.log(jnp.asarray([1 - left - 1e-4, left, 1e-4]))
  found = losses.strength(clean, jnp.broadcast_to(attacked, (1, 2, 2, 3)))
  np.testing.assert_allclose(found.value, [2.0], rtol=1e-5)  # the background pixel does not count
  np.testing.assert_allclose(found.pixels, [3.0], rtol=1e-5)


def test_the_clean_output_is_constant_to_differentiation():
  rng = np.random.default_rng(1)
  one, two = (jnp.asarray(rng.normal(size=(1, 3, 3, 2)), jnp.float32) for _ in range(2))
  value = lambda clean, attacked: losses.strength(clean, attacked).value.sum()
  first, second = jax.grad(value, argnums=(0, 1))(one, two)
  assert not np.any(first) and np.all(second != 0)


def test_no_organ_is_no_strength():
  background = jnp.zeros((1, 2, 2, 2)).at[..., 0].set(200.0)
  found = losses.strength(background, jnp.zeros((1, 2, 2, 2)))
  assert float(found.pixels[0]) < 1e-6 and np.isfinite(found.value).all()


def test_regularisers_by_hand():
  field = jnp.asarray([[[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])  # [1, 2, 2, 2]
  np.testing.assert_allclose(losses.mean_square(field), [25 / 4])
  np.testing.assert_allclose(losses.total_variation(field), [7 / 2 + 7 / 2])
  np.testing.assert_allclose(losses.total_variation(jnp.ones((2, 4, 4, 1))), [0, 0])


def test_divergence_is_that_of_two_normal_distributions():
  mean, sigma = 0.7, 0.4
  x = np.linspace(-8, 8, 200001)
  p = np.exp(-((x - mean) ** 2) / (2 * sigma**2)) / sigma / np.sqrt(2 * np.pi)
  log_q = -(x**2) / 2 - np.log(np.sqrt(2 * np.pi))
  log_p = -((x - mean) ** 2) / (2 * sigma**2) - np.log(sigma * np.sqrt(2 * np.pi))
  want = np.sum(p * (log_p - log_q)) * (x[1] - x[0])
  latent = networks.Latent(jnp.full((2, 1, 1, 3), mean), jnp.full((2, 1, 1, 3), np.log(sigma)))
  np.testing.assert_allclose(losses.kl_divergence(latent), [want, want], rtol=1e-4)


def test_penalty_of_a_linear_critic():
  slope = np.random.default_rng(2).normal(size=(4, 4, 1)).astype(np.float32)
  score = lambda image: jnp.sum(image * slope[None], axis=(1, 2, 3))
  keys = jax.random.split(jax.random.key(0), 2)
  found = losses.gradient_penalty(score, jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1)), keys)
  np.testing.assert_allclose(found, (np.linalg.norm(slope) - 1) ** 2, rtol=1e-4)
  square = lambda image: 0.5 * jnp.square(image).sum((1, 2, 3))  # its gradient is the point itself
  steep = losses.gradient_penalty(square, jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1)), keys)
  share = np.asarray(jax.vmap(jax.random.uniform)(keys))
  assert steep == pytest.approx((4 * share - 1) ** 2, rel=1e-3)

"""The Beta distribution against scipy: its KL divergence, its expectations, its moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from robustmed.metrics import evidence

# Against a nodule, for it: from no evidence at all to a lot of both.
LOGITS = np.array([[-30, -30], [0, 0], [-2, 3], [3, -2], [5, 40], [40, 5], [200, 300]], np.float32)


def softplus(x):
  return np.logaddexp(0, x.astype(np.float64))


def parameters():
  """a, b of every row in float64."""
  against, towards = softplus(LOGITS).T
  return 1 + towards, 1 + against


def test_confidence_and_uncertainty_are_a_over_s_and_two_over_s():
  beta = evidence.from_logits(jnp.asarray(LOGITS))
  a, b = parameters()
  np.testing.assert_allclose(evidence.confidence(beta), stats.beta.mean(a, b), rtol=1e-6)
  np.testing.assert_allclose(evidence.uncertainty(beta), 2 / (a + b), rtol=1e-6)
  np.testing.assert_allclose(evidence.uncertainty(beta)[0], 1)


@pytest.mark.parametrize('label', [0.0, 1.0])
def test_the_data_term_is_the_expected_sum_of_squares(label):
  found = evidence.squared_error(evidence.from_logits(jnp.asarray(LOGITS)), jnp.float32(label))

  def expected(a, b):
    both = lambda x: (label - x) ** 2 + ((1 - label) - (1 - x)) ** 2
    return stats.beta(a, b).expect(both)

  np.testing.assert_allclose(found, list(map(expected, *parameters())), rtol=1e-5, atol=1e-9)


def kl_to_uniform(a, b):
  """The general form, with digammas."""
  return (
    -special.betaln(a, b)
    + (a - 1) * (special.digamma(a) - special.digamma(a + b))
    + (b - 1) * (special.digamma(b) - special.digamma(a + b))
  )


@pytest.mark.parametrize('label', [0.0, 1.0])
def test_the_regulariser_is_the_divergence_without_the_right_class(label):
  found = evidence.divergence(evidence.from_logits(jnp.asarray(LOGITS)), jnp.float32(label))
  a, b = parameters()
  a, b = label + (1 - label) * a, (1 - label) + label * b
  np.testing.assert_allclose(found, kl_to_uniform(a, b), rtol=1e-5, atol=1e-7)
  for row, value in enumerate(found):
    density = stats.beta(a[row], b[row]).pdf
    entropy = lambda x, f=density: special.xlogy(f(x), f(x))  # against a density of 1
    points = sorted([1e-3, 0.03, 0.2, 0.5, 0.8, 0.97, 0.999])
    want = integrate.quad(entropy, 0, 1, points=points, limit=200)[0]
    assert value == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_gradients_push_the_evidence_to_the_right_class_and_stay_finite():
  def loss(logits, label):
    beta = evidence.from_logits(logits)
    return jnp.sum(evidence.squared_error(beta, label) + evidence.divergence(beta, label))

  both = jax.vmap(jax.grad(loss), in_axes=(None, 0))(jnp.asarray(LOGITS), jnp.array([0.0, 1.0]))
  assert np.isfinite(both).all()
  negative, positive = np.asarray(both)[:, 1]  # of the row that leans neither way
  assert negative[1] > 0 > negative[0]
  assert positive[0] > 0 > positive[1]
  np.testing.assert_allclose(negative, positive[::-1], rtol=1e-6)

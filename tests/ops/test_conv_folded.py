"""Folded convolutions against lax, with both gradients and the gradient of a gradient's norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustmed.ops import conv

CASES = [
  # spatial, taps, stride, padding
  ((8,), (4,), 2, 1),
  ((7,), (3,), 2, 0),
  ((9, 6), (4, 3), 2, (1, 1)),
  ((6, 7), (3, 2), 1, (1, 0)),
  ((8, 11), (5, 4), 3, 2),
  ((6, 8, 4), (4, 4, 4), 2, 1),
  ((5, 6, 7), (3, 4, 2), 2, (1, 1, 0)),
]


def native(x, kernel, strides, padding):
  return conv.conv(x, kernel, strides=strides, padding=padding, impl='native')


def folded(x, kernel, strides, padding):
  return conv.conv_twice(x, kernel, strides=strides, padding=padding, impl='fast')


@pytest.mark.parametrize(('spatial', 'taps', 'strides', 'padding'), CASES)
def test_values_and_derivatives_are_those_of_lax(spatial, taps, strides, padding):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, *spatial, 3)), jnp.float32)
  kernel = jnp.asarray(rng.standard_normal((*taps, 3, 5)), jnp.float32)

  def all_of(form):
    value = lambda x, kernel: form(x, kernel, strides, padding)
    score = lambda x, kernel: jnp.sum(jnp.sin(value(x, kernel)))
    slope = jax.grad(score)
    penalty = lambda kernel, x: jnp.sum(jnp.square(slope(x, kernel)))
    return jax.jit(
      lambda x, kernel: (
        value(x, kernel),
        *jax.grad(score, (0, 1))(x, kernel),
        jax.grad(penalty)(kernel, x),
      )
    )(x, kernel)

  for ours, theirs in zip(all_of(folded), all_of(native), strict=True):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4 * np.abs(theirs).max())

"""The smallest eps that breaks each example."""

import jax.numpy as jnp
from jax import lax

from robustmed.ops import contracts


def minimal_eps(attack, objective, x, *, broken, upper, key, num_bisections=10):
  """Returns the smallest eps that breaks each example, [b], by bisection; inf if `upper` does not.

  broken: image -> [b] bool, evaluated at the attack's `x`. upper: scalar or [b]. At every finite
  eps returned the attack did break the example (0: broken without attack). If every larger eps also
  breaks it, the result is at most upper / 2**num_bisections too large. Every trial uses the same
  key. Compiles the attack once; costs num_bisections + 1 attacks.
  """
  x = jnp.asarray(x)
  upper = contracts.broadcast_per_example(upper, jnp.zeros(x.shape[:1], jnp.float32), what='upper')

  def is_broken(image):
    return contracts.per_example(broken(image), x.shape[0], what='broken', dtype=bool)

  def halve(_, ends):
    low, high = ends
    eps = jnp.where(jnp.isinf(high), upper, (low + jnp.where(jnp.isinf(high), upper, high)) / 2)
    hit = is_broken(attack(objective, x, eps=eps, key=key).x)
    return jnp.where(hit, low, eps), jnp.where(hit, eps, high)

  ends = jnp.zeros_like(upper), jnp.full_like(upper, jnp.inf)
  _, high = lax.fori_loop(0, num_bisections + 1, halve, ends)
  return jnp.where(is_broken(x), 0.0, high)

"""The smallest eps that breaks each example."""

import jax.numpy as jnp
from jax import lax

from robustmed import errors


def minimal_eps(attack, objective, x, *, broken, upper, key, num_bisections=10):
  """Bisects over the traced eps: [b], inf for an example that `upper` does not break.

  broken: image -> [b] bool, judged at the attack's `x`. upper: scalar or [b]. Where the result is
  finite, the attack was seen to break the example at that eps (0: broken without attack), and if
  more eps never mends what less eps broke, it is at most upper / 2**num_bisections too large. Every
  trial uses the same key. Compiles the attack once; costs num_bisections + 1 attacks.
  """
  x = jnp.asarray(x)
  upper = jnp.broadcast_to(jnp.asarray(upper, jnp.float32), x.shape[:1])

  def judge(image):
    verdict = jnp.asarray(broken(image))
    if verdict.shape != x.shape[:1] or verdict.dtype != jnp.bool_:
      raise errors.UserError(
        f'broken must return one bool per example, shape ({x.shape[0]},), but returned '
        f'{verdict.dtype} {verdict.shape}'
      )
    return verdict

  def halve(_, ends):
    low, high = ends
    eps = jnp.where(jnp.isinf(high), upper, (low + jnp.where(jnp.isinf(high), upper, high)) / 2)
    hit = judge(attack(objective, x, eps=eps, key=key).x)
    return jnp.where(hit, low, eps), jnp.where(hit, eps, high)

  ends = jnp.zeros_like(upper), jnp.full_like(upper, jnp.inf)
  _, high = lax.fori_loop(0, num_bisections + 1, halve, ends)
  return jnp.where(judge(x), 0.0, high)

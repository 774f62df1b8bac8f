"""Training on noisy images beside the clean ones: on them or as noise alone (Chen et al. 2021)."""

import jax
import jax.numpy as jnp

from robustmed import errors, types
from robustmed.defenses import weighted


def make(
  task: types.Task,
  *,
  eps: float,
  mode: str = 'add',
  clean_weight: float = 0.5,
  bounds: tuple[float, float] | None = None,
) -> types.Defense:
  """clean_weight * L(x) + (1 - clean_weight) * L(x_rand).

  mode 'add': x_rand = clip(x + U(-eps, eps)), the papers' text. mode 'only': x_rand = eps * U(0, 1)
  without x, what the authors of the disk-shape paper released.
  """
  if mode not in ('add', 'only'):
    raise errors.UserError(f"noise mode must be 'add' or 'only', got {mode!r}")

  def noisy(variables, context):
    image = context.batch['image']
    shape = image.shape[1:]
    if mode == 'only':
      draw = lambda key: jax.random.uniform(key, shape, image.dtype)
      return eps * jax.vmap(draw)(context.keys), {}
    draw = lambda key: jax.random.uniform(key, shape, image.dtype, -eps, eps)
    image = image + jax.vmap(draw)(context.keys)
    return image if bounds is None else jnp.clip(image, *bounds), {}

  copies = [
    weighted.CLEAN._replace(weight=clean_weight),
    weighted.Copy('noisy', 1 - clean_weight, noisy),
  ]
  return types.Defense(phases=(weighted.phase(task, copies),), cost=types.Cost(passes=2))

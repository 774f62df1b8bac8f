"""Training on clean images and on noise, added to the image or alone (Chen et al. 2021)."""

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
  coupled: bool = False,
  in_turn: bool = False,
) -> types.Defense:
  """Returns training on clean_weight * L(x) + (1 - clean_weight) * L(x_rand).

  mode 'add': x_rand = clip(x + U(-eps, eps)), the papers' text. mode 'only': x_rand = eps * U(0, 1)
  without x, what the authors of the disk-shape paper released. eps is in the units of the task's
  `space`, if it has one, which then clips in place of `bounds`. With `in_turn` there are two
  updates per batch, the first on the noisy images and the second on the clean ones, as Liu et al.
  2021 train; with `coupled` the losses are `task.coupled`.
  """
  if mode not in ('add', 'only'):
    raise errors.UserError(f"noise mode must be 'add' or 'only', got {mode!r}")
  if task.space is not None and mode == 'only':
    raise errors.UserError("noise mode 'only' needs a task without a space")

  def noisy(variables, context):
    image = context.batch['image']
    shape = image.shape[1:]
    if mode == 'only':
      draw = lambda key: jax.random.uniform(key, shape, image.dtype)
      return eps * jax.vmap(draw)(context.keys), {}
    draw = lambda key: jax.random.uniform(key, shape, image.dtype, -eps, eps)
    change = jax.vmap(draw)(context.keys)
    if task.space is not None:
      inside = task.space.encode(context.batch) + change
      return task.space.decode(inside, context.batch), {}
    image = image + change
    return image if bounds is None else jnp.clip(image, *bounds), {}

  views = [
    weighted.CLEAN._replace(weight=clean_weight),
    weighted.View('noisy', 1 - clean_weight, noisy),
  ]
  phases = weighted.phases(task, views, in_turn=in_turn, coupled=coupled)
  return types.Defense(phases=phases, cost=types.Cost(passes=2), coupled=coupled)

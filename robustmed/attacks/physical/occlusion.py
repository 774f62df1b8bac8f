"""Something in front of the image: where it lies and what is on it are searched."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from robustmed import errors
from robustmed.attacks.physical.transform import Transform


def occlusion(
  image_shape: Sequence[int],
  *,
  side: float = 0.2,
  tiles: int = 1,
  bounds: tuple[float, float] = (0.0, 1.0),
  edge: float = 1.0,
) -> Transform:
  """Returns a patch before the image: its place, and what is on each of its tiles, are parameters.

  Parameters, each within [-1, 1]: the place along each axis, -1 and 1 where the patch touches a
  border of the image, then the tiles, `tiles` along each axis: 1 is an opaque tile as bright as
  bounds[1], -1 one as dark as bounds[0], 0 leaves the image, a number between is a share of
  opacity. eps 1 allows all that; a smaller one is less opaque and stays nearer to the middle.

  side: of the patch, as a share of that of the image. bounds: equal ones are a patch of that value.
  edge: pixels over which the border of the patch blends with the image, by which its place has a
  gradient. Between the centres of tiles their numbers are interpolated.
  """
  spatial = tuple(image_shape[:-1])
  rank = len(spatial)
  if not 0 < side < 1 or tiles < 1 or not edge > 0:
    raise errors.UserError(
      f'an occlusion needs 0 < side < 1, tiles of 1 or more and an edge above 0, not {side}, '
      f'{tiles}, {edge}'
    )
  low, high = bounds

  def apply(z, image):
    level = z[:, rank:].reshape(-1, *(tiles,) * rank)
    cover = jnp.ones((len(z), *(1,) * rank), z.dtype)
    for axis, size in enumerate(spatial):
      half = side * size / 2
      centre = size / 2 + z[:, axis] * (size / 2 - half)
      away = jnp.arange(size, dtype=z.dtype)[None] + 0.5 - centre[:, None]  # [b, size]
      inside = jax.nn.sigmoid((half - jnp.abs(away)) / edge)
      cover *= inside.reshape(len(z), *(size if k == axis else 1 for k in range(rank)))
      # contracts the first axis of tiles, appends one of places
      tile = jnp.clip((away / half + 1) * tiles / 2 - 0.5, 0, tiles - 1)
      near = jnp.maximum(1 - jnp.abs(tile[:, None] - jnp.arange(tiles)[None, :, None]), 0)
      level = jnp.einsum('bt...,bts->b...s', level, near)
    brighter = level >= 0  # also at 0, where the slope is that of a brighter tile
    opacity = cover * jnp.minimum(jnp.where(brighter, level, -level), 1)
    return image + opacity[..., None] * (jnp.where(brighter, high, low)[..., None] - image)

  shape = (rank + tiles**rank,)
  words = f'share of: an opaque patch of {100 * side:g} % of each side, anywhere in the image'
  return Transform(shape, apply, words)

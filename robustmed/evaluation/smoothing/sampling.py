"""What a network says of images under Gaussian noise; only sums are held, never all draws."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustmed import errors

Array = jax.Array
_FIRST, _SECOND = 0, 1  # what the draws of a key are for


def noisy(image: Array, *, sigma, key: jax.Array, draws: int) -> Array:
  """Returns [draws * b, *spatial, c]: every image with `draws` of noise, draw by draw."""
  noise = jax.random.normal(key, (draws, *image.shape), image.dtype)
  return (image[None] + sigma * noise).reshape(-1, *image.shape[1:])


def label_counts(
  labels_of: Callable[[Array], Array],
  image: Array,
  *,
  sigma: float,
  draws: int,
  classes: int,
  key: jax.Array,
  at_once: int = 8,
) -> Array:
  """Returns how often each label is said, [b, *spatial, classes] int32.

  labels_of: image [b, *spatial, c] -> labels [b, *spatial] (or [b], of classes of an image).
  at_once: draws that pass through the network together.
  """
  values = jnp.arange(classes)
  one_hot = lambda labels: labels[..., None] == values.reshape((1,) * labels.ndim + (-1,))
  return _total(
    lambda x: one_hot(labels_of(x)).astype(jnp.int32),
    image,
    sigma=sigma,
    draws=draws,
    key=jax.random.fold_in(key, _FIRST),
    at_once=at_once,
  )


def hits(
  labels_of: Callable[[Array], Array],
  image: Array,
  top: Array,
  *,
  sigma: float,
  draws: int,
  key: jax.Array,
  at_once: int = 8,
) -> Array:
  """Returns how often `top` [b, *spatial] is said, int32, in draws of its own."""
  tiled = jnp.tile(top, (at_once, *(1,) * (top.ndim - 1)))
  return _total(
    lambda x: (labels_of(x) == tiled).astype(jnp.int32),
    image,
    sigma=sigma,
    draws=draws,
    key=jax.random.fold_in(key, _SECOND),
    at_once=at_once,
  )


def values(
  value_of: Callable[[Array], Array],
  image: Array,
  *,
  sigma: float,
  draws: int,
  key: jax.Array,
  at_once: int = 8,
) -> np.ndarray:
  """Returns [draws, b, ...]: numbers of an image, such as its Dice or its landmarks.

  value_of: images [n * b, *spatial, c] -> [n * b, ...], where the b images follow each other n
  times.
  """
  _check(draws, at_once)

  @jax.jit
  def one(key):
    found = value_of(noisy(image, sigma=sigma, key=key, draws=at_once))
    return found.reshape(at_once, len(image), *found.shape[1:])

  keys = jax.random.split(jax.random.fold_in(key, _SECOND), draws // at_once)
  return np.concatenate([np.asarray(one(key)) for key in keys])


def _total(count_of, image, *, sigma, draws, key, at_once):
  _check(draws, at_once)

  def add(number, total):
    x = noisy(image, sigma=sigma, key=jax.random.fold_in(key, number), draws=at_once)
    found = count_of(x)
    return total + found.reshape(at_once, len(image), *found.shape[1:]).sum(0, dtype=jnp.int32)

  shape = jax.eval_shape(count_of, jnp.tile(image, (at_once, *(1,) * (image.ndim - 1)))).shape[1:]
  start = jnp.zeros((len(image), *shape), jnp.int32)
  return jax.jit(lambda start: lax.fori_loop(0, draws // at_once, add, start))(start)


def _check(draws, at_once):
  if at_once < 1 or draws < 1 or draws % at_once:
    raise errors.UserError(f'{draws} draws are no multiple of the {at_once} that are made at once')

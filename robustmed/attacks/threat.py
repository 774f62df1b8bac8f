"""The images that an attack may return: a ball around the centre, a box of values, a region."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustmed import errors
from robustmed.types import Array


def expand_to_rank(values, like):
  """Returns a scalar or [b] as [b, 1, ...], which broadcasts against `like` [b, ...]."""
  values = jnp.broadcast_to(jnp.asarray(values, like.dtype), like.shape[:1])
  return values.reshape(-1, *(1,) * (like.ndim - 1))


def _rest(values):
  return tuple(range(1, values.ndim))


def _l2(values):
  return jnp.sqrt(jnp.sum(values * values, axis=_rest(values), keepdims=True))


class Norm(NamedTuple):
  """The operations of one norm, each per example."""

  direction: Callable[[Array], Array]  # gradient -> steepest unit step
  project: Callable[[Array, Array], Array]  # (delta, radius [b, 1, ...]) -> nearest in the ball
  length: Callable[[Array], Array]  # delta -> [b]


NORMS = {
  'linf': Norm(
    direction=jnp.sign,
    project=lambda delta, radius: jnp.clip(delta, -radius, radius),
    length=lambda delta: jnp.max(jnp.abs(delta), axis=_rest(delta)),
  ),
  'l2': Norm(
    direction=lambda grad: grad / jnp.maximum(_l2(grad), 1e-8),
    project=lambda delta, radius: delta * jnp.minimum(1.0, radius / jnp.maximum(_l2(delta), 1e-30)),
    length=lambda delta: _l2(delta).reshape(-1),
  ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Threat:
  """The set of allowed images around a centre. Every method works per example, in float32.

  norm: 'linf' or 'l2', the norm in which eps is measured.
  bounds: None or (low, high), each a number or one value per channel [c], in the units of x. An
    element of the centre that is outside them may keep its value but not move further out, so
    eps = 0 is the identity and x is always in the ball.
  region: None or an array of x's rank whose axes are x's or 1, such as [b, *spatial, 1]; where it
    is 0, x keeps the value of the centre.
  max_change: None or a further limit on the change of each element, for any norm.
  """

  norm: str = 'linf'
  bounds: tuple | None = None
  region: Array | None = None
  max_change: float | None = None

  def __post_init__(self):
    errors.lookup(NORMS, self.norm, kind='norm')
    if self.bounds is None:
      return
    if not isinstance(self.bounds, tuple | list) or len(self.bounds) != 2:
      raise errors.UserError(f'bounds must be None or a pair (low, high), not {self.bounds!r}')
    if any(side is None for side in self.bounds):
      raise errors.UserError(
        f'bounds need both sides, not {self.bounds!r}; one that does not matter is -inf or inf'
      )
    plain = [side for side in self.bounds if isinstance(side, str | tuple | list | np.ndarray)]
    if any(np.asarray(side).dtype.kind not in 'biuf' for side in plain):
      raise errors.UserError(f'bounds must be numbers, not {self.bounds!r}')
    known = all(isinstance(side, int | float | tuple | list | np.ndarray) for side in self.bounds)
    if known and not np.all(np.asarray(self.bounds[0]) < np.asarray(self.bounds[1])):
      raise errors.UserError(
        f'bounds must be (low, high) with low < high, not {self.bounds!r}; per channel: '
        '((low, low, ...), (high, high, ...))'
      )

  @property
  def ball(self) -> str | None:
    """What tells balls apart: equal ones allow the same images at a level; None: there is none."""
    limits = self.norm, self.bounds, self.region, self.max_change
    leaves, structure = jax.tree.flatten(limits)
    plain = [one if isinstance(one, str) else np.asarray(one).tolist() for one in leaves]
    return repr((plain, structure))

  def check(self, x):
    """Raises `UserError` where bounds or region do not fit the shape of `x`."""
    for side in self.bounds or ():
      if np.ndim(side) and np.shape(side) != x.shape[-1:]:
        raise errors.UserError(
          f'bounds of shape {np.shape(side)} do not fit x of shape {x.shape}: give a number or one '
          f'value for each of the {x.shape[-1]} channels'
        )
    self._check_range(x)
    if self.region is None:
      return
    shape = np.shape(self.region)
    if len(shape) != x.ndim or any(have not in (1, want) for have, want in zip(shape, x.shape)):
      raise errors.UserError(
        f'a region of shape {shape} does not fit x of shape {x.shape}: every axis must be 1 or '
        'equal, for example [b, *spatial, 1]'
      )

  def _check_range(self, x):
    """Raises `UserError` where more than 5 % of x lie outside the bounds.

    Such images have other units than the bounds; they would hardly move and look robust.
    """
    if self.bounds is None or isinstance(x, jax.core.Tracer):
      return
    low, high = (np.asarray(side) for side in self.bounds)
    outside = np.mean((np.asarray(x) < low - 1e-3) | (np.asarray(x) > high + 1e-3))
    if outside > 0.05:
      raise errors.UserError(
        f'{100 * outside:.0f} % of x lie outside the bounds {self.bounds}; give bounds in the '
        'units of x (None for z-scored images) or scale the image'
      )

  def masked(self, values):
    """Returns `values` with zeros outside the region."""
    return values if self.region is None else jnp.where(jnp.asarray(self.region) != 0, values, 0)

  def direction(self, grad):
    """Returns the steepest step of norm 1: the sign, or g / max(||g||, 1e-8)."""
    # A NaN or infinite entry gives no direction, so x stays as it is there.
    grad = jnp.where(jnp.isfinite(grad), grad, 0)
    return NORMS[self.norm].direction(self.masked(grad))

  def project(self, x, centre, eps):
    """Returns `x` projected onto the eps ball (eps scalar or [b]), then clipped to the box."""
    delta = NORMS[self.norm].project(self.masked(x - centre), expand_to_rank(eps, centre))
    if self.max_change is not None:
      delta = jnp.clip(delta, -self.max_change, self.max_change)
    x = centre + delta
    if self.bounds is None:
      return x
    low, high = (self._side(side, centre) for side in self.bounds)
    # Clipped last: that moves x towards the centre, so the distance can only shrink.
    return jnp.clip(x, jnp.minimum(low, centre), jnp.maximum(high, centre))

  def start(self, keys, centre, radius):
    """Returns centre + U(-radius, radius) per element, for l2 projected onto the l2 ball.

    keys: [b]; radius: scalar or [b]. In many dimensions the l2 start lies on the sphere.
    """
    draw = lambda key: jax.random.uniform(key, centre.shape[1:], centre.dtype, -1.0, 1.0)
    radius = expand_to_rank(radius, centre)
    noise = self.masked(jax.vmap(draw)(keys) * radius)
    return centre + NORMS[self.norm].project(noise, radius)

  def distance(self, x, centre):
    """Returns ||x - centre|| per example, [b]."""
    return NORMS[self.norm].length(x - centre)

  def _side(self, side, like):
    side = jnp.asarray(side, like.dtype)
    return side.reshape((1,) * (like.ndim - side.ndim) + side.shape)

"""Attacked images of the whole numbers that a file can hold, within the ball, chosen by a metric.

Rounding to the nearest number can leave the ball and can undo an attack: what counts is the image
that is read back. `search` returns that one, with its value.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustmed import errors

_NEAR = 1e-3  # of a step: float32 images are that far from the numbers of their files ...
_FLOAT = 2.0**-22  # ... or that share of the largest number
_HALVINGS = 30


class Lattice(NamedTuple):
  """The images that a file holds: origin + step * n for whole numbers n in [lowest, highest].

  origin and step are numbers, or [c] in images [*spatial, c]. read: image -> the image that is made
  of a file with its pixels, where the file lacks some, as a border that pads images to one size.
  """

  origin: np.ndarray | float
  step: np.ndarray | float
  lowest: int
  highest: int
  read: Callable[[np.ndarray], np.ndarray] | None = None

  def image(self, whole: np.ndarray) -> np.ndarray:
    """Returns the image that is read back of whole numbers, float32."""
    image = (np.asarray(self.origin) + np.asarray(self.step) * whole).astype(np.float32)
    return image if self.read is None else np.asarray(self.read(image), np.float32)

  def place(self, image: np.ndarray) -> np.ndarray:
    """Returns where an image lies between the numbers, float64."""
    return (np.asarray(image, np.float64) - self.origin) / self.step


def of_png(low: float = 0.0, high: float = 1.0) -> Callable[[Mapping[str, Any]], Lattice]:
  """Returns example -> the images in [low, high] that a PNG of 8 bits holds, the same for all."""
  made = Lattice(low, (high - low) / 255, 0, 255)
  return lambda example: made


class Stored(NamedTuple):
  """One image as its file holds it."""

  image: np.ndarray  # [*spatial, c] float32
  whole: np.ndarray  # the numbers, int64; those of pixels that the file lacks mean nothing
  value: float  # its score
  distance: float  # from the centre, in the units of eps
  inside: bool  # it is in the ball; False where no number of a pixel is
  chosen: str  # the way of rounding that won


def search(
  score: Callable[[np.ndarray], float],
  x: np.ndarray,
  centre: np.ndarray,
  *,
  lattice: Lattice,
  eps: float | None,
  norm: str = 'linf',
  bounds: tuple | None = None,
  region: np.ndarray | None = None,
  max_change: float | None = None,
  unit: np.ndarray | float = 1.0,
  slope: Callable[[np.ndarray], np.ndarray] | None = None,
  rounds: int = 12,
  seed: int = 0,
) -> Stored:
  """Returns the stored image with the largest `score` that is found, within eps of the centre.

  Every pixel of the attacked image x [*spatial, c] goes to the number below or above it. Tried are
  the nearest one, the one towards the centre, the one away from it, the one that `slope` (image ->
  gradient of an objective) points to, and then `rounds` changes of the best one: in a random part
  of the pixels, which shrinks, the other number, or the one that the slope at the best image points
  to. eps=None: the ball is not known, and pixels go towards the centre, never beyond x. bounds,
  region [*spatial, c or 1] and max_change are those of `threat.Threat`; eps, max_change and the
  distance are in `unit`s of images, a number or [c]. A pixel with no number that
  is allowed takes the one nearest to the centre, and the image is not inside.
  """
  errors.lookup({'linf': None, 'l2': None}, norm, kind='norm')
  step = np.broadcast_to(np.abs(np.asarray(lattice.step, np.float64)) / unit, x.shape)
  at, middle = lattice.place(x), lattice.place(centre)
  near = _near(at, lattice)
  sizes = [size for size in (eps if norm == 'linf' else np.inf, max_change) if size is not None]
  least, most = _ends(at, middle, None if eps is None else min(sizes) / step)
  least, most = _narrowed(least, most, centre, lattice, bounds, region)
  low = np.maximum(np.ceil(least - near), lattice.lowest)
  high = np.minimum(np.floor(most + near), lattice.highest)
  empty = low > high
  nearest = np.clip(np.round(middle), lattice.lowest, lattice.highest)
  low, high = np.where(empty, nearest, low), np.where(empty, nearest, high)
  down = np.clip(np.floor(at + near), low, high)
  up = np.clip(np.ceil(at - near), low, high)
  closer = np.abs(down - middle) <= np.abs(up - middle)
  inner, outer = np.where(closer, down, up), np.where(closer, up, down)
  # where the file lacks pixels, what is read back is what counts
  seen = lambda whole: whole if lattice.read is None else lattice.place(lattice.image(whole))
  length = lambda whole: np.sqrt(np.sum(np.square((seen(whole) - middle) * step)))

  def fitted(outwards, weight):
    """The numbers where the pixels with the largest weights go outwards, as many as fit."""
    whole = np.where(outwards, outer, inner)
    if norm == 'linf' or eps is None or length(whole) <= eps:
      return whole
    few, many = 0.0, 1.0  # shares of the pixels that go outwards
    rank = np.argsort(np.argsort(-weight.ravel())).reshape(weight.shape) / weight.size
    for _ in range(_HALVINGS):
      share = (few + many) / 2
      fits = length(np.where(outwards & (rank < share), outer, inner)) <= eps
      few, many = (share, many) if fits else (few, share)
    return np.where(outwards & (rank < few), outer, inner)

  def pointed(whole):
    """Where the slope at the image of these numbers points outwards, and how steep it is."""
    along = np.asarray(slope(lattice.image(whole)), np.float64) * np.sign(lattice.step)
    return (along > 0) == (outer > inner), np.abs(along)

  flat, part = np.zeros(x.shape), np.abs(at - inner)
  tries = {'towards the centre': fitted(np.zeros(x.shape, bool), flat)}
  if eps is not None:
    tries['nearest'] = fitted(np.abs(outer - at) < part, part)
    tries['away from the centre'] = fitted(np.ones(x.shape, bool), part)
    if slope is not None:
      tries['slope'] = fitted(*pointed(tries['nearest']))
  scored = {name: (float(score(lattice.image(whole))), whole) for name, whole in tries.items()}
  chosen = max(scored, key=lambda name: _rank(scored[name][0]))
  value, best = scored[chosen]
  rng, free = np.random.default_rng(seed), outer != inner
  for n in range(rounds if eps is not None and free.any() else 0):
    part = rng.uniform(size=x.shape) < 0.5 ** (1 + n // 2)
    now = best == outer
    if slope is not None and n % 2:
      wanted, weight = pointed(best)
    else:
      wanted, weight = ~now, rng.uniform(size=x.shape)
    whole = fitted(np.where(part, wanted, now) & free, weight)
    found = float(score(lattice.image(whole)))
    if _rank(found) > _rank(value) or (np.isnan(value) and not np.isnan(found)):
      value, best, chosen = found, whole, f'change {n + 1}'
  end, whole = seen(best), best.astype(np.int64)
  size = np.abs((end - middle) * step).max() if norm == 'linf' else length(best)
  inside = bool(np.all((end >= least - near) & (end <= most + near)))
  if norm == 'l2' and eps is not None:
    inside &= bool(size <= eps)
  return Stored(lattice.image(whole), whole, value, float(size), inside, chosen)


def _rank(value: float) -> float:
  """Returns what scores are compared by: one that is not a number is below all others."""
  return -np.inf if np.isnan(value) else value


def _near(at, lattice) -> float:
  """How far from a whole number an image in float32 may lie, in steps."""
  largest = np.abs(at).max(initial=0) + np.abs(np.asarray(lattice.origin) / lattice.step).max()
  return float(np.clip(_FLOAT * largest, _NEAR, 0.25))


def _ends(at, middle, size):
  """The lowest and highest places that pixels may have, `size` steps from the middle."""
  if size is None:
    return np.minimum(at, middle), np.maximum(at, middle)
  return middle - size, middle + size


def _narrowed(least, most, centre, lattice, bounds, region):
  """The same within the bounds and, outside of the region, at the centre."""
  middle = lattice.place(centre)
  if bounds is not None:
    # as in a threat: a pixel of the centre that is outside may stay
    sides = [np.minimum(bounds[0], centre), np.maximum(bounds[1], centre)]
    sides = [lattice.place(side) for side in sides]
    least, most = np.maximum(least, np.minimum(*sides)), np.minimum(most, np.maximum(*sides))
  if region is not None:
    still = np.broadcast_to(np.asarray(region) == 0, middle.shape)
    least, most = np.where(still, middle, least), np.where(still, middle, most)
  return least, most

"""Attacked images of the whole numbers that a file can hold, within the ball, chosen by a metric.

Rounding to the nearest number can leave the ball and can undo an attack: what counts is the image
that is read back. `search` returns that one, with its value.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from robustmed import errors

_NEAR = 1e-3  # of a step: float32 images are that far from the numbers of their files
_HALVINGS = 30


class Lattice(NamedTuple):
  """The images that a file holds: origin + step * n for whole numbers n in [lowest, highest].

  origin and step are numbers, or [c] in images [*spatial, c].
  """

  origin: np.ndarray | float
  step: np.ndarray | float
  lowest: int
  highest: int

  def image(self, whole: np.ndarray) -> np.ndarray:
    """Returns the image of whole numbers, float32."""
    return (np.asarray(self.origin) + np.asarray(self.step) * whole).astype(np.float32)

  def place(self, image: np.ndarray) -> np.ndarray:
    """Returns where an image lies between the numbers, float64."""
    return (np.asarray(image, np.float64) - self.origin) / self.step


class Stored(NamedTuple):
  """One image as its file holds it."""

  image: np.ndarray  # [*spatial, c] float32
  whole: np.ndarray  # the numbers, int64
  value: float  # its score
  distance: float  # from the centre, in the units of images
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
  slope: Callable[[np.ndarray], np.ndarray] | None = None,
  rounds: int = 12,
  seed: int = 0,
) -> Stored:
  """Returns the stored image with the largest `score` that is found, within eps of the centre.

  Every pixel of the attacked image x [*spatial, c] goes to the number below or above it. Tried are
  the nearest one, the one towards the centre, the one away from it, the one that `slope` (image ->
  gradient of an objective) points to, and then `rounds` changes of the best one: in a random part
  of the pixels, which shrinks, the other number, or the one that the slope at the best image points
  to. Pixels whose numbers are all too far from the centre take the nearest one, and the image is
  not inside. eps=None: the ball is not known, and pixels go towards the centre, never beyond x.
  """
  errors.lookup({'linf': None, 'l2': None}, norm, kind='norm')
  step = np.broadcast_to(np.abs(np.asarray(lattice.step, np.float64)), x.shape)
  at, middle = lattice.place(x), lattice.place(centre)
  low, high = _ends(at, middle, step, lattice, eps if norm == 'linf' else np.inf)
  empty = low > high
  nearest = np.clip(np.round(middle), lattice.lowest, lattice.highest)
  low, high = np.where(empty, nearest, low), np.where(empty, nearest, high)
  down = np.clip(np.floor(at + _NEAR), low, high)
  up = np.clip(np.ceil(at - _NEAR), low, high)
  closer = np.abs(down - middle) <= np.abs(up - middle)
  inner, outer = np.where(closer, down, up), np.where(closer, up, down)
  length = lambda whole: np.sqrt(np.sum(np.square((whole - middle) * step)))

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

  flat, near = np.zeros(x.shape), np.abs(at - inner)
  tries = {'towards the centre': fitted(np.zeros(x.shape, bool), flat)}
  if eps is not None:
    tries['nearest'] = fitted(np.abs(outer - at) < near, near)
    tries['away from the centre'] = fitted(np.ones(x.shape, bool), near)
    if slope is not None:
      tries['slope'] = fitted(*pointed(tries['nearest']))
  scored = {name: (float(score(lattice.image(whole))), whole) for name, whole in tries.items()}
  chosen = max(scored, key=lambda name: np.nan_to_num(scored[name][0], nan=-np.inf))
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
    if found > value:
      value, best, chosen = found, whole, f'change {n + 1}'
  size = np.abs((best - middle) * step).max() if norm == 'linf' else length(best)
  most = np.inf if eps is None else eps + _NEAR * step.max() * (norm == 'linf')
  whole = best.astype(np.int64)
  return Stored(lattice.image(whole), whole, value, float(size), bool(size <= most), chosen)


def _ends(at, middle, step, lattice, eps):
  """The lowest and highest numbers that pixels may have."""
  if eps is None:
    low, high = np.minimum(at, middle), np.maximum(at, middle)
  else:
    low, high = middle - eps / step, middle + eps / step
  low = np.maximum(np.ceil(low - _NEAR), lattice.lowest)
  return low, np.minimum(np.floor(high + _NEAR), lattice.highest)

"""What a change of the image is to its search."""

from collections.abc import Callable
from typing import NamedTuple

from robustmed.types import Array


class Transform(NamedTuple):
  """apply: (parameters [b, *shape], image) -> image, exactly the image at 0.

  displacement: (parameters) -> [b, *spatial, axes] in pixels, of a transform that moves structures:
  the value at p is read at p + displacement(p), also for labels, see `follow`.
  """

  shape: tuple[int, ...]
  apply: Callable[[Array, Array], Array]
  unit: str  # of the parameters, in words
  displacement: Callable[[Array], Array] | None = None


def like(z, image):
  """Returns one number per example [b, 1] as an array that broadcasts against the image."""
  return z.reshape(-1, *(1,) * (image.ndim - 1))
